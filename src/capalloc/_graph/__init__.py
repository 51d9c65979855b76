"""The captured graph of a model: operators, their records, and how a graph is run."""
