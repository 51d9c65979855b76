"""Every rule, registered by importing its module."""

from capalloc.energy.rules import arithmetic, attention, norms, parametric, pointwise, pooling, products, shape
from capalloc.energy.rules.generic import linear_operator
from capalloc.energy.rules.registry import (
    DECOUPLING,
    RULES,
    Call,
    Traced,
    UnsupportedOperatorError,
    bind,
    invoke,
    rule,
    value_of,
)

__all__ = [
    "DECOUPLING",
    "RULES",
    "Call",
    "Traced",
    "UnsupportedOperatorError",
    "arithmetic",
    "attention",
    "bind",
    "invoke",
    "linear_operator",
    "norms",
    "parametric",
    "pointwise",
    "pooling",
    "products",
    "rule",
    "shape",
    "value_of",
]
