"""Propagated capacity: from a captured graph to an allocation."""
