"""Inputs of a model that takes several, or token ids: what the arguments of one call are, by name.

A tensor of floating point stays what it always was. A dict gives arguments by name; a tuple gives those that the model
requires, in order, and what follows them in a batch of a data loader are labels: one input and one more tensor is
(x, y), never two inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from capalloc._model.exported import SavedModel
from capalloc._model.nested_arguments import check_nesting, take_apart

#: Keys of a batch that hold labels.
LABELS = ("labels", "label")
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Signature:
    """Names of the arguments that a model's forward takes, and how many of them it requires."""

    names: tuple[str, ...]
    required: int

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """Read it from the module, or from the one that a data-parallel or compiling wrapper holds."""
        while isinstance(model, PARALLEL) or hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model.module if isinstance(model, PARALLEL) else model._orig_mod)
        if isinstance(model, SavedModel):
            return cls(model.input_names, len(model.input_names))
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        try:
            parameters = inspect.signature(model.forward).parameters.values()
        except (TypeError, ValueError):  # of a callable that tells nothing
            return cls((), 0)
        found = [p for p in parameters if p.kind in kinds]
        required = sum(p.default is inspect.Parameter.empty for p in found)
        return cls(tuple(p.name for p in found), required)


@dataclass(frozen=True)
class Arguments:
    """The tensors of a call on a batch of examples, by name, and where arguments go by name what holds them."""

    tensors: dict[str, Tensor]
    frame: Mapping[str, Any] | None = None  # with a slot for each tensor


def read_arguments(signature: Signature, inputs: Any) -> Arguments | Callable[[], Iterator[Arguments]] | None:
    """Read the arguments of one call, or those of a call for each batch; None where batches are floating tensors."""
    whole = _arguments(signature, inputs, of_loader=False)
    if whole is not None or isinstance(inputs, (Tensor, Mapping)) or not isinstance(inputs, Iterable):
        return whole
    first = next(iter(inputs), None)
    if first is None or _arguments(signature, first, of_loader=True) is None:
        return None
    return partial(_batches, signature, inputs)


def _batches(signature: Signature, inputs: Iterable[Any]) -> Iterator[Arguments]:
    for batch in inputs:
        found = _arguments(signature, batch, of_loader=True)
        if found is None:
            raise TypeError(f"each batch must hold the same arguments as the first, got {type(batch).__name__}")
        yield found


def _arguments(signature: Signature, batch: Any, *, of_loader: bool) -> Arguments | None:
    """Read one batch; None where it is one tensor of floating point, or a list of batches."""
    if isinstance(batch, Mapping):
        return _named(batch)
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (Mapping, tuple, list)) and of_loader:
        return _arguments(signature, batch[0], of_loader=False)  # (inputs, labels)
    if isinstance(batch, (tuple, list)) and signature.required > 1:
        return _positional(signature, batch, of_loader)
    if of_loader and isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]  # (x, y)
    if isinstance(batch, Tensor) and not (batch.dtype.is_floating_point or batch.dtype.is_complex):
        return Arguments({(signature.names or ("x",))[0]: batch})
    return None


def _named(batch: Mapping[Any, Any]) -> Arguments:
    found: dict[str, Tensor] = {}
    frame: dict[str, Any] = {}
    for name, value in batch.items():
        if name in LABELS:
            continue
        before = len(found)
        check_nesting(value, f"inputs[{name!r}]")
        frame[str(name)] = take_apart(value, found, str(name))
        if len(found) == before:
            raise TypeError(
                f"inputs[{name!r}] must be a tensor, or a dict, tuple or dataclass of some, got "
                f"{type(value).__name__}; leave other arguments out"
            )
    if not found:
        raise ValueError("inputs are a dict without a tensor; give the model's arguments by name")
    return Arguments(found, frame)


def _positional(signature: Signature, batch: Any, of_loader: bool) -> Arguments | None:
    if not all(isinstance(value, Tensor) for value in batch):
        return None
    names, required = signature.names[: signature.required], signature.required
    if len(batch) < required or (len(batch) > required and not of_loader):
        raise ValueError(
            f"inputs are {len(batch)} tensors, but the model requires {required} ({', '.join(names)}): give those, and "
            "optional ones by name, in a dict"
        )
    return Arguments(dict(zip(names, batch[:required], strict=True)))
