"""Token ids become the vectors that an embedding makes of them: calls of embeddings are watched, then answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

#: Arguments of `F.embedding_bag`, in order.
BAG_ARGUMENTS = (
    *("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse"),
    *("per_sample_weights", "include_last_offset", "padding_idx"),
)
#: Methods that hand values of a tensor to Python.
VALUES_TO_PYTHON = frozenset({"item", "tolist", "__bool__", "__int__", "__index__", "__float__", "numpy"})


@dataclass
class Lookup:
    """One look-up of ids in a table, where and what it found."""

    ids: Tensor
    table: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)
    is_index: bool = False  # table[ids], which serves other ends too
    reduce: str = ""  # "sum" or "mean" of a bag, over its tokens

    def bagged(self, found: Tensor) -> Tensor:
        """Reduce vectors of a bag, (bags, tokens, features), over its tokens; leave others."""
        return found.sum(1) if self.reduce == "sum" else found.mean(1) if self.reduce == "mean" else found

    def __call__(self, ids: Tensor) -> Tensor:
        """Look other ids up."""
        found: Tensor = F.embedding(ids, self.table, **self.arguments)
        return found


class WatchLookups(TorchFunctionMode):
    """Notes the look-ups of a forward pass, which tensors are read in any other way, and what is made of integers."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.lookups: list[Lookup] = []
        self.read: set[int] = set()  # storages
        self.made = {storage(t) for t in given if not t.is_floating_point()}  # storages, and those of what they make

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = lookup(func, args, kwargs or {})
        returned = func(*args, **(kwargs or {}))
        if found is not None:
            self.lookups.append(found)
        elif _reads(func, returned, args):
            self.read.update(map(storage, _tensors((args, kwargs))))
        if found is None and self.made.intersection(map(storage, _tensors((args, kwargs)))):
            written = _tensors(args[:1]) if returned is None else []  # x[...] = ids
            self.made.update(storage(t) for t in (*_tensors(returned), *written) if not t.is_floating_point())
        return returned


@dataclass(frozen=True)
class Answer:
    """The answer to a look-up: vectors by their number, tokens first where the ids are asked for that way."""

    vectors: int
    tokens_first: bool = False

    def to(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Answer with vectors (examples, *tokens, features), over the axes of the ids."""
        found = vectors[self.vectors]
        found = found.transpose(0, 1) if self.tokens_first else found
        return found.reshape(*ids.shape, found.shape[-1]).clone()  # the model may write to it


class AnswerLookups(TorchFunctionMode):
    """Answers the look-ups of a forward pass in their order with vectors that are given, where they are token ids'."""

    def __init__(self, answers: Sequence[Answer | None], vectors: Sequence[Tensor]) -> None:
        super().__init__()
        self.answers = iter(answers)
        self.vectors = vectors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = lookup(func, args, kwargs or {})
        answer = None if asked is None else next(self.answers, None)
        if asked is None or answer is None:
            return func(*args, **(kwargs or {}))
        return asked.bagged(answer.to(asked.ids, self.vectors))


def owners(given: Mapping[str, Tensor], watch: WatchLookups) -> list[tuple[str, bool] | None]:
    """Find whose ids each look-up asks for, and whether tokens come first; None where they are no argument's.

    Ids are known by their memory; those of an argument whose memory no look-up shares, by their values, if made of it.

    Raises:
        ValueError: a look-up of a part of them, or in another order.

    """
    integers = {storage(v): name for name, v in given.items() if not v.dtype.is_floating_point}
    shared = {integers.get(storage(one.ids)) for one in watch.lookups}
    found: list[tuple[str, bool] | None] = []
    for one in watch.lookups:
        name = integers.get(storage(one.ids))
        if name is None:
            same = (n for n in integers.values() if n not in shared and _equal(given[n], one.ids))
            copied = next(same, None) if storage(one.ids) in watch.made else None
            found.append(None if copied is None else (copied, False))
        elif one.ids.numel() == given[name].numel() and one.ids.is_contiguous():
            found.append((name, False))
        elif one.ids.ndim == 2 and one.ids.shape == given[name].shape[::-1] and one.ids.T.is_contiguous():
            found.append((name, True))
        else:
            raise ValueError(
                f"the model looks up {tuple(one.ids.shape)} of the token ids {name!r}, {tuple(given[name].shape)}: a "
                "part of them, or in another order; pass the embedded inputs to a model that starts after the embedding"
            )
    return found


def _equal(ids: Tensor, asked: Tensor) -> bool:
    return ids.shape == asked.shape and bool((ids == asked).all())


def lookup(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Lookup | None:
    """Read a call as a look-up of integers in a table of vectors; None where it is none."""
    if func is F.embedding:
        given = dict(zip(("input", "weight"), args, strict=False)) | dict(kwargs)
        names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        rest = dict(zip(names, args[2:], strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        return Lookup(given["input"], given["weight"], rest)
    if func is F.one_hot:
        given = dict(zip(("tensor", "num_classes"), args, strict=False)) | dict(kwargs)
        ids, classes = given["tensor"], given.get("num_classes", -1)
        return None if classes < 1 else Lookup(ids, _identity(classes, ids.device))
    if func is F.embedding_bag:
        return _bag(dict(zip(BAG_ARGUMENTS, args, strict=False)) | dict(kwargs))
    if func is Tensor.__getitem__ and args[0].ndim == 2 and isinstance(args[1], Tensor):
        table, ids = args
        if table.dtype.is_floating_point and ids.dtype in (torch.int32, torch.int64):
            return Lookup(ids, table, is_index=True)
    return None


def _bag(given: Mapping[str, Any]) -> Lookup | None:
    """Read the look-up of a bag for each example; None where bags are told by offsets, or tokens count otherwise."""
    mode, ids = given.get("mode", "mean"), given["input"]
    odd = any(given.get(name) is not None for name in ("offsets", "per_sample_weights", "padding_idx"))
    if odd or ids.ndim != 2 or mode not in ("sum", "mean"):
        return None
    return Lookup(ids, given["weight"], {"max_norm": given.get("max_norm")}, reduce=mode)


@lru_cache(maxsize=8)
def _identity(classes: int, device: torch.device) -> Tensor:
    """Give the table of one-hot vectors, one and the same for all look-ups of as many."""
    return torch.eye(classes, device=device)


def storage(tensor: Tensor) -> int:
    """Tell tensors that share memory."""
    return int(tensor.untyped_storage().data_ptr())


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def _reads(func: Any, returned: Any, args: Sequence[Any]) -> bool:
    """Tell whether a call made of its arguments more than a view of them, or a fact such as a shape."""
    given = {*map(storage, _tensors(args))}
    return any(storage(t) not in given for t in _tensors(returned)) or getattr(func, "__name__", "") in VALUES_TO_PYTHON
