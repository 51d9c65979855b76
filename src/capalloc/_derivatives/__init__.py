"""The mixed derivative d/dtheta grad_x f of a model: rows of constraints, example by example."""

from capalloc._derivatives.autograd import exact_derivatives
from capalloc._derivatives.constraints import Constraints
from capalloc._derivatives.verify import Choice, choose_jacobian

__all__ = [
    "Choice",
    "Constraints",
    "choose_jacobian",
    "exact_derivatives",
]
