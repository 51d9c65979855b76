"""Designs by their target: kernels, dilations, strides, depth and width that come nearest to a wanted field."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import checked
from capalloc.app.design.one_channel import extent
from capalloc.app.design.reading import Reading, read
from capalloc.app.design.stack import LIMITS, NARROWEST_NORMED, SIZES, Design

#: What is tried.
KERNELS: Final = (3, 5, 7, 9, 11)
DILATIONS: Final = (1, 2, 3, 4, 6, 8)
CYCLES: Final = (1, 2, 3, 4, 5, 6)
STRIDES: Final = ((1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2))  # stride, and number of layers with it
#: Designs that are read, of those nearest to the field, the fewest layers first.
MOST_READ = 80


@checked
def search(
    field: int,
    *,
    flat: int | None = None,
    max_params: int = 100_000,
    like: Design | None = None,
    most: int = 5,
    between: Callable[[], Any] = lambda: None,
) -> list[Reading]:
    """Find the stacks whose theoretical field is nearest to a wanted one, and whose effective field is the flattest.

    The theoretical field is $1 + sum_l (kernel - 1) dilation_l x strides below$, so that all stacks of the right size
    are known at once. They are ordered by the total variation between the walk's law along an axis and an even one over
    `flat` pixels in the middle, $1/2 sum |p_i - u_i|$ (docs/theory.md, section 4), from the law of one axis; without
    `flat` by the parameters that count, the most first. Width is the largest that `max_params` allow.

    Args:
        field: size of the theoretical field along an axis, in pixels.
        flat: pixels in the middle over which the effective field should be even, at most `field`.
        max_params: most weights of the whole network.
        like: what is not searched for: residual law, multiplier, activation, axes and size of the input. Its free
            widths, `stages`, are left out.
        most: how many are returned.
        between: called before every layer of each sweep; what it raises ends the search.

    Returns:
        Readings, the nearest first; `reading.design` has the settings.

    Raises:
        ValueError: a number out of its range, or no stack of so few parameters.

    """
    wanted = like or Design()
    longest = SIZES[1][1]
    if not 3 <= field <= longest:
        raise ValueError(f"field must lie from 3 to {longest}, got {field}")
    if flat is not None and not 1 <= flat <= field:
        raise ValueError(f"flat must lie from 1 to the field, {field}, got {flat}")
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    near = sorted(set(_stacks(field, wanted)), key=lambda found: (found[0], found[1].depth, found[1].kernel))
    fitting = ((away, _widened(design, max_params)) for away, design in near)
    kept = list(itertools.islice(((away, design) for away, design in fitting if design is not None), MOST_READ))
    if not kept:
        raise ValueError(f"max_params = {max_params} are too few for a field of {field} pixels")
    scored = sorted(((away, _score(design, field, flat, between), k) for k, (away, design) in enumerate(kept)))
    return [read(kept[k][1], between) for *_, k in scored[:most]]


def unevenness(law: Array, flat: int) -> float:
    """Total variation between a law along an axis and an even one over so many pixels around its middle."""
    places = np.arange(len(law))
    start = round(float(law @ places) / float(law.sum()) - (flat - 1) / 2)
    even = ((places >= start) & (places < start + flat)) / flat
    return float(abs(law / law.sum() - even).sum() / 2)


def _stacks(field: int, wanted: Design) -> Iterator[tuple[int, Design]]:
    """Stacks by how far their field is from the wanted one: for each choice the depth that comes nearest."""
    for kernel, dilation, cycle, (stride, strided) in itertools.product(KERNELS, DILATIONS, CYCLES, STRIDES):
        best: tuple[int, Design] | None = None
        upsampled = min(wanted.upsampled, strided) if stride > 1 else 0
        fewest = max(strided * (2 if upsampled else 1), cycle)
        for depth in range(fewest, int(LIMITS["depth"][1]) + 1):
            more: dict[str, Any] = {
                "kernel": kernel,
                "dilation": dilation,
                "cycle": cycle,
                "stride": stride,
                "strided": strided,
                "upsampled": upsampled,
            }
            design = replace(wanted, depth=depth, width=least_width(wanted), stages=(), **more)
            away = abs((found := extent(design)) - field)
            if best is None or away < best[0]:
                best = (away, design)
            if found >= field:
                break
        if best is not None:
            yield best


def _widened(design: Design, max_params: int) -> Design | None:
    """The widest of at most so many parameters; None where even one channel has more."""
    widths = range(least_width(design), int(LIMITS["width"][1]) + 1)
    fitting = bisect.bisect_right(widths, max_params, key=lambda width: replace(design, width=width).num_params)
    return replace(design, width=widths[fitting - 1]) if fitting else None


def least_width(design: Design) -> int:
    """The fewest channels that a design of this norm can have."""
    return NARROWEST_NORMED if design.norm == "layer" else 1


def _score(design: Design, field: int, flat: int | None, between: Callable[[], Any]) -> float:
    """The less the better; evenness is read on one axis, which is long enough for the field."""
    if flat is None:
        return -float(read(design, between).total)
    found = read(replace(design, ndim=1, size=min(max(2 * field, SIZES[1][0]), SIZES[1][1])), between)
    return unevenness(found.profile(found.law), flat)
