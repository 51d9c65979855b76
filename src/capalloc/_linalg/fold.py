"""Passes over blocks of data as plain values: what is begun, advanced by a block, merged and finished.

A pass knows nothing of files and processes (`_runtime.steps` runs it on many and resumes it); `over` runs it here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from torch import Tensor

S = TypeVar("S")
#: Numbers of vectors that are added at a time.
PIECE = 2**17


class Fold(ABC, Generic[S]):
    """One pass; the state may be changed in place."""

    @abstractmethod
    def begin(self, source: Any) -> S:
        """Return the state before the first block of a source."""

    @abstractmethod
    def advance(self, state: S, block: Any) -> S:
        """Return the state after one more block."""

    @abstractmethod
    def merge(self, a: S, b: S) -> S:
        """Return the finished state of two parts of the data, one after the other."""

    def finish(self, state: S) -> S:
        """Return the state after the last block, made small."""
        return state

    def copied(self, state: S) -> S:
        """Return what is to be known later of a finished state that goes on, as it may change in place."""
        return copy.deepcopy(state)

    def enough(self, state: S) -> bool:
        """Return True where more blocks would change nothing."""
        return False

    def over(self, blocks: Iterable[Any]) -> S:
        """Return the finished state of these blocks."""
        state = self.begin(blocks)
        for block in blocks:
            state = self.advance(state, block)
            if self.enough(state):
                break
        return self.finish(state)


class Total(Fold[tuple[Tensor, ...]]):
    """One pass whose states are tensors that add up."""

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))


def add_to(total: Tensor, vectors: Tensor) -> None:
    """Add vectors, (k, n), to a total in another precision piece by piece: there is no copy of them in its own."""
    for into, piece in zip(total.split(PIECE, 1), vectors.split(PIECE, 1), strict=True):
        into += piece
