"""Examples as they are given: one tensor, or batches with labels that are dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from capalloc._model.nested_arguments import check_nesting
from capalloc._runtime.memory import budget_of


def kept_inputs(inputs: Any) -> Any:
    """Refuse what is no examples, and keep copies of batches that a later pass might not serve again.

    Methods take several passes. Only tensors, lists and tuples are known to hold the same examples in each: loaders
    shuffle and draw augmentations anew, generators end, and readers fill one buffer for all batches.

    Raises:
        TypeError: no tensors, nor batches of some.
        MemoryError: batches that do not fit in memory, or have no end.

    """
    if isinstance(inputs, Tensor):
        return inputs
    for part in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
        _refuse_packed(part)
    if not isinstance(inputs, Iterable):
        raise TypeError(
            f"inputs must be a tensor or an iterable of batches, got {type(inputs).__name__}; a dataset is one as "
            "torch.utils.data.DataLoader(dataset, batch_size=64), and an argument that holds "
            "tensors goes by its name, in a dict"
        )
    return inputs if isinstance(inputs, (list, tuple, str, bytes, Mapping)) else _copied(inputs)


def _copied(batches: Iterable[Any]) -> list[Any]:
    """Keep every batch of one pass."""
    kept: list[Any] = []
    room = budget_of(torch.device("cpu"))
    for batch in batches:
        check_nesting(batch, "a batch of inputs")
        taken = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(batch) if isinstance(t, Tensor))
        what = f"batch {len(kept) + 1} of inputs, which are kept for several passes,"
        room = room.set_aside(taken, what, "pass fewer, such as itertools.islice(inputs, 100)")
        kept.append(pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), batch))
    return kept


def iterate_batches(inputs: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """Give the input tensors of `inputs`, labels dropped."""
    if isinstance(inputs, Tensor):
        yield _one_tensor(inputs)
        return
    if isinstance(inputs, Mapping):
        raise TypeError(f"inputs are a {_described(inputs)}")
    _refuse_pair(inputs)
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs must be a tensor or an iterable of batches, got {type(inputs).__name__}")
    for batch in inputs:
        _refuse_packed(batch)
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(x, Mapping):
            raise TypeError(f"inputs: each batch must be a tensor or an (x, y) pair, got a {_described(x)}")
        if not isinstance(x, Tensor):
            raise TypeError(
                f"inputs: each batch must be a tensor or an (x, y) pair, got {type(batch).__name__}; make tensors of "
                "numbers by torch.as_tensor(inputs)"
            )
        yield _one_tensor(x)


def _one_tensor(batch: Tensor) -> Tensor:
    """Refuse examples of several lengths."""
    if batch.is_nested:
        raise TypeError("inputs are a nested tensor, and examples have one shape: pad them by to_padded_tensor(0.0)")
    return batch


def _refuse_packed(batch: Any) -> None:
    """Refuse rows that are moments of many examples."""
    if isinstance(batch, PackedSequence):
        raise TypeError(
            "inputs are a packed sequence, whose rows are moments of many examples: pass them padded, "
            "pad_packed_sequence(inputs, batch_first=True)[0], to a module that packs them in forward, with lengths "
            "that do not depend on its input"
        )


def check_batch(batch: Tensor, like: Tensor) -> None:
    """Refuse a batch that no method can use."""
    if batch.layout is not torch.strided:
        raise TypeError(f"inputs are sparse ({batch.layout}), and every entry has a capacity: pass inputs.to_dense()")
    if batch.is_meta:
        raise ValueError("inputs are on the meta device, which holds shapes without values; pass real examples")
    if batch.ndim < 2:
        raise ValueError(
            f"inputs need a leading examples axis and at least one more, got shape {tuple(batch.shape)}; "
            "for one example use inputs[None]"
        )
    if not batch.dtype.is_floating_point:
        raise TypeError(
            f"inputs are {batch.dtype}, but gradients need floating point; convert them, or for token ids "
            "pass the embedded inputs to a model that starts after the embedding"
        )
    if batch.shape[1:] != like.shape[1:]:
        raise ValueError(f"inputs: batches differ in shape: {tuple(batch.shape[1:])} after {tuple(like.shape[1:])}")
    if 0 in batch.shape[1:]:
        raise ValueError(f"inputs have an axis of length 0: shape {tuple(batch.shape)}")
    if not torch.isfinite(batch).all():
        raise ValueError("inputs hold NaN or inf; drop or repair those examples")


def _refuse_pair(inputs: Iterable[Any]) -> None:
    """Refuse one (x, y) batch in the place of a list of batches: its targets would pass for examples."""
    if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
        return
    first, second = inputs
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor) and first.ndim > 0 < second.ndim
    if tensors and len(first) == len(second):
        raise ValueError(
            f"inputs are two tensors of {len(first)} each: for one (x, y) batch pass x alone, inputs[0]; "
            "for two batches of examples torch.cat(inputs); two inputs are for a model whose forward requires two"
        )


def _described(batch: Mapping[Any, Any]) -> str:
    keys = ", ".join(map(repr, batch)) or "nothing"
    return (
        f"{type(batch).__name__} of {keys}; capacity is allocated over one tensor: pass that one, such as "
        "inputs['pixel_values'], and a model that takes it as its only argument"
    )
