"""Files: an xarray Dataset as NetCDF, and writes that leave a whole file or none."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from capalloc._runtime.netcdf import MAGIC, decode, encode


def check_target(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file to write; an error where there can be none."""
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; give the name of a file in it")
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is no ordinary file but a device or a pipe, which would be replaced")
    return target


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and is removed if it fails.

    The new file has the mode of the old one.

    What was written is on the disk before the old file goes: a machine that stops leaves one of the two, whole.
    """
    target = check_target(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
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
    """Write a text file as UTF-8, whole or not at all.

    Raises:
        ValueError: a saved result is there.

    """
    target = Path(path)
    if target.is_file():
        with target.open("rb") as old:
            if old.read(len(MAGIC)) == MAGIC:
                raise ValueError(f"{path} holds a saved result, which the text would replace; give another name")
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str], name: str, version: int) -> None:
    """Write `dataset` as NetCDF of the format `name`-`version`, whole or not at all."""
    data = encode(dataset, f"{name}-{version}", json.dumps(dataset.attrs))
    with atomically(path) as temporary:
        temporary.write_bytes(data)


@dataclass(frozen=True)
class SavedFile:
    """Content of a file, before it is known to be of the right kind."""

    path: str | os.PathLike[str]
    format: str  # name and version; empty if the file says none
    content: str  # attributes as JSON
    variables: xr.Dataset

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SavedFile:
        """Read into memory what `write_dataset` wrote; nothing in the file is executed or unpickled."""
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        data = file.read_bytes()
        try:
            return cls(path, *decode(data))
        except Exception as error:  # readers of damaged bytes raise any type
            raise ValueError(f"{path} is damaged or no NetCDF file of capalloc: {error}") from error

    @property
    def name(self) -> str:
        """The name of the format, without its version."""
        return re.sub(r"-\d+$", "", self.format)

    def dataset(self, name: str, version: int) -> xr.Dataset:
        """Return the Dataset, if the file is of this format and no newer version of it."""
        _check_format(self.path, self.format, name, version)
        try:
            return self.variables.assign_attrs(json.loads(self.content))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: its attributes cannot be read ({error})") from error


def read_dataset(path: str | os.PathLike[str], name: str, version: int) -> xr.Dataset:
    """Read the Dataset of a file of the format `name`, up to this version."""
    return SavedFile.read(path).dataset(name, version)


def _check_format(path: str | os.PathLike[str], found: str, name: str, version: int) -> None:
    match = re.fullmatch(rf"{re.escape(name)}-(\d+)", found)
    if match is None:
        raise ValueError(f"{path} holds {found or 'no format mark'!r}, not a {name}; was it written by save()?")
    if int(match[1]) > version:
        raise ValueError(
            f"{path} was written by a newer capalloc ({found}, this one reads up to {name}-{version}); upgrade capalloc"
        )
