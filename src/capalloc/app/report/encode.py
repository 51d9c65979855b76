"""Maps as text that a page carries: exact where that is small, else rounded, else averaged over blocks of pixels.

Index convention: a stack is (maps, *axes); blocks are of its last two axes, or of the last one.
"""

from __future__ import annotations

import base64
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stack = NDArray[np.float64]


@dataclass(frozen=True)
class Encoded:
    """A stack of maps in base64: value = low + step * number, one number for each block of pixels."""

    type: str  # "f4", or "u2", "u1" with a low and a step for each map
    shape: tuple[int, ...]  # (maps, *axes), in blocks
    block: tuple[int, ...]  # pixels of one block along each axis
    low: tuple[float, ...]
    step: tuple[float, ...]
    data: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def note(self) -> str:
        """The loss in words; empty where there is none."""
        levels = {"f4": 0, "u2": 65535, "u1": 255}[self.type]
        said = [f"rounded to 1/{levels} of the largest value"] if levels else []
        if max(self.block) > 1:
            said.append(f"means over blocks of {' × '.join(str(b) for b in self.block if b > 1)} inputs")
        return " and ".join(said)


def encode(stack: Stack, budget: int) -> Encoded:
    """The most faithful encoding of at most `budget` bytes before base64.

    Args:
        stack: maps (maps, *axes).
        budget: bytes, at least one for each map and leading place.

    """
    entries = stack.size
    if 4 * entries <= budget:
        return Encoded("f4", stack.shape, (1,) * (stack.ndim - 1), (), (), _base64(stack.astype("<f4")))
    small, block = _fit(stack, budget)
    top = 65535 if 2 * small.size <= budget else 255
    flat = small.reshape(len(small), -1)
    low = flat.min(1)
    step = (flat.max(1) - low) / top
    counts = np.rint((flat - low[:, None]) / np.where(step > 0, step, 1)[:, None])
    kind = "u2" if top > 255 else "u1"
    return Encoded(kind, small.shape, block, _floats(low), _floats(step), _base64(counts.astype(f"<{kind}")))


def _fit(stack: Stack, budget: int) -> tuple[Stack, tuple[int, ...]]:
    """Averaged over the smallest blocks that leave one byte for each number."""
    axes = [stack.ndim - 1] if stack.ndim == 2 else [stack.ndim - 2, stack.ndim - 1]
    for side in itertools.count(1):
        blocks = [min(side, stack.shape[axis]) for axis in axes]
        left = [math.ceil(stack.shape[axis] / b) for axis, b in zip(axes, blocks, strict=True)]
        if math.prod(stack.shape[: axes[0]]) * math.prod(left) <= budget or side >= max(stack.shape[a] for a in axes):
            break
    whole = [1] * (stack.ndim - 1)
    for axis, block in zip(axes, blocks, strict=True):
        stack = _means(stack, axis, block)
        whole[axis - 1] = block
    return stack, tuple(whole)


def _means(stack: Stack, axis: int, block: int) -> Stack:
    """Means over blocks along one axis; the last block may be shorter."""
    starts = np.arange(0, stack.shape[axis], block)
    counts = np.diff([*starts, stack.shape[axis]])
    shape = [1] * stack.ndim
    shape[axis] = len(counts)
    sums: Stack = np.add.reduceat(stack, starts, axis=axis)
    return sums / counts.reshape(shape)


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _floats(values: Stack) -> tuple[float, ...]:
    return tuple(float(f"{v:.7g}") for v in values)
