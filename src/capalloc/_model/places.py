"""The places that results have a capacity for: every entry of the inputs, or every token, with the axes they lie on.

Index convention: slots are the entries of an example, then the constant input where it has one; places are fewer where
the features of a token count together, and where masks, which are held, count for none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: The group of an entry that belongs to no place.
HELD = -1


def axis_names(ndim: int) -> tuple[str, ...]:
    """Names of an input's own axes, by their number."""
    known = {
        1: ("input",),
        2: ("row", "column"),
        3: ("channel", "row", "column"),
        4: ("channel", "depth", "row", "column"),
    }
    return known.get(ndim, tuple(f"axis_{k}" for k in range(ndim)))


@dataclass(frozen=True)
class NamedInput:
    """One input: its name, and the axes that it is shown over."""

    name: str
    shape: tuple[int, ...]
    is_tokens: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        return ("token",) if self.is_tokens and len(self.shape) == 1 else axis_names(len(self.shape))

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Places:
    """Shape and axes of what results hold, and for several inputs which entry counts where."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    inputs: tuple[NamedInput, ...] = ()
    groups: Tensor | None = None  # the place of every entry
    of_vectors: bool = False  # whether the one input is a sequence of vectors, along its first axis

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Places:
        """Every entry of one tensor."""
        return cls(shape, axis_names(len(shape)))

    @classmethod
    def of_several(cls, inputs: tuple[NamedInput, ...], groups: Tensor) -> Places:
        """The places of inputs, one after the other; over its own axes where there is but one."""
        if len(inputs) == 1:
            return cls(inputs[0].shape, inputs[0].axes, inputs, groups)
        return cls((sum(one.size for one in inputs),), ("input",), inputs, groups)

    @property
    def number(self) -> int:
        return math.prod(self.shape)

    @property
    def signals(self) -> Tensor:
        """Tell which entries of an example are signals, and not held: boolean, of its shape."""
        return torch.ones(self.shape, dtype=torch.bool) if self.groups is None else self.groups != HELD

    def pooled(self, slots: Tensor) -> Tensor:
        """Sum along the last axis what belongs to one place; the constant input stays the last: (..., slots)."""
        if self.groups is None:
            return slots
        groups = self.groups.to(slots.device)
        constant = slots.shape[-1] - len(groups)
        own = torch.cat([groups, self.number + torch.arange(constant, device=slots.device)])
        kept = own != HELD
        empty = slots.new_zeros(*slots.shape[:-1], self.number + constant)
        return empty.index_add(-1, own[kept], slots[..., kept])

    @property
    def tokens(self) -> int | None:
        """Number of tokens, or of steps, where the one input is a sequence of them along its first axis."""
        ids = len(self.inputs) == 1 and self.inputs[0].axes == ("token",)
        return self.shape[0] if ids or self.of_vectors else None

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Give each input's part of values over the results' axes, over its own; a single tensor's without a name."""
        if len(self.inputs) < 2:
            return {"": values}
        parts = values.split([one.size for one in self.inputs])
        return {one.name: part.reshape(one.shape) for one, part in zip(self.inputs, parts, strict=True)}

    def axes_of(self, name: str) -> tuple[str, ...]:
        """Names of an input's axes, after its own name where it has one."""
        return next((tuple(f"{name} {axis}" for axis in i.axes) for i in self.inputs if i.name == name), self.dims)

    def holds(self, seen: Tensor) -> Tensor:
        """Tell which places hold an entry for which something is so, over the results' axes."""
        flat = seen.reshape(-1)
        return seen if self.groups is None else self.pooled(flat.double()).reshape(self.shape) > 0

    def label(self, at: Sequence[int]) -> str:
        """Name a place of a result for people."""
        if len(self.inputs) < 2:
            return str(tuple(at) if len(at) > 1 else at[0])
        coords = self.coords
        return f"{coords['input_name'][1][at[0]]} at {coords['place'][1][at[0]]}"

    @property
    def coords(self) -> dict[str, Any]:
        """Coordinates that tell several inputs apart: the name of each, and the place within it."""
        if len(self.inputs) < 2:
            return {}
        names = [one.name for one in self.inputs for _ in range(one.size)]
        places = [", ".join(map(str, at)) for one in self.inputs for at in itertools.product(*map(range, one.shape))]
        return {"input_name": ("input", names), "place": ("input", places)}

    @property
    def attrs(self) -> dict[str, Any]:
        """The settings by which a result tells several inputs apart."""
        told = [{"name": one.name, "axes": list(one.axes), "shape": list(one.shape)} for one in self.inputs]
        return {"inputs": told} if told else {}
