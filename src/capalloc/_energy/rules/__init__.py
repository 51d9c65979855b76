"""Every rule of the library, registered by importing its module."""

from capalloc._energy.rules import (
    additions,
    any_linear_operator,
    attention_and_softmax,
    average_pooling,
    data_movement,
    dense_and_convolution,
    linearised,
    matrix_products,
    max_pooling,
    normalisations,
    pointwise_activations,
)
from capalloc._energy.rules.registration import Call, Traced, UnsupportedOperatorError, read_gates, rule, value_of

__all__ = [
    "Call",
    "Traced",
    "UnsupportedOperatorError",
    "additions",
    "any_linear_operator",
    "attention_and_softmax",
    "average_pooling",
    "data_movement",
    "dense_and_convolution",
    "linearised",
    "matrix_products",
    "max_pooling",
    "normalisations",
    "pointwise_activations",
    "read_gates",
    "rule",
    "value_of",
]
