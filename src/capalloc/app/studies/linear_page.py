"""The linear study as a table of text and as a page, from its dataset alone."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import xarray as xr
from markupsafe import Markup

from capalloc.app.pages import PAGES


@dataclass(frozen=True)
class Row:
    """One architecture: its name and what the columns say of it."""

    name: str
    cells: list[str]


@dataclass(frozen=True)
class Group:
    """One process: the loss of the best filter, and its architectures."""

    name: str
    best: str
    rows: list[Row]


def columns(study: xr.Dataset) -> list[str]:
    """What the cells of a row are."""
    return ["params", "capacity", "excess", *(f"≤ {k:d}" for k in study["within"].values)]


def groups(study: xr.Dataset) -> list[Group]:
    """The table, process by process."""
    return [
        Group(
            str(process),
            f"{float(study['best_loss'].sel(process=process)):.4g}",
            [_row(study.sel(process=process, architecture=name), str(name)) for name in study["architecture"].values],
        )
        for process in study["process"].values
    ]


def page(study: xr.Dataset, picture: bytes) -> Markup:
    """One HTML file that needs no network and no script; `picture` is the figure as PNG."""
    return PAGES.render(
        "linear_study.html",
        title="Linear filters: capacity and memory",
        settings=study.attrs,
        picture="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        columns=columns(study),
        groups=groups(study),
    )


def _row(part: xr.Dataset, name: str) -> Row:
    star = "" if bool(part["converged"]) else " *"
    excess = float(part["excess"])
    near = [f"{float(value):.3g}" for value in part["within_lags"].values]
    shown = f"{excess:.1e}" if excess > 1e-12 else "0"
    return Row(name, [f"{int(part['params'])}", f"{float(part['total']):.4g}", shown + star, *near])
