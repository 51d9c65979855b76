"""The captured graph of a model, what its structure tells, and how it is run."""
