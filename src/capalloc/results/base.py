"""What every result has: it is one Dataset, a file that needs no model, and tidy tables."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import xarray as xr

from capalloc._runtime.files import read_dataset, write_dataset

if TYPE_CHECKING:
    import pandas as pd


class Savable(ABC):
    """A result that is one Dataset in a file: it saves, loads and exports with no model at hand."""

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1
    #: What `to_pandas` has a row for each of, the default first.
    ROWS: ClassVar[Collection[str]]

    @abstractmethod
    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset, settings among its attributes; `from_xarray` makes the result of it again."""

    @classmethod
    @abstractmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Self:
        """The result that `to_xarray` was called on.

        Raises:
            ValueError: a variable is missing, or an invariant does not hold.

        """

    def to_pandas(self, rows: str | None = None) -> pd.DataFrame:
        """A tidy table: a row for each of `rows`, a column for everything known of it.

        Args:
            rows: one of `ROWS`, the first by default.

        Raises:
            ValueError: the result has no such rows.

        """
        chosen = next(iter(self.ROWS)) if rows is None else rows
        if chosen not in self.ROWS:
            raise ValueError(f"rows must be one of {tuple(self.ROWS)}, got {rows!r}")
        return self._frame(chosen)

    @abstractmethod
    def _frame(self, rows: str) -> pd.DataFrame:
        """The table of rows that are known to be there."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a NetCDF file, whole or not at all; `load` reads it with no model at hand.

        Raises:
            FileNotFoundError: the folder of `path` does not exist.
            IsADirectoryError: `path` is a folder.

        """
        write_dataset(self.to_xarray(), path, self.FORMAT, self.VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; nothing in the file is executed or unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, foreign, or from a newer capalloc.

        """
        dataset = read_dataset(path, cls.FORMAT, cls.VERSION)
        try:
            return cls.from_xarray(dataset)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True, eq=False, repr=False)
class Stored(Savable):
    """A result that holds its Dataset, and whose rows are the entries of the Dataset's axes."""

    data: xr.Dataset

    #: The axis of the Dataset that each kind of rows is on.
    ROWS: ClassVar[Mapping[str, str]]

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError where an invariant does not hold."""

    def to_xarray(self) -> xr.Dataset:
        """The Dataset, settings among its attributes."""
        return self.data.copy()

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Self:
        """The result that holds this Dataset.

        Raises:
            ValueError: a variable is missing, or an invariant does not hold.

        """
        return cls(dataset)

    def _frame(self, rows: str) -> pd.DataFrame:
        return axis_frame(self.data, self.ROWS[rows])


def axis_frame(data: xr.Dataset, axis: str) -> pd.DataFrame:
    """A row for each entry of an axis, indexed by its name: the variables over that axis alone."""
    columns = [name for name, variable in data.data_vars.items() if variable.dims == (axis,)]
    frame: pd.DataFrame = data[columns].to_dataframe()
    return frame


def check_variables(dataset: xr.Dataset, needed: Iterable[str], maker: str) -> None:
    """An error that names the variables a Dataset lacks, and what makes one that has them."""
    missing = sorted(set(needed) - set(map(str, dataset.variables)))
    if missing:
        raise ValueError(f"the dataset lacks {missing}; {maker} makes one that has them")
