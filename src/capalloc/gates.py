"""Gates of activations in closed form and on data: decoupling, moments, shattering (docs/theory.md, sections 3, 6)."""

from capalloc._decoupling.gate_decoupling import gate_moments
from capalloc._decoupling.gaussian_gates import gaussian_decoupling, gaussian_gate_moment
from capalloc._decoupling.second_moments import propagate_moments
from capalloc._depth.shattering_law import family_rates, gradient_correlation

__all__ = [
    "family_rates",
    "gate_moments",
    "gaussian_decoupling",
    "gaussian_gate_moment",
    "gradient_correlation",
    "propagate_moments",
]
