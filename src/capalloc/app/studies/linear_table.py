"""The linear study as a table of text and as a page, from its dataset alone."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pandas as pd
import xarray as xr
from markupsafe import Markup
from rich import box
from rich.table import Table

from capalloc.app.pages import PAGES


@dataclass(frozen=True)
class ArchitectureRow:
    """One architecture: its name and the cells under the columns."""

    name: str
    cells: list[str]


@dataclass(frozen=True)
class ProcessRows:
    """One process: the loss of the best filter, and its architectures."""

    name: str
    best: str
    rows: list[ArchitectureRow]


def cells(study: xr.Dataset) -> pd.DataFrame:
    """Make a row of numbers for each architecture and process."""
    numbers = [name for name, v in study.data_vars.items() if set(v.dims) == {"architecture", "process"}]
    return study[numbers].to_dataframe()


def columns(study: xr.Dataset) -> list[str]:
    """Name the cells of a row."""
    return ["params", "capacity", "excess", *(f"≤ {k:d}" for k in study["within"].values)]


def groups(study: xr.Dataset) -> list[ProcessRows]:
    """Make the table, process by process."""
    return [
        ProcessRows(
            str(process),
            f"{float(study['best_loss'].sel(process=process)):.4g}",
            [_row(study.sel(process=process, architecture=name), str(name)) for name in study["architecture"].values],
        )
        for process in study["process"].values
    ]


def page(study: xr.Dataset, picture: bytes) -> Markup:
    """Make one HTML file that needs no network and no script; `picture` is the figure as PNG."""
    return PAGES.render(
        "linear_study.html",
        title="Linear filters: capacity and memory",
        settings=study.attrs,
        picture="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        columns=columns(study),
        groups=groups(study),
    )


def summary(study: xr.Dataset) -> Table:
    """Make the table for a terminal."""
    note = "excess: loss over the best of the window; * stopped before the gradient vanished"
    table = Table(caption=note, box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("architecture", no_wrap=True)
    for name in columns(study):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups(study):
        table.add_row(f"[bold]{group.name}[/]", "", "", f"of {group.best}")
        for row in group.rows:
            table.add_row(f"  {row.name}", *row.cells)
    return table


def _row(part: xr.Dataset, name: str) -> ArchitectureRow:
    star = "" if bool(part["converged"]) else " *"
    excess = float(part["excess"])
    near = [f"{float(value):.3g}" for value in part["within_lags"].values]
    shown = f"{excess:.1e}" if excess > 1e-12 else "0"
    return ArchitectureRow(name, [f"{int(part['params'])}", f"{float(part['total']):.4g}", shown + star, *near])
