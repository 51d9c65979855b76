"""The marks and axes that the figures of all studies share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes

#: Okabe and Ito's colours, which colour-blind readers tell apart; figures give each a marker of its own too.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
YELLOW, BLACK, GREY = "#F0E442", "#000000", "#888888"


def points(
    ax: Axes,
    x: Any,
    y: Any,
    error: Any,
    style: tuple[str, str],
    label: str | None = None,
    *,
    filled: bool = False,
    **more: Any,
) -> None:
    """Draw measured values with their standard errors, in a colour and a marker, hollow unless filled."""
    colour, marker = style
    face = colour if filled else "white"
    look = {"markersize": 6, "capsize": 3} | more
    ax.errorbar(x, y, error, fmt=marker, color=colour, markerfacecolor=face, label=label, **look)


def log_axis(ax: Axes, values: Iterable[Any], label: str, base: int = 10) -> None:
    """Make a logarithmic horizontal axis with a tick at each value, and no other."""
    ticks = sorted({float(value) for value in values})
    ax.set_xscale("log", base=base)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(label)
