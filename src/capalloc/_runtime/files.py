"""Files: an xarray Dataset as NetCDF, and writes that leave a whole file or none."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import xarray as xr

ENGINE: Final = "h5netcdf"
#: Attributes of the file: what it is, and the Dataset's own attributes as JSON.
FORMAT, CONTENT = "format", "attrs"


def check_target(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file to write; an error where there can be none."""
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; give the name of a file in it")
    return target


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and is removed if it fails.

    What was written is on the disk before the old file goes: a machine that stops leaves one of the two, whole.
    """
    target = check_target(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush(temporary, os.O_RDWR)
        temporary.replace(target)
        if os.name == "posix":  # elsewhere folders cannot be opened
            _flush(target.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path, mode: int) -> None:
    """Have the operating system put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as UTF-8, whole or not at all."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str], name: str, version: int) -> None:
    """Write `dataset` as NetCDF of the format `name`-`version`, whole or not at all."""
    file = dataset.copy()
    file.attrs = {FORMAT: f"{name}-{version}", CONTENT: json.dumps(dataset.attrs)}
    with atomically(path) as temporary:
        file.to_netcdf(temporary, engine=ENGINE)


def read_dataset(path: str | os.PathLike[str], name: str, version: int) -> xr.Dataset:
    """Read into memory what `write_dataset` wrote; nothing in the file is executed or unpickled."""
    with _readable(path):
        dataset = xr.load_dataset(path, engine=ENGINE)
    _check_format(path, str(dataset.attrs.get(FORMAT, "")), name, version)
    try:
        dataset.attrs = json.loads(dataset.attrs[CONTENT])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its attributes cannot be read ({error})") from error
    return dataset


def read_name(path: str | os.PathLike[str]) -> str:
    """The name of the format that a file says it has, without its version; empty if it says none."""
    with _readable(path), xr.open_dataset(path, engine=ENGINE) as dataset:
        return re.sub(r"-\d+$", "", str(dataset.attrs.get(FORMAT, "")))


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of a block that reads `path`, in words."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:  # the HDF5 stack raises any type on damaged bytes
        raise ValueError(f"{path} is damaged or no NetCDF file: {error}") from error


def _check_format(path: str | os.PathLike[str], found: str, name: str, version: int) -> None:
    match = re.fullmatch(rf"{re.escape(name)}-(\d+)", found)
    if match is None:
        raise ValueError(f"{path} holds {found or 'no format mark'!r}, not a {name}; was it written by save()?")
    if int(match[1]) > version:
        raise ValueError(
            f"{path} was written by a newer capalloc ({found}, this one reads up to {name}-{version}); upgrade capalloc"
        )
