"""The theoretical receptive field: how the field of an output position lies, and moves with it.

Index convention: an output is (examples, *output axes), an input (examples, *input axes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from capalloc._energy.program import Program
from capalloc._energy.support import support
from capalloc._model.places import Places
from capalloc.results.receptive_field import Index, shown

Position = int | Sequence[int | None] | None
Interval = tuple[int, int]  # start, stop


def resolve(wanted: Position, shape: tuple[int, ...], tokens: int | None = None) -> Index:
    """Complete a position to one entry for each output axis: the central one by default, all of an axis of classes.

    Of outputs (examples, tokens, features) on as many tokens, or steps, one index is a token's.
    """
    by_token = tokens is not None and len(shape) > 1 and shape[0] == tokens
    if by_token and (wanted is None or isinstance(wanted, int) or len(wanted) == 1):
        token = shape[0] // 2 if wanted is None else wanted if isinstance(wanted, int) else wanted[0]
        wanted = (token, *[None] * (len(shape) - 1))
    if wanted is None:
        return (None, *(n // 2 for n in shape[1:]))[: len(shape)]
    given: tuple[int | None, ...] = (wanted,) if isinstance(wanted, int) else tuple(wanted)
    if len(given) == len(shape) - 1:
        given = (None, *given)
    if len(given) != len(shape):
        raise ValueError(
            f"output_position has {len(given)} entries, but the outputs are (examples, {', '.join(map(str, shape))}): "
            f"give {len(shape) - 1}, after the channel axis, or {len(shape)} with None for a whole axis"
        )
    for axis, (k, n) in enumerate(zip(given, shape, strict=True)):
        if k is not None and not -n <= k < n:
            sizes = " x ".join(map(str, shape))
            raise ValueError(f"output_position {k} is outside axis {axis + 1} of the outputs ({sizes}), of length {n}")
    return tuple(k if k is None else k % n for k, n in zip(given, shape, strict=True))


@dataclass(frozen=True)
class Field:
    """The theoretical field, and those of the positions one up and one down on every output axis."""

    seen: Tensor
    interval: tuple[Interval, ...]  # by input axis
    neighbours: tuple[tuple[int, tuple[Interval, ...]], ...]  # (direction, by input axis)
    aligned: tuple[int, ...]  # input axes that the chosen output axes stand for, if none is seen to move

    @property
    def moving(self) -> tuple[int, ...]:
        """Axes of the input that the field moves along with the position."""
        found = tuple(k for k in range(self.seen.ndim) if any(any(edges) for _, *edges in self.moves(k)))
        return found if len(found) >= len(self.aligned) else tuple(sorted({*found, *self.aligned}))

    def moves(self, axis: int) -> list[tuple[int, int, int]]:
        """Give (direction, how far the lower edge moves per position, the same of the upper edge)."""
        a, b = self.interval[axis]
        return [(up, up * (n[axis][0] - a), up * (n[axis][1] - b)) for up, n in self.neighbours]


def theoretical(
    programs: Iterable[Program], shape: Sequence[int], position: Index, places: Places
) -> tuple[Tensor, dict[str, Field]]:
    """Find where paths to a position start, and by input the field, exact whatever the weights, and its neighbours'.

    What examples choose (an entry, an order) is open where any of the `programs` opens it.
    """
    around = [
        (up, (*position[:axis], k + up, *position[axis + 1 :]))
        for axis, (k, n) in enumerate(zip(position, shape, strict=True))
        for up in (1, -1)
        if k is not None and 0 <= k + up < n
    ]
    starts, *beside = _supports(programs, [position, *(other for _, other in around)])
    seen, others = places.holds(starts), map(places.holds, beside)
    if not bool(seen.any()):
        raise ValueError(
            f"no path leads from the inputs to {shown(position)}: its field is empty, or what the examples choose "
            "closes it (an order)"
        )
    neighbours = [(up, other) for (up, _), other in zip(around, others, strict=True) if bool(other.any())]
    fields = {}
    for name, own in places.split(seen).items():
        moved = tuple((up, _intervals(places.split(other)[name])) for up, other in neighbours)
        aligned = _aligned(position, shape, own.ndim) if places.tokens is None else (0,)
        fields[name] = Field(own, _intervals(own), moved, aligned)
    return starts, fields


def _supports(programs: Iterable[Program], positions: Sequence[Index]) -> list[Tensor]:
    """Find the inputs where paths to each position start, in any of the programs."""
    found: list[Tensor] = []
    for program in programs:
        own = [support(program, position) for position in positions]
        found = [a | b for a, b in zip(found, own, strict=True)] if found else own
    return found


def _intervals(seen: Tensor) -> tuple[Interval, ...]:
    found = seen.nonzero()
    if not len(found):
        return ((0, 0),) * seen.ndim
    return tuple((int(a), int(b) + 1) for a, b in zip(found.amin(0), found.amax(0), strict=True))


def _aligned(position: Index, shape: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Input axes that the chosen output axes stand for: the same ones, or the last; else all but the channels."""
    chosen = [k for k, index in enumerate(position) if index is not None]
    if not chosen:
        return tuple(range(1 if ndim > 1 else 0, ndim))
    if len(position) == ndim:
        return tuple(k for k in chosen if shape[k] > 1) or tuple(chosen)  # the only channel is no place
    return tuple(range(max(0, ndim - len(chosen)), ndim))
