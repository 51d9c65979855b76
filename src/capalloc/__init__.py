"""Where a neural network spends its modelling capacity (Donier, 2019).

How many effective, independent parameters a model devotes to every input, region and layer.
"""

from capalloc.allocation import Allocation
from capalloc.energy.rules import Call, UnsupportedOperatorError, rule
from capalloc.propagate import Walk, propagate, walk

__all__ = [
    "Allocation",
    "Call",
    "UnsupportedOperatorError",
    "Walk",
    "propagate",
    "rule",
    "walk",
]
