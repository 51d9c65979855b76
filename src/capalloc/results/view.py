"""The view of a result, as plain data: facts, tables, charts, a map and advice.

`Result.view()` makes one. Text, notebook card, command-line table, JSON, training log and report each render as much
of it as they have room for. Nothing here knows a result, and nothing here knows how it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import xarray as xr
from numpy.typing import ArrayLike

Style = Literal["line", "dashed", "dots", "thin"]


@dataclass(frozen=True)
class Fact:
    """A figure: its name, its value, and what to know of it."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text, the first cell their name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    sizes: Sequence[float] | None = None  # numbers of the second column; where not all rows fit, the largest are kept
    detail: bool = False  # left out of a few lines of text
    apart: bool = False  # left out on a terminal too, for a card, a report or a file
    spare: Sequence[str] = ()  # columns that are left out, the first of these first, where there is no room for all
    bars: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by column: shares that a page draws as bars

    @property
    def of_words(self) -> list[bool]:
        """Tell for each column whether it holds words, which stand to the left and may wrap, and not numbers."""
        cells = ([row[k] for row in self.rows if k < len(row)] for k in range(len(self.head)))
        return [k == 0 or any(c[:1].isalpha() and len(c) > 3 for c in column) for k, column in enumerate(cells)]

    def narrow(self, columns: Sequence[str]) -> Table:
        """The same without some columns."""
        kept = [k for k, name in enumerate(self.head) if name not in columns]
        rows = [[row[k] for k in kept] for row in self.rows]
        return replace(self, head=[self.head[k] for k in kept], rows=rows)

    def first(self, most: int) -> Sequence[Sequence[str]]:
        """Return at most so many rows, the last of which says how many are left out."""
        if len(self.rows) <= most:
            return self.rows
        return [*self.rows[: most - 1], [f"… {len(self.rows) - most + 1} more", *[""] * (len(self.head) - 1)]]


@dataclass(frozen=True)
class Line:
    """One thing drawn on a chart."""

    name: str  # in the legend; empty for none
    x: ArrayLike
    y: ArrayLike
    style: Style = "line"
    colour: int = 0
    spread: ArrayLike | None = None  # two standard errors
    band: tuple[ArrayLike, ArrayLike] | None = None  # low and high end of what y is the mean of
    named: bool = False  # whether its points have the names of the horizontal axis


@dataclass(frozen=True)
class Axis:
    """A label, limits that the data would not give, and the names of places along it."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False  # ticks at integers
    names: Sequence[str] = ()


def by_depth(what: str, names: Sequence[str]) -> Axis:
    """The axis of layers, blocks or gates: places 1, 2, ... with their names."""
    return Axis(f"{what}, inputs first", 0.5, len(names) + 0.5, whole=True, names=names)


@dataclass(frozen=True)
class Chart:
    """Lines on two axes, the first drawn lowest."""

    title: str
    lines: Sequence[Line]
    x: Axis
    y: Axis
    label: str = ""

    @property
    def described(self) -> str:
        """The chart in words, for those who do not see it."""
        lines = ", ".join(line.name for line in self.lines if line.name)
        return self.label or f"{self.title}: {self.y.label} against {self.x.label}" + (f"; {lines}" if lines else "")


@dataclass(frozen=True)
class Map:
    """Values over the inputs' own axes."""

    values: xr.DataArray
    unit: str = "parameters"
    title: str = ""
    caption: str = "capacity in parameters"  # of values times `factor`, in a card
    factor: float = 1.0
    over: Sequence[str] = ()  # axes that a card draws it over, the last two by default
    box: Mapping[str, tuple[int, int]] | None = None  # start and stop of a theoretical field, by axis
    name: str = ""  # of the input, where there are several

    @property
    def small(self) -> xr.DataArray:
        """The map summed over all axes but those that a still picture has."""
        over = self.over or self.values.dims[-2:]
        return self.values.sum([axis for axis in self.values.dims if axis not in over])


@dataclass(frozen=True)
class View:
    """Everything that a result says of itself."""

    kind: str  # where its class is found, such as capalloc.Scaling
    title: str  # of a section about it
    heading: str  # in a few words
    about: str = ""  # a sentence for those who see such a result for the first time
    facts: Sequence[Fact] = ()
    brief: int | None = None  # so many of the facts are enough where only a few lines fit; None for all
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    maps: Sequence[Map] = ()  # one, or one for each of several inputs
    advice: Sequence[str] | None = None  # None where it gives none, empty where nothing asks for a change
    settled: str = ""  # where advice is empty: what was looked at, and how it is
    notes: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)  # for programs, by the name of the property
    series: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # for logs: a value for each name
    rows: Sequence[str] = ()  # tables of `to_pandas` that a program reads, without those of maps
    settings: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)  # what it was made from, as far as the result says


#: The figure that says how far the others may be trusted.
STANDING = "these numbers"
HERE = "but for rounding, for these examples"


def standing(certainty: str, more: str = HERE) -> Fact:
    """The figure that says whether the others are exact, estimated or a guide."""
    return Fact(STANDING, certainty, more)


def beside(facts: Iterable[Fact]) -> list[Fact]:
    """The figures without the one that says how far they may be trusted."""
    return [fact for fact in facts if fact.name != STANDING]


def estimate(value: float, error: float | None = None, digits: str = ".3f", doubt: str = ".3f") -> str:
    """A number with its standard error where one is known, and no sign before zeros; a dash for none."""
    if math.isnan(value):
        return "–"
    return f"{value:z{digits}}" + ("" if error is None or math.isnan(error) else f" ± {error:{doubt}}")


def counted(value: float, error: float | None = None) -> str:
    """A number of parameters to four digits, whole above; with a standard error to the second digit of that."""
    if not error or math.isnan(error):
        return f"{round(value, max(0, 3 - math.floor(math.log10(abs(value or 1.0))))):z,.12g}"
    shown = max(0, 1 - math.floor(math.log10(error)))
    return f"{round(value, shown):z,.12g} ± {round(error, shown):,.12g}"


def named(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
