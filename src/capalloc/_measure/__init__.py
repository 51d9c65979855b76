"""Measured capacity: from a model and examples to an allocation."""
