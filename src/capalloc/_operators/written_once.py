"""Writes of several entries to one place, as reads of the one that wins: autograd credits those overwritten too.

Which one wins is asked of torch, by writing numbers of entries instead; the result is gathered by these numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Written = tuple[Any, bool]  # the result, and whether an entry was overwritten
Own = Callable[..., Any]
#: What a key may hold for a tensor of indices.
_LISTS = (list, range, np.ndarray)


def gathered(x: Tensor, values: Tensor, write: Callable[[Tensor, Tensor], Tensor]) -> Written:
    """Give x with values written to it, and whether several went to one place.

    Args:
        x: what is written to.
        values: entries to write.
        write: puts numbers, shaped as the values, into a tensor like x.

    """
    numbers = torch.arange(values.numel(), device=x.device).reshape(values.shape)
    winner = write(torch.full(x.shape, -1, dtype=torch.long, device=x.device), numbers)
    found = torch.where(winner >= 0, values.reshape(-1)[winner.clamp(min=0)], x)
    try:
        return found, int((winner >= 0).sum()) < values.numel()
    except RuntimeError:  # inside a transform, which has no numbers
        return found, False


def scatter(own: Own, x: Tensor, dim: int, index: Tensor, src: Any = None, **keywords: Any) -> Written:
    """Write along an axis, as `Tensor.scatter`."""
    if not isinstance(src, Tensor) or keywords:
        return own(x, dim, index, *([] if src is None else [src]), **keywords), False
    values = src[tuple(slice(n) for n in index.shape)]
    return gathered(x, values, lambda into, numbers: into.scatter(dim, index, numbers))


def index_put(own: Own, x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Written:
    """Write to listed places, as `Tensor.index_put`."""
    if accumulate or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        return own(x, indices, values, accumulate), False
    return gathered(x, values.expand(x[tuple(indices)].shape), lambda into, numbers: into.index_put(indices, numbers))


def index_copy(own: Own, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Written:
    """Write to listed places of an axis, as `Tensor.index_copy`."""
    return gathered(x, source, lambda into, numbers: into.index_copy(dim, index, numbers))


def put(own: Own, x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Written:
    """Write to listed places of all entries in a row, as `Tensor.put`."""
    if accumulate:
        return own(x, index, source, True), False
    return gathered(x, source.reshape(index.shape), lambda into, numbers: into.put(index, numbers))


def assign(own: Own, x: Tensor, key: Any, value: Any) -> Written:
    """Write to what a key with indices picks, as `x[key] = value`."""
    parts = [torch.as_tensor(k) if isinstance(k, _LISTS) else k for k in (key if isinstance(key, tuple) else (key,))]
    if not isinstance(value, Tensor) or not any(
        isinstance(k, Tensor) and k.dtype == torch.long and k.ndim for k in parts
    ):
        own(x, key, value)
        return x, False

    def write(into: Tensor, numbers: Tensor) -> Tensor:
        own(into, key, numbers)
        return into

    shape = x[key].shape
    value = value.to(x.device).reshape(value.shape[max(value.ndim - len(shape), 0) :])  # as torch takes it
    return gathered(x, value.expand(shape), write)


def unpool(own: Own, x: Tensor, indices: Tensor, *args: Any, **keywords: Any) -> Written:
    """Write to where maxima were, as `max_unpool`."""
    numbers = torch.arange(1, x.numel() + 1, dtype=torch.float64, device=x.device).reshape(x.shape)
    winner = own(numbers, indices, *args, **keywords).long() - 1
    return gathered(x.new_zeros(winner.shape), x, lambda into, numbers: winner)


#: Calls that may write to one place several times, what writes once, and whether they write in place.
WRITES: dict[Any, tuple[Callable[..., Written], bool]] = {
    **dict.fromkeys([torch.index_copy, Tensor.index_copy], (index_copy, False)),
    **dict.fromkeys([torch.scatter, Tensor.scatter], (scatter, False)),
    **dict.fromkeys([torch.index_put, Tensor.index_put], (index_put, False)),
    Tensor.index_copy_: (index_copy, True),
    Tensor.scatter_: (scatter, True),
    **dict.fromkeys([torch.index_put_, Tensor.index_put_], (index_put, True)),
    **dict.fromkeys([torch.put, Tensor.put], (put, False)),
    Tensor.put_: (put, True),
    Tensor.__setitem__: (assign, True),
    **dict.fromkeys([functional.max_unpool1d, functional.max_unpool2d, functional.max_unpool3d], (unpool, False)),
}
