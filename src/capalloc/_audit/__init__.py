"""Everything that can be said about one model in one go, as findings."""
