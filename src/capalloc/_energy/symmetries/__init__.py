"""Symmetries of a network: which rescalings leave its function as it is."""
