"""A view as a card of HTML in a notebook.

It holds no script and no address, takes its colours from the page it stands on, and escapes every name.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from markupsafe import Markup

from capalloc.results.images import limits
from capalloc.results.svg import TEMPLATES, colours, gradient, map_svg, png
from capalloc.results.view import Map, View

#: Rows of a table, the rest are counted; a table of more rows than the second number is closed until it is asked for.
CARD_ROWS, OPEN_ROWS = 200, 8
#: Up to this many cells, each names itself; more cells on a side than the other number are drawn together.
NAMED_CELLS, MAX_SIDE = 256, 256
#: Maps of a longer shape than this are drawn as a band.
BAND = 6


def as_html(view: View) -> str:
    """A piece of a page: facts, tables, the map, advice and notes."""
    return TEMPLATES.render(
        "card.html",
        view=view,
        tables=[(table, table.first(CARD_ROWS)) for table in view.tables],
        open_rows=OPEN_ROWS,
        notes=[*(view.advice or ()), *view.notes],
        gradient=gradient(),
        pictures=[_pictured(shown) for shown in view.maps],
    )


def _pictured(shown: Map) -> dict[str, object]:
    """The picture of a map, the ends of its colours, and what it is of."""
    flat = shown.small * shown.factor
    flat = flat.drop_vars(flat.coords, errors="ignore")
    together = {str(dim): -(-size // MAX_SIDE) for dim, size in flat.sizes.items() if size > MAX_SIDE}
    if together:
        flat = flat.astype(float).coarsen(together, boundary="pad").sum()
    said = " x ".join(f"{axis} {number}" for axis, number in together.items())
    return {
        "picture": _picture(flat, shown.caption),
        "scale": [f"{end:.3g}" for end in limits(flat)],
        "caption": shown.caption + (f", in sums of {said}" if said else ""),
    }


def _picture(flat: xr.DataArray, label: str) -> Markup:
    """A map as SVG, or as a band where it is much longer than wide."""
    cells = np.atleast_2d(flat.to_numpy().astype(float))
    rows, columns = cells.shape
    if max(rows, columns) <= BAND * min(rows, columns):
        return map_svg(flat, label=label, max_cells=NAMED_CELLS)
    address = png(colours(cells / limits(flat)[1]))
    return Markup('<img class="{}" src="{}" alt="{}">').format("tall" if rows > columns else "wide", address, label)
