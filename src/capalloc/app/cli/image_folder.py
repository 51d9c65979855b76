"""A folder of images as examples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capalloc._runtime.extras import load_extra
from capalloc._runtime.memory import Budget, budget_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: What Pillow may decode: it tells formats by content, and starts other programs for some.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
#: The value of white in images of more than 8 bits, by their mode.
WHITE = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "F": 1.0}
#: Pillow's names for one channel and for three.
COLOUR_MODES = {1: "L", 3: "RGB"}
FLOAT32 = 4


def read_images(folder: Path, shape: tuple[int, ...] | None = None, number: int | None = None) -> Tensor:
    """Read the images in a folder and in the folders in it, by name: (examples, channel, row, column) in [0, 1].

    Args:
        folder: where they are.
        shape: (channels, rows, columns) that each is fitted to: resized to fill them, and cropped around its centre.
            By default images keep their size, which must be one, and their colours.
        number: the first ones; all by default.

    Raises:
        ValueError: there is no image, one cannot be read, they differ in size, there are not 1 or 3 channels, or they
            do not fit in memory.
        ModuleNotFoundError: Pillow is not installed.

    """
    if shape is not None and (len(shape) != 3 or shape[0] not in COLOUR_MODES):
        raise ValueError(f"--shape of images must be 1 or 3 channels, rows and columns, such as 3,224,224, got {shape}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"the folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    paths = paths[:number]
    room = budget_of(torch.device("cpu"))  # for all of them together
    first, *rest = (_read(path, shape, len(paths), room) for path in paths)
    for path, image in zip(paths[1:], rest, strict=True):
        if image.shape != first.shape:
            raise ValueError(
                f"{path} is {_size(image)} and {paths[0]} {_size(first)}; give --shape, such as 3,224,224, to fit "
                "them to one size"
            )
    return torch.stack([first, *rest])


def _read(path: Path, shape: tuple[int, ...] | None, number: int, room: Budget) -> Tensor:
    """Read one image of so many, its colours in front."""
    pillow, operations = load_extra(str(path), "PIL.Image"), load_extra(str(path), "PIL.ImageOps")
    try:
        with pillow.open(path, formats=FORMATS) as file:
            file.verify()  # its checksums, where the format has some
        with pillow.open(path, formats=FORMATS) as file:
            _check_frames(file)
            _check_memory(shape or (3, *file.size), number, room)
            if file.mode == "I" and file.format == "TIFF":
                raise ValueError("its levels are of 32 bits, of which none is known to be white; save it with 8 or 16")
            image = operations.exif_transpose(file)
            if image.mode in WHITE:
                image = pillow.fromarray(_levels(np.asarray(image, dtype=np.float32) / WHITE[image.mode]))
            if shape is not None:
                image = image if image.mode == "F" else image.convert(COLOUR_MODES[shape[0]])
                image = operations.fit(image, (shape[2], shape[1]), pillow.Resampling.BICUBIC)
    except Exception as error:  # decoders raise any type on damaged bytes
        raise ValueError(f"{path} cannot be read: {error}") from error
    read = _tensor(image)
    return read if shape is None else read.expand(shape[0], -1, -1)


def _check_frames(file: Any) -> None:
    """Refuse several images in one, of which the first would pass for all; a photograph may hold a small copy."""
    if file.format != "MPO" and (frames := getattr(file, "n_frames", 1)) > 1:
        raise ValueError(f"it holds {frames} images; save each in a file of its own")


def _check_memory(shape: tuple[int, ...], number: int, room: Budget) -> None:
    """Refuse images that do not fit beside the copy that joins them."""
    needed = 2 * FLOAT32 * number * math.prod(shape)
    advice = "take fewer with --examples, or smaller ones with --shape"
    room.set_aside(needed, f"{number} images of {' x '.join(map(str, shape))}", advice)


def _levels(values: np.ndarray) -> np.ndarray:
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"its levels reach from {values.min():.4g} to {values.max():.4g} of white; they must lie in [0, 1]"
        )
    return values


def _tensor(image: Any) -> Tensor:
    if image.mode == "F":  # resizing overshoots
        return torch.from_numpy(np.array(image)[None]).clamp(0, 1)
    grey = len(image.getbands()) == 1 and image.mode != "P"
    values = np.array(image.convert(COLOUR_MODES[1 if grey else 3]), dtype=np.float32) / 255
    return torch.from_numpy(values[None] if grey else values.transpose(2, 0, 1).copy())


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape))
