"""Settings of solvers, and scales for the ridge."""

from capalloc._measure.measure import mean_eigenvalue
from capalloc._measure.ridge import ridge_from_noise

__all__ = ["mean_eigenvalue", "ridge_from_noise"]
