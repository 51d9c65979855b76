"""Every rule, registered by importing its module."""

from capalloc._energy.rules import attention_weights as attention
from capalloc._energy.rules import contractions as products
from capalloc._energy.rules import movement as shape
from capalloc._energy.rules import norms, parametric, pointwise, pooling
from capalloc._energy.rules import sums as arithmetic
from capalloc._energy.rules.linear_rule import linear_operator
from capalloc._energy.rules.registry import (
    DECOUPLING,
    RULES,
    Call,
    Traced,
    UnsupportedOperatorError,
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
