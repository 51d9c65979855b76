"""Every rule, registered by importing its module."""

from capalloc.energy.rules import arithmetic, parametric, pointwise, pooling, shape
from capalloc.energy.rules.registry import RULES, Call, Traced, UnsupportedOperatorError, bind, invoke, rule

__all__ = [
    "RULES",
    "Call",
    "Traced",
    "UnsupportedOperatorError",
    "arithmetic",
    "bind",
    "invoke",
    "parametric",
    "pointwise",
    "pooling",
    "rule",
    "shape",
]
