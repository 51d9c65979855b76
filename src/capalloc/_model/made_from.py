"""Marks of what a result was made from: model, inputs, arguments, seed and versions, for who wants to make it again."""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from capalloc._model.complex_params import count_reals
from capalloc._model.examples_digest import digest_of_examples
from capalloc._model.problem import Problem
from capalloc.results.base import MADE, Result

P = ParamSpec("P")
R = TypeVar("R")
#: Arguments that change nothing of an answer but where, and how loudly, it is computed.
OF_THE_RUN = ("progress", "run", "batch_size")
#: Characters of an argument that are kept.
ARGUMENT_LENGTH = 120
#: Layers that read vectors along the last axis, the attribute that tells how long those are, and what they are of.
OF_VECTORS: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.Linear, "in_features", "token"),
    (nn.RNNBase, "input_size", "step"),
    (nn.MultiheadAttention, "embed_dim", "token"),
)


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Have the result of a method keep what it was made from, as its setting `made`; each of several results.

    Methods that another one calls on a problem that is checked already are a part of it, and keep nothing.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        model, inputs, *_ = bound.args
        found = function(*args, **kwargs)
        results = found.values() if isinstance(found, Mapping) else [found]
        own = [result for result in results if isinstance(result, Result)]
        model = model.source if isinstance(model, Problem) else model
        if own and model is not None:
            made = _made(function.__name__, signature, bound.arguments, model, inputs)
            digests = [result.data.attrs.get("data_digest") for result in own]
            read = _digest(inputs) if None in digests else None  # a pass over the data, that most methods took already
            for result, digest in zip(own, digests, strict=True):
                marked = {"data_digest": digest or read} if digest or read else {}
                result.data.attrs[MADE] = made | marked
        return found

    return call


def _made(
    name: str, signature: inspect.Signature, arguments: Mapping[str, Any], model: Any, inputs: Any
) -> dict[str, Any]:
    """Text alone, by what it is of, and the names of two axes where they are known."""
    named = {key: value for key, value in list(arguments.items())[2:] if key not in OF_THE_RUN}
    changed = {key: _text(value) for key, value in named.items() if value is not signature.parameters[key].default}
    said = ", ".join([*list(arguments)[:2], *(f"{key}={text}" for key, text in changed.items())])
    made: dict[str, Any] = {
        "call": f"capalloc.{name}({said})",
        "model": _model(model),
        "inputs": _shapes(inputs),
        "seed": _seed(signature, arguments),
        "versions": {
            "capalloc": version("capalloc"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "axes": words_for_axes(model, inputs),
    }
    return {key: value for key, value in made.items() if value is not None}


def _text(value: Any) -> str:
    """An argument, briefly."""
    if isinstance(value, torch.Generator):
        return f"torch.Generator().manual_seed({value.initial_seed()})"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"<{type(value).__name__} of {' x '.join(map(str, value.shape))}>"
    if is_dataclass(value) and not isinstance(value, type):  # what differs from its defaults
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        own = {f.name: f.default for f in fields(value)}
        changed = [f"{name}={_text(part)}" for name, part in given.items() if part is not own[name]]
        return f"{type(value).__name__}({', '.join(changed)})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<{value.__qualname__}>"
    text = repr(value)
    return text if len(text) <= ARGUMENT_LENGTH else f"{text[:ARGUMENT_LENGTH]}..."


def _model(model: Any) -> str:
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, nn.Module):
        kind = type(model)
        name = kind.__qualname__ if kind.__module__.startswith("torch.") else f"{kind.__module__}.{kind.__qualname__}"
        return f"{name}, {count_reals(model.parameters()):,} parameters"
    if isinstance(model, Mapping):
        return ", ".join(map(str, model))
    return type(model).__name__


def _shapes(inputs: Any) -> str:
    """Sizes of the inputs, as far as they lie at hand."""
    if isinstance(inputs, Tensor):
        return " x ".join(map(str, inputs.shape))
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {_shapes(value)}" for name, value in inputs.items())
    if isinstance(inputs, (list, tuple)) and len(inputs) <= len(OF_VECTORS):
        return ", ".join(map(_shapes, inputs))
    return type(inputs).__name__


def _seed(signature: inspect.Signature, arguments: Mapping[str, Any]) -> int | None:
    """The seed of what is drawn, 0 by default; None where nothing is, or is told."""
    if (generator := arguments.get("generator")) is not None:
        return int(generator.initial_seed())
    seed = getattr(arguments.get("solver"), "seed", arguments.get("seed"))
    drawn = {"generator", "seed", "solver"} & set(signature.parameters)
    return seed if isinstance(seed, int) else 0 if drawn else None


def _digest(inputs: Any) -> str | None:
    if not isinstance(inputs, Tensor) or inputs.is_meta or not inputs.ndim:
        return None
    return digest_of_examples(inputs)


def words_for_axes(model: Any, inputs: Any) -> list[str] | None:
    """Words for two axes of an example, where the first layer reads vectors along one and channels along the other."""
    if not isinstance(inputs, Tensor) or inputs.ndim != 3 or not isinstance(model, nn.Module):
        return None
    length, width = inputs.shape[1:]
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d):
            return ["channel", "position"] if layer.in_channels == length else None
        for kind, attribute, word in OF_VECTORS:
            if isinstance(layer, kind):
                return [word, "feature"] if getattr(layer, attribute) == width else None
        if isinstance(layer, (nn.Flatten, nn.Conv2d)):
            return None
    return None
