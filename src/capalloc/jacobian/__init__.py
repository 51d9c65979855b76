"""The mixed derivative d/dtheta grad_x f of a model: rows of constraints, example by example."""

from capalloc.jacobian.blocks import Constraints
from capalloc.jacobian.choose import Choice, choose_jacobian, differentiable_kernels
from capalloc.jacobian.directions import Directions, InputMetric, input_metric

__all__ = [
    "Choice",
    "Constraints",
    "Directions",
    "InputMetric",
    "choose_jacobian",
    "differentiable_kernels",
    "input_metric",
]
