"""The class of every result: a Dataset with a declared schema that saves, loads, exports and shows itself."""

from __future__ import annotations

import inspect
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Never, Self

import numpy as np
import xarray as xr

from capalloc import results  # its drawing modules load matplotlib, when they are used
from capalloc._runtime.files import SavedFile, write_dataset
from capalloc.results.text import as_text
from capalloc.results.view import Map, View

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The setting that says what a result was made from: model, inputs, arguments, seed, versions.
MADE = "made"
#: Attributes that a view has a place of its own for.
PLACED = (MADE, "notes")


@dataclass(frozen=True)
class Variable:
    """A variable that a Dataset must have: its axes, and the range of its values."""

    axes: tuple[str, ...]  # a last "*" stands for one axis or more
    low: float = -math.inf
    high: float = math.inf
    finite: bool = False  # else NaN is allowed

    def check(self, name: str, variable: xr.Variable) -> None:
        """Raise ValueError where axes or values are others."""
        open_ended = self.axes[-1:] == ("*",)
        fixed = self.axes[:-1] if open_ended else self.axes
        if variable.dims[: len(fixed)] != fixed or (variable.ndim > len(fixed)) != open_ended:
            raise ValueError(f"{name} has axes {variable.dims}; it needs ({', '.join(self.axes)})")
        values = variable.values
        if self.finite and not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or inf")
        if math.isfinite(self.low) and ((values < self.low) | (values > self.high)).any():
            least = "not be negative" if self.low == 0 else f"be at least {self.low:g}"
            allowed = least if math.isinf(self.high) else f"lie in [{self.low:g}, {self.high:g}]"
            worst = values.min() if (values < self.low).any() else values.max()
            raise ValueError(f"{name} must {allowed}, but holds {float(worst):.6g}")


class Result(ABC):
    """A Dataset with the variables of the class's schema, and settings among its attributes.

    Variables and settings are attributes of the result too. A kind of result is a subclass with a schema, `view` and
    what else it wants to check; in `capalloc.results.kinds.RESULTS`, `load` knows its files.

    Args:
        data: the Dataset.

    Raises:
        ValueError: a variable or setting is missing, or an invariant does not hold.
        TypeError: attributes hold what JSON cannot.

    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1
    #: What makes such a Dataset, for errors.
    MAKER: ClassVar[str]
    SCHEMA: ClassVar[Mapping[str, Variable]]
    #: Attributes that must be there.
    SETTINGS: ClassVar[tuple[str, ...]] = ()
    #: Tables of `to_pandas` by what they have a row for each of, the default first.
    ROWS: ClassVar[Mapping[str, Callable[[Any], pd.DataFrame]]]
    #: Properties that a program reads.
    VALUES: ClassVar[tuple[str, ...]] = ()

    data: xr.Dataset

    def __init__(self, data: xr.Dataset) -> None:
        held = data.copy()
        held.attrs = plain_attrs(data.attrs)
        object.__setattr__(self, "data", held)
        self._check_schema()
        self.check()

    def __getattr__(self, name: str) -> Any:
        """A variable of the schema, or a setting; lists, as JSON keeps them, are tuples again."""
        if name in self.SCHEMA:
            return self.data[name]
        if name not in self.SETTINGS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}", name=name, obj=self)
        value = self.data.attrs[name]
        return tuple(value) if isinstance(value, list) else value

    def __setattr__(self, name: str, value: Any) -> Never:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _check_schema(self) -> None:
        there = {*map(str, self.data.variables), *self.data.attrs}
        if missing := sorted({*self.SCHEMA, *self.SETTINGS} - there):
            raise ValueError(f"the dataset lacks {missing}; {self.MAKER} makes one that has them")
        for name, variable in self.SCHEMA.items():
            variable.check(name, self.data.variables[name])

    def check(self) -> None:  # noqa: B027
        """Raise ValueError where an invariant does not hold that the schema cannot say."""

    @abstractmethod
    def view(self) -> View:
        """Say everything it has to show, as plain data."""

    def _view(self, **parts: Any) -> View:
        """A view of these parts, and of what every result says."""
        attrs = self.data.attrs
        common = {
            "kind": f"{type(self).__module__.partition('.')[0]}.{type(self).__name__}",
            "notes": [str(note) for note in attrs.get("notes") or ()],
            "values": {name: getattr(self, name) for name in self.VALUES},
            "rows": tuple(self.ROWS),
            "settings": {name: value for name, value in attrs.items() if name not in PLACED},
            "made": attrs.get(MADE, {}),
        }
        return View(**(common | parts))

    def replace(self, **changes: Any) -> Self:
        """The same result with other values for some of the arguments that it is made from."""
        if changes.keys() == {"attrs"}:  # nothing that is checked changes
            made = type(self).__new__(type(self))
            held = self.data.copy()
            held.attrs = plain_attrs(changes["attrs"])
            object.__setattr__(made, "data", held)
            return made
        own = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return type(self)(**(own | changes))

    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset, settings among its attributes; `from_xarray` makes the result of it again."""
        return self.data.copy()

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Self:
        """The result that holds this Dataset.

        Raises:
            ValueError: a variable is missing, or an invariant does not hold.

        """
        made = cls.__new__(cls)
        Result.__init__(made, dataset)
        return made

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
        return self.ROWS[chosen](self)

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
        return cls.from_file(SavedFile.read(path))

    @classmethod
    def from_file(cls, file: SavedFile) -> Self:
        """The result that a file holds, once it is read."""
        dataset = file.dataset(cls.FORMAT, cls.VERSION)
        try:
            return cls.from_xarray(dataset)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.path} is damaged: {error}") from error

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw its first map, or else its first chart, on `ax` or on a new figure."""
        view = self.view()
        if view.maps:
            return _drawn(view.maps[0], ax)
        if not view.charts:
            raise ValueError(f"a {view.kind} has no picture: neither a map nor a chart")
        return results.plots.plot_chart(view.charts[0], ax)

    def figure(self) -> Figure:
        """Make a figure of its maps and all its charts, side by side."""
        view = self.view()
        charts = [partial(results.plots.plot_chart, chart) for chart in view.charts]
        others = [partial(_drawn, shown) for shown in view.maps[1:]]
        return results.plots.panels([self.plot, *others, *charts] if view.maps or not charts else charts)

    def __repr__(self) -> str:
        return as_text(self.view())

    def _repr_html_(self) -> str:
        return results.card.as_html(self.view())


def _drawn(shown: Map, ax: Axes | None) -> Axes:
    return results.plots.plot_map(shown.values, ax, shown.title, unit=shown.unit)


def words_for(attrs: Mapping[Any, Any], axes: Iterable[Any]) -> dict[str, str]:
    """The model's words for the inputs' axes, by name; itself where there is none."""
    names, words = list(map(str, axes)), attrs.get(MADE, {}).get("axes") or ()
    return dict(zip(names, words if len(words) == len(names) else names, strict=True))


def axis_rows(axis: str) -> Callable[[Result], pd.DataFrame]:
    """The table of `to_pandas` with a row for each entry of an axis."""
    return lambda result: axis_frame(result.data, axis)


def axis_frame(data: xr.Dataset, axis: str) -> pd.DataFrame:
    """A row for each entry of an axis, indexed by its name: the variables over that axis alone."""
    columns = [name for name, variable in data.data_vars.items() if variable.dims == (axis,)]
    frame: pd.DataFrame = data[columns].to_dataframe()
    return frame


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """A copy of attributes as JSON keeps them."""
    plain = {}
    for key, value in attrs.items():
        try:
            plain[str(key)] = json.loads(json.dumps(value, default=_scalar))
        except TypeError as error:
            raise TypeError(
                f"attrs[{key!r}] is a {type(value).__name__}, which a file cannot keep ({error}); "
                "use numbers, strings, booleans, None, and lists or mappings of them"
            ) from error
    return plain


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no plain value: {type(value).__name__}")
