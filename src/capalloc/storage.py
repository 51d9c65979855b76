"""Files: an xarray Dataset as NetCDF, and writes that leave a whole file or none."""

from __future__ import annotations

import json
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

import xarray as xr

ENGINE: Final = "h5netcdf"
#: Attributes of the file: what it is, and the Dataset's own attributes as JSON.
FORMAT, CONTENT = "format", "attrs"


@dataclass(frozen=True, eq=False)
class Stored(ABC):
    """A result that is one Dataset: it saves, loads and exports with no model at hand."""

    data: xr.Dataset

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError where an invariant does not hold."""

    def to_xarray(self) -> xr.Dataset:
        """The Dataset, settings among its attributes."""
        return self.data.copy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a NetCDF file, whole or not at all; `load` reads it with no model at hand.

        Raises:
            FileNotFoundError: the folder of `path` does not exist.
            IsADirectoryError: `path` is a folder.

        """
        write_dataset(self.data, path, self.FORMAT, self.VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; nothing in the file is executed or unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, foreign, or from a newer capalloc.

        """
        dataset = read_dataset(path, cls.FORMAT, cls.VERSION)
        try:
            return cls(dataset)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def check_variables(dataset: xr.Dataset, needed: Iterable[str], maker: str) -> None:
    """An error that names the variables a Dataset lacks, and what makes one that has them."""
    missing = sorted(set(needed) - set(map(str, dataset.variables)))
    if missing:
        raise ValueError(f"the dataset lacks {missing}; {maker} makes one that has them")


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
    """A temporary path beside `path` that replaces it when the block ends, and is removed if it fails."""
    target = check_target(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


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
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        dataset = xr.load_dataset(path, engine=ENGINE)
    except PermissionError:
        raise
    except Exception as error:  # the HDF5 stack raises any type on damaged bytes
        raise ValueError(f"{path} is damaged or no NetCDF file: {error}") from error
    _check_format(path, str(dataset.attrs.get(FORMAT, "")), name, version)
    try:
        dataset.attrs = json.loads(dataset.attrs[CONTENT])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its attributes cannot be read ({error})") from error
    return dataset


def _check_format(path: str | os.PathLike[str], found: str, name: str, version: int) -> None:
    match = re.fullmatch(rf"{re.escape(name)}-(\d+)", found)
    if match is None:
        raise ValueError(f"{path} holds {found or 'no format mark'!r}, not a {name}; was it written by save()?")
    if int(match[1]) > version:
        raise ValueError(
            f"{path} was written by a newer capalloc ({found}, this one reads up to {name}-{version}); upgrade capalloc"
        )
