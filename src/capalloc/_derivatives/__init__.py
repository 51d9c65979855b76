"""The mixed derivative d/dtheta grad_x f of a model: rows of constraints, example by example."""

from capalloc._derivatives.constraints import Constraints
from capalloc._derivatives.metric import Directions, InputMetric, input_metric
from capalloc._derivatives.verify import Choice, choose_jacobian, differentiable_kernels

__all__ = [
    "Choice",
    "Constraints",
    "Directions",
    "InputMetric",
    "choose_jacobian",
    "differentiable_kernels",
    "input_metric",
]
