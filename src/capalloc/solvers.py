"""Settings of the solvers of `measure` and `propagate`, and scales for the ridge."""

from capalloc._measure.ridge import mean_eigenvalue, ridge_from_noise
from capalloc._settings import Auto, Block, Dense, Hessian, Markov, Segments, Stochastic

__all__ = [
    "Auto",
    "Block",
    "Dense",
    "Hessian",
    "Markov",
    "Segments",
    "Stochastic",
    "mean_eigenvalue",
    "ridge_from_noise",
]
