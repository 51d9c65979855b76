"""The work of the command `capalloc linear-study`."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from capalloc._runtime.files import atomically, write_dataset, write_text
from capalloc.app.cli.as_json import print_json, records
from capalloc.app.cli.options import Verbosity
from capalloc.app.studies.linear_page import columns, groups, page
from capalloc.app.studies.linear_plot import plot_study
from capalloc.app.studies.linear_study import FORMAT, VERSION, Settings, linear_study

NAME = "linear-study"
DEFAULT = Settings()


def run_linear_study(
    verbosity: Verbosity,
    out: Path = Path(NAME),
    architecture: list[str] | None = None,
    process: list[str] | None = None,
    lags: int = DEFAULT.lags,
    steps: int = DEFAULT.steps,
    seed: int = DEFAULT.seed,
    restarts: int = DEFAULT.restarts,
    root: str = DEFAULT.root,
) -> None:
    """Run the study, write it to the folder `out`, and print a summary; finished cells there are not run again."""
    settings = Settings(lags=lags, steps=steps, seed=seed, restarts=restarts, root=root)  # type: ignore[arg-type]
    study = linear_study(settings, architecture, process, cells=out / "cells", progress=not verbosity.quiet)
    write_study(study, out)
    if verbosity.as_json:
        print_json({"settings": study.attrs, "cells": records(cells(study))})
    else:
        Console().print(summary(study))
    verbosity.tell(f"wrote {out / NAME}.nc, .png and .html")


def cells(study: xr.Dataset) -> pd.DataFrame:
    """A row for each architecture and process."""
    numbers = [name for name, v in study.data_vars.items() if set(v.dims) == {"architecture", "process"}]
    return study[numbers].to_dataframe()


def write_study(study: xr.Dataset, folder: Path) -> None:
    """NetCDF, PNG and HTML, each whole or not at all."""
    write_dataset(study, folder / f"{NAME}.nc", FORMAT, VERSION)
    picture = draw(study)
    with atomically(folder / f"{NAME}.png") as temporary:
        temporary.write_bytes(picture)
    write_text(folder / f"{NAME}.html", page(study, picture))


def draw(study: xr.Dataset) -> bytes:
    """The figure as PNG, without a note of when it was made."""
    figure = plot_study(study)
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    finally:
        plt.close(figure)
    return buffer.getvalue()


def summary(study: xr.Dataset) -> Table:
    """The table for a terminal."""
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
