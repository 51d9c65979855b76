"""The model and the inputs that a command line asks for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capalloc.app.cli.errors import UsageError
from capalloc.app.cli.image_folder import read_images
from capalloc.app.cli.input_source import gaussian, normalised, parse_integers, read_array, read_several
from capalloc.app.cli.model_source import read_model, reads_tokens
from capalloc.app.cli.named_model import InputShape, NamedModel, TorchModel
from capalloc.app.cli.options import ModelOptions, Verbosity

#: Whole numbers that may be token ids, as those of pixels are not.
OF_IDS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Sources:
    """The arguments that every method starts with."""

    model: TorchModel
    inputs: Any  # a tensor, or several by the names of the model's arguments
    outputs: str | int | None


def read_sources(options: ModelOptions, verbosity: Verbosity, examples: int) -> Sources:
    """Read the model, then its inputs; `examples` Gaussian ones where no number is given.

    Raises:
        ValueError, TypeError: an option is of another form, or options do not fit together.
        FileNotFoundError, ModuleNotFoundError: there is no such file, or nothing that reads it.

    """
    several = {} if options.data is None else read_several(options.data, options.examples)
    if several:
        return _of_several(options, verbosity, several)
    asked = None if options.shape is None else parse_integers(options.shape, "--shape")
    array = None if options.data is None or options.data.is_dir() else read_array(options.data, options.examples)
    if array is not None and array.ndim < 2:
        raise ValueError(
            f"{options.data} holds an array of shape {tuple(array.shape)}; its first axis must be examples"
        )
    fitting = array is not None and (array.dtype not in OF_IDS or reads_tokens(options.model))
    own = tuple(array.shape[1:]) if array is not None and fitting else None
    if own and asked and own != asked:
        raise ValueError(f"{options.data} holds inputs of shape {own}, not {asked}; leave --shape out")
    source = read_model(options.model, options.arg or (), options.seed, asked or own, options.weights)
    inputs = _inputs(source, asked, array, options, options.examples or examples)
    device = device_of(options.device, source)
    verbosity.tell(f"{options.model}: {source.num_params:,} parameters; {_described(source, inputs, options)}")
    if isinstance(source.model, nn.Module):
        source.model.to(device)
    wanted = source.dtype if inputs.dtype.is_floating_point else inputs.dtype
    return Sources(source.model, inputs.to(device, wanted), select(options.output))


def _of_several(options: ModelOptions, verbosity: Verbosity, given: dict[str, Tensor]) -> Sources:
    """Give arrays of a file as the model's arguments of their names."""
    if options.shape or options.mean or options.std:
        raise UsageError(f"--shape, --mean and --std are of one array; {options.data} holds {', '.join(given)}")
    source = read_model(options.model, options.arg or (), options.seed, None, options.weights)
    device = device_of(options.device, source)
    verbosity.tell(f"{options.model}: {source.num_params:,} parameters; inputs {', '.join(given)}")
    if isinstance(source.model, nn.Module):
        source.model.to(device)
    kinds = {name: source.dtype if value.is_floating_point() else value.dtype for name, value in given.items()}
    inputs = {name: value.to(device, kinds[name]) for name, value in given.items()}
    return Sources(source.model, inputs, select(options.output))


def device_of(name: str, source: NamedModel) -> torch.device:
    """Find the device of a name, if a model can run on it.

    Raises:
        UsageError: this machine has none of it, or the model stays where it is.

    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        here = ", ".join(kind for kind, has in there.items() if has)
        raise UsageError(f"--device must be one that torch finds on this machine ({here}), got {name!r}") from error
    if device.type == "meta":
        raise UsageError("--device meta holds no values, and capacity needs them")
    if device.type != "cpu" and not isinstance(source.model, nn.Module):
        raise UsageError("--device is for a model that is made here; a .pt2 file runs where it was exported for")
    return device


def _inputs(
    source: NamedModel, asked: InputShape, array: Tensor | None, options: ModelOptions, examples: int
) -> Tensor:
    if options.data is not None:
        if array is None:
            array = read_images(options.data, asked or source.shape, options.examples)
        if source.vocabulary is not None and not array.dtype.is_floating_point:
            if options.mean is not None or options.std is not None:
                raise UsageError("--mean and --std are of numbers, and token ids stand for vectors of the model's own")
            return _tokens(source.vocabulary, array)
        if _looks_up(source.model, array) and options.mean is None and options.std is None:
            return array.long()
        return normalised(array.to(source.dtype), options.mean, options.std)
    if options.mean is not None or options.std is not None:
        raise UsageError("--mean and --std are for --data; Gaussian inputs have mean 0 and variance 1")
    shape = asked or source.shape
    if shape is None:
        raise ValueError("give --shape, for Gaussian inputs, or --data, a file of examples or a folder of images")
    named = source.vocabulary is not None and (asked is None or len(asked) == 1)
    shape = shape[:1] if named else shape
    words = source.vocabulary if named else _vocabulary(source.model, shape)
    if words is not None:
        generator = torch.Generator().manual_seed(options.seed)
        return torch.randint(words, (examples, *shape), generator=generator)
    return gaussian(examples, shape, options.seed, source.dtype)


def _vocabulary(model: TorchModel, shape: tuple[int, ...]) -> int | None:
    """Number of ids that all embeddings of a model have, where it runs on ids of this shape and not on real numbers."""
    if not isinstance(model, nn.Module):
        return None
    sizes = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    if not sizes:
        return None

    def runs(x: Tensor) -> bool:
        try:
            with torch.no_grad():
                copy.deepcopy(model).eval()(x)
        except Exception:  # the user's own code may raise anything
            return False
        return True

    zeros = torch.zeros(2, *shape)
    return min(sizes) if runs(zeros.long()) and not runs(zeros) else None


def _looks_up(model: TorchModel, array: Tensor) -> bool:
    """Tell whether whole numbers are token ids, for a model with an embedding."""
    embeds = isinstance(model, nn.Module) and any(isinstance(module, nn.Embedding) for module in model.modules())
    return embeds and array.dtype in OF_IDS


def _tokens(vocabulary: int, ids: Tensor) -> Tensor:
    """Check token ids."""
    if ids.ndim != 2 or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(
            f"token ids must be (examples, tokens) in 0 .. {vocabulary - 1}, got shape "
            f"{tuple(ids.shape)} with values {int(ids.min())} .. {int(ids.max())}"
        )
    return ids.long()


def _described(source: NamedModel, inputs: Tensor, options: ModelOptions) -> str:
    drawn = "random " if not inputs.dtype.is_floating_point else "Gaussian "
    kind = f"{drawn}input" if options.data is None else "example"
    number = f"{len(inputs)} {kind}{'' if len(inputs) == 1 else 's'}"
    shape = " x ".join(map(str, inputs.shape[1:]))
    return f"{number} of {shape}" + ("" if inputs.dtype.is_floating_point else " tokens")


def select(name: str | None) -> str | int | None:
    """One of a model's outputs, by name or by position, as `outputs=` takes it."""
    return int(name) if name is not None and name.isdecimal() else name
