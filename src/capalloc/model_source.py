"""A model and its inputs from what a command line can say."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from capalloc.problem import seeded
from capalloc.program_file import load_program

ARRAY = "inputs"  # the array that is taken from a file with several


def read_model(source: str, arguments: Sequence[str] = (), seed: int = 0) -> nn.Module | ExportedProgram:
    """The program in a .pt2 file, or the module that `package.module:factory` makes with `name=value` arguments.

    Raises:
        ValueError, TypeError: a source or an argument of another form, or a factory that makes something else.
        FileNotFoundError, ModuleNotFoundError: there is no such file or module.

    """
    if source.endswith(".pt2"):
        if arguments:
            raise ValueError("--arg is for a factory; a .pt2 file takes no arguments")
        return load_program(source)
    module_name, _, name = source.partition(":")
    if not module_name or not name:
        raise ValueError(f"MODEL must be a .pt2 file or package.module:factory, got {source!r}")
    cpu = torch.device("cpu")
    with seeded(seed, cpu):  # importing the module may draw weights already
        factory = _find(module_name, name)
    if isinstance(factory, nn.Module) and not arguments:
        return factory
    if not callable(factory):
        raise TypeError(f"{source} is a {type(factory).__name__}; name a function or class that makes the model")
    with seeded(seed, cpu):
        model = factory(**dict(_argument(text) for text in arguments))
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise TypeError(f"{source} made a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _find(module_name: str, name: str) -> Any:
    here = str(Path.cwd())  # a command sees the folder it is run in, as `python -m` does
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name} has no {name}")
        found = getattr(found, part)
    return found


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--arg must be name=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word


def read_inputs(shape: str | None, data: Path | None, examples: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Gaussian examples of a shape, or those in a file, in the model's precision.

    Raises:
        ValueError, TypeError: neither or both were given, or they cannot be read.
        FileNotFoundError, ModuleNotFoundError: there is no such file, or nothing that reads it.

    """
    if (shape is None) == (data is None):
        raise ValueError("give either --shape, for Gaussian inputs, or --data, a file of examples")
    if data is not None:
        return read_array(data).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, *parse_integers(shape or "", "--shape"), generator=generator, dtype=dtype)


def parse_integers(text: str, option: str, lowest: int = 1) -> tuple[int, ...]:
    """Integers with commas between them."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < lowest:
        raise ValueError(
            f"{option} must be integers >= {lowest} with commas between them, such as 3,224,224, got {text!r}"
        )
    return numbers


def read_array(path: Path) -> Tensor:
    """The examples in a .npy, .npz or .safetensors file; nothing is unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"--data must be a file {', '.join(readers)}, got {path.name}")
    try:
        return readers[path.suffix](path)
    except (PermissionError, ModuleNotFoundError):
        raise
    except Exception as error:  # readers raise any type on damaged bytes
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_npy(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> Tensor:
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[_only(list(arrays))])


def _read_safetensors(path: Path) -> Tensor:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ModuleNotFoundError(f"{path} needs the package safetensors: pip install safetensors") from error
    with safe_open(path, framework="pt") as tensors:
        found: Tensor = tensors.get_tensor(_only(list(tensors.keys())))
    return found


def _only(names: list[str]) -> str:
    if len(names) != 1 and ARRAY not in names:
        raise ValueError(f"it holds {sorted(names)}; name the examples {ARRAY!r}, or keep one array in the file")
    return ARRAY if ARRAY in names else names[0]


def precision(model: nn.Module | ExportedProgram) -> torch.dtype:
    """The dtype of the parameters."""
    return next((p.dtype for p in model.parameters()), torch.float32)
