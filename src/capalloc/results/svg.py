"""Maps as a line of SVG or as a picture in a data address, for a page: viridis, or purple to orange for differences."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.image import imsave
from numpy.typing import NDArray

from capalloc.results.images import image, limits
from capalloc.results.templating import Templates

#: Colours that keep their order in grey and for colour-blind readers: for maps, and for differences.
SEQUENTIAL, DIVERGING = "viridis", "PuOr_r"
#: Up to this many cells, each is a rectangle that names itself; above, the map is one embedded picture.
MAX_CELLS = 4096
#: Up to this many columns the number is written in the cell.
MAX_LABELS = 12
TEMPLATES = Templates("results/templates")


def map_svg(
    values: xr.DataArray,
    scale: tuple[float, float] | None = None,
    signed: bool = False,
    label: str = "capacity per input",
    max_cells: int = MAX_CELLS,
    lines: Mapping[str, str] | None = None,
) -> Markup:
    """The map as inline SVG, without a script: each cell names its place and value where there are few.

    Args:
        values: capacity over the input's own axes.
        scale: lowest and highest value of the colours; the map's own `limits` by default.
        signed: a difference: diverging colours.
        label: what a screen reader says the picture is.
        max_cells: above this many the map is one embedded picture.
        lines: outlines drawn over it, SVG paths in cells by the class of each.

    """
    flat = image(values)
    cells = np.atleast_2d(np.asarray(flat, dtype=float))
    low, high = scale or limits(values, signed)
    rgb = colours((cells - low) / (high - low), signed)
    few = cells.size <= max_cells
    names = [str(dim) for dim in flat.dims]
    return TEMPLATES.render(
        "map.svg",
        label=label,
        rows=cells.shape[0],
        columns=cells.shape[1],
        cells=_cells(cells, rgb, names, signed) if few else [],
        png="" if few else png(rgb),
        lines=lines or {},
    )


def colours(shares: NDArray[np.float64], signed: bool = False) -> NDArray[np.float64]:
    """Colours of values in 0 .. 1: (*shape, 3)."""
    return np.asarray(colormaps[DIVERGING if signed else SEQUENTIAL](shares))[..., :3]


def png(rgb: NDArray[np.float64]) -> str:
    """A picture of one pixel per cell as a data address."""
    buffer = io.BytesIO()
    imsave(buffer, rgb, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def gradient(signed: bool = False) -> str:
    """The colour scale as a CSS gradient from left to right."""
    stops = ", ".join(to_hex(tuple(colour)) for colour in colours(np.linspace(0, 1, 9), signed))
    return f"linear-gradient(to right, {stops})"


def _cells(
    cells: NDArray[np.float64], rgb: NDArray[np.float64], names: list[str], signed: bool
) -> list[dict[str, object]]:
    written = cells.shape[1] <= MAX_LABELS
    return [
        {
            "row": row,
            "column": column,
            "place": ", ".join(f"{name} {k}" for name, k in zip(names, (row, column)[-len(names) :], strict=True)),
            "value": f"{value:{'+' if signed else ''}z.1f}" if written else "",
            "exact": f"{value:{'+' if signed else ''}.4g}",
            "fill": to_hex(tuple(rgb[row, column])),
            "ink": "#000" if rgb[row, column] @ (0.299, 0.587, 0.114) > 0.5 else "#fff",
        }
        for (row, column), value in np.ndenumerate(cells)
    ]
