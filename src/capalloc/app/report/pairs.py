"""Two maps held against each other: a scatter of their values, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from capalloc.app.pages import PAGES
from capalloc.app.report.charts import draw
from capalloc.app.report.section import Section, exact
from capalloc.results.allocation import Allocation
from capalloc.results.comparison import NULL, agreement, doubt, same_data
from capalloc.results.svg import colours, png
from capalloc.results.view import Axis, Chart, Fact, Line, estimate

#: Points up to which each is drawn; above, the scatter is a picture of how many fall where.
SCATTERED = 2000
DENSITY_BINS = 96


@dataclass(frozen=True)
class Pair:
    """A scatter and its figures."""

    facts: list[Fact]
    scatter: Markup
    counted: bool


def compared(key: str, members: Mapping[str, Allocation], of: str) -> list[Section]:
    """The first of a group against each other one; nothing for a group of one."""
    (first, a), *others = members.items()
    if not others:
        return []
    pairs = [_pair(first, a, name, b) for name, b in others]
    title = f"{first} against {others[0][0]}" if len(others) == 1 else f"{first} against the others{of}"
    body = PAGES.render("report/compare.html", pairs=pairs, first=first)
    return [Section(f"{key}-compared", title[:1].upper() + title[1:], body)]


def _pair(first: str, a: Allocation, second: str, b: Allocation) -> Pair:
    x, y = (m.capacity.to_numpy().astype(float).ravel() for m in (a, b))
    top = float(max(x.max(), y.max())) or 1.0
    agreed = {name: estimate(value) for name, value in agreement(a, b).items()}
    facts = [
        Fact(
            "total-variation distance",
            agreed["total_variation"],
            f"share of capacity that would have to move, the constant input counted; {doubt(a, b)}; "
            f"{agreed['total_variation_of_inputs']} among the inputs alone",
        ),
        Fact(
            "correlation of the maps",
            agreed["correlation"],
            f"1 for maps of one pattern; {agreed['correlation_backwards']} with the second map backwards, {NULL}",
        ),
        Fact(f"total of {second} over {first}", f"{b.total / a.total:.3f}" if a.total else "–"),
        *_data(a, b),
    ]
    largest = int(abs(y - x).argmax())
    where = f"parameters, on an input with {exact(x[largest])} in {first}"
    facts.append(Fact("largest difference", exact(y[largest] - x[largest]), where))
    label = f"Capacity of every input in {second} against {first}; points on the diagonal agree"
    counted = x.size > SCATTERED
    lines = [] if counted else [Line("", x, y, "dots")]
    lines.append(Line("", [0, top], [0, top], "thin", 1))
    edge = top * 1.04
    picture = _density(x, y, edge) if counted else ""
    chart = Chart("", lines, Axis(first, 0, edge), Axis(second, 0, edge), label)
    return Pair(facts, draw(chart, picture), counted)


def _data(a: Allocation, b: Allocation) -> list[Fact]:
    """Say so where the two stand on different examples."""
    if same_data(a, b) is not False:
        return []
    counts = " and ".join(str(result.attrs.get("num_examples", "?")) for result in (a, b))
    return [Fact("data", "different examples", f"{counts}; what differs may be the data")]


def _density(x: NDArray[np.float64], y: NDArray[np.float64], edge: float) -> str:
    """Draw how many points fall into each cell, on a logarithmic scale."""
    counts = np.histogram2d(y, x, bins=DENSITY_BINS, range=[[0, edge], [0, edge]])[0][::-1]
    shares = np.log1p(counts) / np.log1p(counts.max())
    return png(colours(shares))
