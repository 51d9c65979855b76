"""How a result shows itself: as lines of text, and as a card of HTML in a notebook.

A card is strings, tables of strings and one map of numbers; nothing here knows what a result is. The HTML holds no
script and no address, takes its colours from the page it stands on, and escapes every name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from markupsafe import Markup

from capalloc.results.plots import colours, gradient, limits, map_svg, png
from capalloc.results.regions import image
from capalloc.results.templating import render
from capalloc.results.words import Tables, heading, in_lines

#: Rows of a table as text, and as HTML; the rest are counted.
MOST_LINES, MOST_ROWS = 12, 200
#: Tables of HTML with more rows than this are closed until they are asked for.
OPEN_ROWS = 8
#: Up to this many cells, each names itself; more cells on a side than the other number are drawn together.
MAX_CELLS, MAX_SIDE = 256, 256
#: Maps of a longer shape than this are drawn as a band.
LONGEST = 6


@dataclass(frozen=True)
class Card:
    """What a result says of itself."""

    kind: str  # the name of its class
    heading: str  # in a few words
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Tables = field(default_factory=dict)
    details: Tables = field(default_factory=dict)  # of HTML alone
    notes: Sequence[str] = ()
    map: xr.DataArray | None = None  # of HTML alone
    label: str = "capacity in parameters"  # what the map holds


class Shown(ABC):
    """A result that a person reads."""

    @abstractmethod
    def _card(self) -> Card:
        """What it says of itself."""

    def __repr__(self) -> str:
        return as_text(self._card())

    def _repr_html_(self) -> str:
        return as_html(self._card())


def as_text(card: Card) -> str:
    """A card as lines: facts, tables with aligned columns, notes; long tables are cut."""
    width = max(map(len, card.facts), default=0)
    facts = "".join(f"\n  {name:<{width}}  {value}" for name, value in card.facts.items())
    tables = {title: _cut(rows, MOST_LINES) for title, rows in card.tables.items()}
    return heading(card.kind, card.heading) + facts + in_lines(tables, card.notes)


def as_html(card: Card) -> str:
    """A card as a piece of a page."""
    tables = {**card.tables, **card.details}
    coarse, together = (None, {}) if card.map is None else _coarse(card.map)
    return render(
        "card.html",
        card=card,
        tables=[(title, len(rows) - 1, _cut(rows, MOST_ROWS)) for title, rows in tables.items()],
        open_rows=OPEN_ROWS,
        picture="" if coarse is None else _picture(coarse, card.label),
        scale=[] if coarse is None else [f"{end:.3g}" for end in limits(coarse)],
        together=" x ".join(f"{axis} {number}" for axis, number in together.items()),
        gradient=gradient(),
    )


def _picture(flat: xr.DataArray, label: str) -> Markup:
    """A map as SVG, or as a band where it is much longer than wide."""
    rows, columns = np.atleast_2d(flat.to_numpy()).shape
    if max(rows, columns) <= LONGEST * min(rows, columns):
        return map_svg(flat, label=label, max_cells=MAX_CELLS)
    cells = np.atleast_2d(flat.to_numpy().astype(float))
    rgb = colours(cells / limits(flat)[1])
    return Markup('<img class="{}" src="{}" alt="{}">').format("tall" if rows > columns else "wide", png(rgb), label)


def _coarse(values: xr.DataArray) -> tuple[xr.DataArray, dict[str, int]]:
    """The map over its last two axes, neighbours summed where there are too many to see; how many, by axis."""
    flat = image(values).drop_vars(values.coords, errors="ignore")
    together = {str(dim): -(-size // MAX_SIDE) for dim, size in flat.sizes.items() if size > MAX_SIDE}
    if not together:
        return flat, {}
    coarse: xr.DataArray = flat.astype(float).coarsen(together, boundary="pad").sum()
    return coarse, together


def _cut(rows: Sequence[Sequence[str]], most: int) -> Sequence[Sequence[str]]:
    """A table, header first, of at most so many rows; a last line says how many are left out."""
    if len(rows) - 1 <= most:
        return rows
    left_out = len(rows) - most
    return [*rows[:most], [f"… {left_out} more", *[""] * (len(rows[0]) - 1)]]
