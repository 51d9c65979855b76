"""The command `capalloc linear-study`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import typer
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from capalloc.linear.study import ARCHITECTURES, FORMAT, PROCESSES, VERSION, Settings, linear_study
from capalloc.linear.study_page import columns, groups, page
from capalloc.linear.study_plot import plot_study
from capalloc.storage import atomically, write_dataset, write_text

NAME = "linear-study"
DEFAULT = Settings()


def run_linear_study(
    out: Annotated[Path, typer.Option(help="Folder for NetCDF, PNG and HTML, and for finished cells.")] = Path(NAME),
    architecture: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ARCHITECTURES)}; all.")] = None,
    process: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PROCESSES)}; all.")] = None,
    lags: Annotated[int, typer.Option(min=1, help="Values of the window.")] = DEFAULT.lags,
    steps: Annotated[int, typer.Option(min=1, help="Steps ahead to predict.")] = DEFAULT.steps,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights.")] = DEFAULT.seed,
    restarts: Annotated[int, typer.Option(min=1, help="Initial weights to train from.")] = DEFAULT.restarts,
    root: Annotated[str, typer.Option(help="symmetric or cholesky (innovations).")] = DEFAULT.root,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Capacity against lag of linear architectures trained on processes of different memory.

    Started again with the same settings, it goes on where it was cut short.
    """
    settings = Settings(lags=lags, steps=steps, seed=seed, restarts=restarts, root=root)  # type: ignore[arg-type]
    study = linear_study(settings, architecture, process, cells=out / "cells", progress=not quiet)
    write_study(study, out)
    console = Console()
    console.print(summary(study))
    console.print(f"wrote {out / NAME}.nc, .png and .html", markup=False, soft_wrap=True)


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
