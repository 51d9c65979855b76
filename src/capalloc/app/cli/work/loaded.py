"""The model and the inputs that a command was told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capalloc.app.cli.options import Given, Talk
from capalloc.app.cli.work.images import read_images
from capalloc.app.cli.work.input_source import gaussian, normalised, parse_integers, read_array
from capalloc.app.cli.work.model_source import Model, Shape, Source, read_model
from capalloc.app.cli.work.talk import tell


@dataclass(frozen=True)
class Loaded:
    """What every method starts from."""

    model: Model
    inputs: Tensor
    outputs: Callable[[Any], Tensor] | None


def load(given: Given, talk: Talk, examples: int) -> Loaded:
    """Read the model, then its inputs; `examples` Gaussian ones where nothing was said.

    Raises:
        ValueError, TypeError: what was said is of another form, or does not fit together.
        FileNotFoundError, ModuleNotFoundError: there is no such file, or nothing that reads it.

    """
    asked = None if given.shape is None else parse_integers(given.shape, "--shape")
    array = None if given.data is None or given.data.is_dir() else read_array(given.data, given.examples)
    if array is not None and array.ndim < 2:
        raise ValueError(f"{given.data} holds an array of shape {tuple(array.shape)}; its first axis must be examples")
    own = tuple(array.shape[1:]) if array is not None and array.dtype.is_floating_point else None
    if own and asked and own != asked:
        raise ValueError(f"{given.data} holds inputs of shape {own}, not {asked}; leave --shape out")
    source = read_model(given.model, given.arg or (), given.seed, asked or own)
    inputs = _inputs(source, asked, array, given, given.examples or examples)
    _tell(source, inputs, given, talk)
    return Loaded(source.model, inputs.to(source.dtype), select(given.output))


def _inputs(source: Source, asked: Shape, array: Tensor | None, given: Given, examples: int) -> Tensor:
    if given.data is not None:
        if array is None:
            array = read_images(given.data, asked or source.shape, given.examples)
        if source.tokens is not None and not array.dtype.is_floating_point:
            array = _embedded(source, array)
        return normalised(array.to(source.dtype), given.mean, given.std)
    if given.mean is not None or given.std is not None:
        raise ValueError("--mean and --std are for --data; Gaussian inputs have mean 0 and variance 1")
    shape = asked or source.shape
    if shape is None:
        raise ValueError("give --shape, for Gaussian inputs, or --data, a file of examples or a folder of images")
    if source.tokens is not None and (asked is None or len(asked) == 1):
        generator = torch.Generator().manual_seed(given.seed)
        return _embedded(source, torch.randint(source.tokens.vocabulary, (examples, shape[0]), generator=generator))
    return gaussian(examples, shape, given.seed, source.dtype)


def _embedded(source: Source, ids: Tensor) -> Tensor:
    """Token ids by the model's own embedding."""
    assert source.tokens is not None
    if ids.ndim != 2 or int(ids.min()) < 0 or int(ids.max()) >= source.tokens.vocabulary:
        raise ValueError(
            f"token ids must be (examples, tokens) in 0 .. {source.tokens.vocabulary - 1}, got shape "
            f"{tuple(ids.shape)} with values {int(ids.min())} .. {int(ids.max())}"
        )
    with torch.no_grad():
        return source.tokens.embed(ids.long())


def _tell(source: Source, inputs: Tensor, given: Given, talk: Talk) -> None:
    drawn = "" if source.tokens is not None else "Gaussian "
    kind = f"{drawn}input" if given.data is None else "example"
    number = f"{len(inputs)} {kind}{'' if len(inputs) == 1 else 's'}"
    shape = " x ".join(map(str, inputs.shape[1:]))
    tell(talk, f"{given.model}: {source.num_params:,} parameters; {number} of {shape}")


def select(name: str | None) -> Callable[[Any], Tensor] | None:
    """From what a model returns to one of its outputs: by position, by key or by name; None for the usual one."""
    if name is None:
        return None

    def chosen(returned: Any) -> Tensor:
        if isinstance(returned, Tensor):
            raise ValueError(f"the model returns one tensor, and no output {name}; leave --output out")
        try:
            if name.isdecimal():
                found: Tensor = returned[int(name)]
            else:
                found = returned[name] if isinstance(returned, dict) else getattr(returned, name)
        except (LookupError, AttributeError, TypeError) as error:
            known = f"; it has {', '.join(map(str, returned))}" if isinstance(returned, dict) else ""
            raise ValueError(f"the model returns a {type(returned).__name__} without --output {name}{known}") from error
        return found

    return chosen
