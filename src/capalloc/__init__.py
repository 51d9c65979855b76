"""Where a neural network spends its modelling capacity (Donier, 2019).

How many effective, independent parameters a model devotes to every input, region and layer.
"""

# the result of every method, and how two of them compare
from capalloc.allocation import Allocation
from capalloc.comparison import correlation, total_variation

# rules of new operators for `propagate`
from capalloc.energy.rules import Call, UnsupportedOperatorError, rule

# the methods
from capalloc.linear import linear_capacity
from capalloc.measure import CapacityWarning, measure
from capalloc.propagate import Walk, propagate, walk

__all__ = [
    "Allocation",
    "Call",
    "CapacityWarning",
    "UnsupportedOperatorError",
    "Walk",
    "correlation",
    "linear_capacity",
    "measure",
    "propagate",
    "rule",
    "total_variation",
    "walk",
]
