"""A pass that also keeps where it stood after half of its blocks: how far a total still moves with more data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from capalloc._linalg.fold import Fold
from capalloc._linalg.leverage import ParamUnits, rank_of_factor


@dataclass(frozen=True)
class Halved:
    """The state of a pass, and what it was after the first half of the examples."""

    left: int  # blocks up to there
    examples: int  # of the first half
    half: Any  # None before that, and where a part of the data has no half
    whole: Any


@dataclass(frozen=True)
class Halves(Fold[Halved]):
    """A pass whose state half way is kept; a source tells of its `first_half`, blocks and examples, or has none."""

    work: Fold[Any]

    def begin(self, source: Any) -> Halved:
        blocks, examples = getattr(source, "first_half", (0, 0))
        return Halved(blocks, examples, None, self.work.begin(source))

    def advance(self, state: Halved, block: Any) -> Halved:
        """Go one block on; half way keep a copy."""
        whole = self.work.advance(state.whole, block)
        if state.left != 1:
            return replace(state, left=max(state.left - 1, 0), whole=whole)
        whole = self.work.finish(whole)
        return Halved(0, state.examples, self.work.copied(whole), whole)

    def merge(self, a: Halved, b: Halved) -> Halved:
        """Merge the wholes and the halves; the first halves of two parts are half of both."""
        known = a.half is not None and b.half is not None
        half = self.work.merge(a.half, b.half) if known else None
        return Halved(0, a.examples + b.examples, half, self.work.merge(a.whole, b.whole))

    def finish(self, state: Halved) -> Halved:
        return replace(state, whole=self.work.finish(state.whole))

    def enough(self, state: Halved) -> bool:
        return self.work.enough(state.whole)


def effective_rank(values: Tensor, ridge: float, size: int, eps: float) -> float:
    """sum s / (s + ridge) over eigenvalues s = `values` of a Gram matrix; those up to size * eps * largest are zero."""
    kept = values[values > size * eps * values.max()] if len(values) else values
    return float((kept / (kept + ridge)).sum())


def half_total(half: Any, ridge: float, scale: float, size: int, units: ParamUnits | None = None) -> float:
    """Total capacity of the half: from its triangular factor, or from its Gram matrix, times `scale`.

    Args:
        half: the lower triangle of a Gram matrix, or a tuple of the factor.
        ridge: non-negative.
        scale: all examples over those of the half, as rows are scaled for all.
        size: the larger side of the half's matrix.
        units: of the parameters, as in `inverse_root`.

    """
    if isinstance(half, tuple) and not ridge:
        return float(rank_of_factor(half[0], size, units))
    if isinstance(half, tuple):
        singular = torch.linalg.svdvals(half[0])
        values, eps = singular.square(), (size * torch.finfo(singular.dtype).eps) ** 2 / size
    else:
        values, eps = torch.linalg.eigvalsh(half), torch.finfo(half.dtype).eps
    return effective_rank(scale * values, ridge, size, eps)
