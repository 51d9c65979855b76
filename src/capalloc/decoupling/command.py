"""The command `capalloc decoupling-study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import xarray as xr
from rich.console import Console
from rich.table import Table

from capalloc.decoupling.study import FORMAT, VERSION, decoupling_study
from capalloc.decoupling.study_plot import plot_study
from capalloc.plots import save_figure
from capalloc.storage import write_dataset

NAME = "decoupling-study"


def run_decoupling_study(
    out: Annotated[Path, typer.Option(help="Folder for the table (NetCDF) and the figure (PNG).")] = Path("."),
    seed: Annotated[int, typer.Option(help="Seed of the random networks and inputs.")] = 0,
    depth: Annotated[int, typer.Option(min=2, help="Number of convolutions.")] = 6,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the hidden layers.")] = 2,
    draws: Annotated[int, typer.Option(min=2, help="Random networks averaged over.")] = 8,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Capacity profile of a stack of 1-D convolutions as its gates go from linear to pseudo-random."""
    study = decoupling_study(depth=depth, channels=channels, draws=draws, seed=seed, progress=not quiet)
    out.mkdir(parents=True, exist_ok=True)
    table, picture = out / f"{NAME}.nc", out / f"{NAME}.png"
    write_dataset(study, table, FORMAT, VERSION)
    save_figure(plot_study(study), picture)
    console = Console()
    console.print(summary(study))
    console.print(f"wrote {table} and {picture}", soft_wrap=True)


def summary(study: xr.Dataset) -> Table:
    """Decoupling, total and width of each profile."""
    table = Table("setting", "decoupling", "capacity", "width (std. of the profile)")
    for name in study["setting"].to_numpy():
        row = study.sel(setting=name)
        law = row["capacity"] / row["capacity"].sum()
        middle = (law * row["input"]).sum()
        width = float((law * (row["input"] - middle) ** 2).sum() ** 0.5)
        table.add_row(str(name), f"{float(row['decoupling']):.3f}", f"{float(row['total']):.2f}", f"{width:.3f}")
    return table
