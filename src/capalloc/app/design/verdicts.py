"""The numbers of a reading in words, each with a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from capalloc.app.design.reading import Reading
from capalloc.results.shattering import SHATTERED

Tone = Literal["good", "mind", ""]
#: Operations of a ResNet-18 on an image of 224 x 224, to compare with.
RESNET18_FLOPS: Final = 3.6e9
#: Deviation over that of an even field of the same size, from which a field counts as filled, or hardly.
FIELD_FILLED, FIELD_EMPTY = 0.6, 0.3
#: Share of parameters that count, below which one looks for what takes them away.
MOST_COUNT: Final = 0.8
PHASE_VERDICTS: Final[dict[str, tuple[str, Tone]]] = {
    "balanced": ("branches and skips both carry: it starts well", "good"),
    "strong": ("branches drown the skips; gradients still agree", ""),
    "degenerate": ("nearly all paths cross gates: scale branches down", "mind"),
    "trivial": ("the blocks do next to nothing at first: scale branches up", "mind"),
    "plain": ("nothing keeps gradients alike but little depth", ""),
}


@dataclass(frozen=True)
class Judged:
    """A number, what it says, and whether that is good or to be minded."""

    name: str
    value: str
    verdict: str
    tone: Tone = ""


def judged(reading: Reading) -> list[Judged]:
    """The rows of the table."""
    exact = Judged(
        "These numbers", "exact: parameters, theoretical field, costs", "the others: a guide, for wide networks"
    )
    return [exact, _parameters(reading), _capacity(reading), *_fields(reading), *_depth(reading), *_costs(reading)]


def _parameters(reading: Reading) -> Judged:
    return Judged("Parameters", f"{reading.num_params:,}", f"{_bytes(4 * reading.num_params)} as float32")


def _capacity(reading: Reading) -> Judged:
    share = reading.total / reading.num_params
    constant = f", {reading.constant:,} of them for the constant" if reading.constant else ""
    verdict = f"{share:.0%} of the parameters count{constant}"
    return Judged("Predicted capacity", f"{reading.total:,}", verdict, "good" if share >= MOST_COUNT else "mind")


def _fields(reading: Reading) -> list[Judged]:
    design = reading.design
    pixels = "positions" if design.ndim == 1 else "pixels"
    start, stop = reading.field
    inside = f", {stop - start} of them inside the input" if reading.cut else ""
    whole = stop - start == design.size
    seen = "sees the whole input" if whole else f"sees {(stop - start) / design.size:.0%} of an axis"
    even = math.sqrt(((stop - start) ** 2 - 1) / 12)
    filled = reading.deviation / even if even else 1.0
    words = "fills its field" if filled >= FIELD_FILLED else "leans to the middle"
    words = words if filled >= FIELD_EMPTY else "hardly leaves the middle"
    areas = [int(region.sum()) for region in reading.regions]
    return [
        Judged("Theoretical field", f"{reading.extent} on an axis{inside}", seen, "good" if whole else ""),
        Judged(
            "Effective field",
            f"standard deviation {reading.deviation:.3g}",
            f"{words}: an even one has {even:.3g}",
            "good" if filled >= FIELD_FILLED else "mind" if filled < FIELD_EMPTY else "",
        ),
        Judged("68 % / 95 % of it", f"in {areas[0]:,} / {areas[1]:,} {pixels}", f"of {design.size**design.ndim:,}"),
    ]


def _depth(reading: Reading) -> list[Judged]:
    plain = reading.phase == "plain"
    change = "no skip connections" if plain else f"{reading.T:.3g}, {reading.phase}"
    alike = reading.correlation >= SHATTERED
    normed = reading.design.norm != "none"
    rule = "shattered; norms may carry it" if normed else "shattered: wide networks of this kind do not train"
    index = "hardly a path keeps its gates" if reading.index > -math.log(SHATTERED) else "some paths keep their gates"
    return [
        Judged("Total change T", change, *PHASE_VERDICTS[reading.phase]),
        Judged("Shattering index", f"{reading.index:.3g} decouplings on a path", index),
        Judged(
            "Gradient correlation",
            f"{reading.correlation:.3g} at independent inputs",
            "alike enough to train" if alike else rule,
            "good" if alike else "" if normed else "mind",
        ),
    ]


def _costs(reading: Reading) -> list[Judged]:
    share = reading.flops / RESNET18_FLOPS
    fitting = int(1e9 // reading.memory)
    return [
        Judged(
            "Operations", f"{_count(reading.flops)} for an example", f"{share:.2g} of a ResNet-18 on 224 × 224 pixels"
        ),
        Judged(
            "Memory of signals",
            f"{_bytes(reading.memory)} for an example",
            f"{fitting:,} examples in 1 GB" if fitting else "not one example in 1 GB",
            "" if fitting else "mind",
        ),
    ]


def _count(number: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:g}"


def _bytes(number: float) -> str:
    return f"{_count(number)}B" if number >= 1e3 else f"{number:g} B"
