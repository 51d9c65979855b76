"""Inputs that a command line asks for: by a shape, a file of examples, a folder of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from safetensors import safe_open
from torch import Tensor

from capalloc._runtime.memory import budget_of
from capalloc.app.cli.errors import UsageError

INPUT_ARRAY = "inputs"  # the array that is taken from a file with several
ArrayReader = Callable[[Path, int | None], Tensor]


def gaussian(number: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Draw unit Gaussian inputs (examples, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *shape, generator=generator, dtype=dtype)


def normalised(x: Tensor, mean: str | None, std: str | None) -> Tensor:
    """Return (x - mean) / std, by one number or one a channel, the axis after the examples.

    Raises:
        ValueError: they are no such numbers, or std is not positive.

    """
    if mean is not None:
        x = x - _by_channel(mean, "--mean", x)
    if std is not None:
        scale = _by_channel(std, "--std", x)
        if not bool((scale > 0).all()):
            raise UsageError(f"--std must be positive, got {std!r}")
        x = x / scale
    return x


def _by_channel(text: str, option: str, x: Tensor) -> Tensor:
    try:
        numbers = torch.tensor([float(part) for part in text.split(",")], dtype=x.dtype)
    except ValueError:
        numbers = torch.empty(0)
    if len(numbers) not in (1, x.shape[1] if x.ndim > 1 else 1) or not bool(torch.isfinite(numbers).all()):
        raise UsageError(f"{option} must be one number or one a channel, such as 0.485,0.456,0.406, got {text!r}")
    return numbers.reshape(-1, *[1] * (x.ndim - 2))


def parse_integers(text: str, option: str) -> tuple[int, ...]:
    """Read integers with commas between them.

    Raises:
        ValueError: they are none, or one is below 1.

    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{option} must be integers >= 1 with commas between them, such as 3,224,224, got {text!r}")
    return numbers


def parse_position(text: str) -> tuple[int | None, ...]:
    """Read an output position, in which a colon stands for a whole axis.

    Raises:
        ValueError: a part is neither a number of at least 0 nor a colon.

    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part == ":" or (part.isascii() and part.isdigit()) for part in parts):
        raise UsageError(f"--position must be integers >= 0, or : for a whole axis, such as 3,4 or 7,:, got {text!r}")
    return tuple(None if part == ":" else int(part) for part in parts)


def read_array(path: Path, number: int | None = None) -> Tensor:
    """Read the first examples in a .npy, .npz or .safetensors file, all by default; nothing is unpickled.

    Raises:
        ValueError: another kind of file, one that is damaged, of several arrays, or of complex numbers.
        FileNotFoundError: there is no such file.

    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers: dict[str, ArrayReader] = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"--data must be a file {', '.join(readers)} or a folder of images, got {path.name}")
    try:
        found = readers[path.suffix](path, number)
    except PermissionError:
        raise
    except Exception as error:  # readers raise any type on damaged bytes
        raise ValueError(f"{path} cannot be read: {error}") from error
    if found.is_complex():
        raise ValueError(f"{path} holds complex numbers; save real and imaginary parts as two channels")
    return found


def read_several(path: Path, number: int | None = None) -> dict[str, Tensor]:
    """Read the first examples of each array of a .npz or .safetensors file; none where one holds all the examples.

    Raises:
        ValueError: a file that is damaged.

    """
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        return {}
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                names = list(arrays)
        else:
            with safe_open(path, framework="pt") as tensors:
                names = list(tensors.keys())
        if len(names) < 2 or INPUT_ARRAY in names:
            return {}
        read = _read_npz if path.suffix == ".npz" else _read_safetensors
        return {name: read(path, number, name) for name in names}
    except PermissionError:
        raise
    except Exception as error:  # readers raise any type on damaged bytes
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_npy(path: Path, number: int | None) -> Tensor:
    mapped = np.load(path, allow_pickle=False, mmap_mode="r")
    rows = mapped[:number] if mapped.ndim else mapped
    _check_memory(rows.nbytes, rows.shape)
    return _tensor(np.array(rows))


def _read_npz(path: Path, number: int | None, name: str | None = None) -> Tensor:
    with np.load(path, allow_pickle=False) as arrays:
        name, archive = name or _only(list(arrays)), arrays.zip
        part = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
        with archive.open(part) as file:
            first = _first_rows(file, number)
        if first is not None:
            return _tensor(first)
        budget_of(torch.device("cpu")).set_aside(part.file_size, f"the array {name}", "take a file of fewer examples")
        return _tensor(arrays[name][:number])


def _first_rows(file: IO[bytes], number: int | None) -> np.ndarray | None:
    """Read the first rows of an array in a stream, and no more; None where they do not lie one after the other."""
    read_header = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}.get(read_magic(file))
    if number is None or read_header is None:
        return None
    shape, by_columns, dtype = read_header(file)
    if by_columns or not shape or dtype.hasobject:
        return None
    rows = min(number, shape[0])
    wanted = rows * math.prod(shape[1:]) * dtype.itemsize
    _check_memory(wanted, (rows,))
    return np.frombuffer(bytearray(file.read(wanted)), dtype).reshape(rows, *shape[1:])


def _read_safetensors(path: Path, number: int | None, name: str | None = None) -> Tensor:
    with safe_open(path, framework="pt") as tensors:
        name = name or _only(list(tensors.keys()))
        stored = tensors.get_slice(name)
        if not (shape := stored.get_shape()):
            return cast(Tensor, tensors.get_tensor(name))
        rows = min(shape[0], number or shape[0])
        _check_memory(torch.float64.itemsize * rows * math.prod(shape[1:]), (rows,))
        return cast(Tensor, stored[:rows])


def _check_memory(num_bytes: int, shape: tuple[int, ...]) -> None:
    """Refuse examples, the first axis, that do not fit."""
    what = f"{shape[0] if shape else 1} examples"
    budget_of(torch.device("cpu")).set_aside(num_bytes, what, "take fewer with --examples")


def _tensor(array: np.ndarray) -> Tensor:
    """Take numbers that another kind of machine wrote, too."""
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _only(names: list[str]) -> str:
    if len(names) != 1 and INPUT_ARRAY not in names:
        raise ValueError(f"it holds {sorted(names)}; name the examples {INPUT_ARRAY!r}, or keep one array in the file")
    return INPUT_ARRAY if INPUT_ARRAY in names else names[0]
