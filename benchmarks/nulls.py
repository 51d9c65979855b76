"""What a rule must beat: maps that know the architecture of a network and not its weights.

Two convolutional networks of one architecture have maps alike, whatever their weights: borders and pooling see to that.
So beside the agreement of a rule with the measured map stands that of two nulls, both by the same rule:

* the rule's map of *other seeds* of the same architecture, made and trained alike;
* the rule's map of the network itself with *equal magnitudes*: every weight at the root mean square of its tensor, with
  its own sign. The rule squares weights, so it sees their tensors' scales and the graph alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

import capalloc
from capalloc import Allocation

#: Seeds of the other networks.
OTHER_SEEDS = (1, 2, 3)
#: Header of the columns that `agreement` fills.
HEADER = (
    "total variation",
    "null: other seeds",
    "null: equal weights",
    "of inputs",
    "null: other seeds",
    "null: equal weights",
    "correlation",
    "null: other seeds",
    "null: equal weights",
)
#: What they are, for the line above a table.
ABOUT = (
    "`total variation` counts the constant input, `of inputs` and `correlation` leave it out. Beside each its nulls, "
    f"by the same rule: networks of seeds {', '.join(map(str, OTHER_SEEDS))}, least to most, and the network with "
    "every weight at the root mean square of its tensor, signs kept."
)


def equal_magnitudes(model: nn.Module) -> nn.Module:
    """A copy whose weights all have the root mean square of their tensor, with their own signs; zeros stay."""
    equal = copy.deepcopy(model)
    with torch.no_grad():
        for p in equal.parameters():
            p.copy_(p.sign() * p.square().mean().sqrt())
    return equal


def agreement(
    measured: Allocation,
    found: Allocation,
    model: nn.Module,
    others: Iterable[nn.Module],
    rule: Callable[[nn.Module], Allocation],
) -> tuple[str, ...]:
    """Columns of HEADER: distances and correlation of the rule's map to the measured one, and of its nulls.

    Args:
        measured: the measured map of `model`.
        found: the rule's map of it.
        model: the network.
        others: networks of other seeds.
        rule: makes a network's map, on the examples of both.

    """
    seeds = [rule(other) for other in others]
    equal = rule(equal_magnitudes(model))
    return tuple(
        text
        for measure in (whole, inner, correlated)
        for text in (
            spread([measure(measured, found)]),
            spread([measure(measured, other) for other in seeds]),
            spread([measure(measured, equal)]),
        )
    )


def whole(a: Allocation, b: Allocation) -> float:
    """Total variation with the constant input; NaN for a dead network, whose map is empty."""
    return _or_nan(capalloc.total_variation, a, b)


def inner(a: Allocation, b: Allocation) -> float:
    """Total variation among the inputs alone; NaN where they have no capacity."""
    return _or_nan(partial(capalloc.total_variation, constant=False), a, b)


def correlated(a: Allocation, b: Allocation) -> float:
    """Correlation among the inputs; NaN for a flat map, which has none."""
    return _or_nan(capalloc.correlation, a, b)


def spread(values: list[float]) -> str:
    """The least and the largest of those that there are."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    low, high = f"{min(known):.3f}", f"{max(known):.3f}"
    return low if low == high else f"{low} to {high}"


def _or_nan(measure: Callable[[Allocation, Allocation], float], a: Allocation, b: Allocation) -> float:
    try:
        return measure(a, b)
    except ValueError:
        return math.nan
