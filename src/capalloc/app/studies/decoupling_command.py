"""The work of the command `capalloc decoupling-study`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xarray as xr
from rich.console import Console
from rich.table import Table

from capalloc._runtime.files import write_dataset
from capalloc.app.cli.as_json import print_json
from capalloc.app.cli.options import Verbosity
from capalloc.app.studies.decoupling_plot import plot_study
from capalloc.app.studies.decoupling_profile import FORMAT, VERSION, decoupling_study
from capalloc.results.plots import save_figure

NAME = "decoupling-study"


def run_decoupling_study(
    verbosity: Verbosity,
    out: Path = Path("."),
    seed: int = 0,
    depth: int = 6,
    channels: int = 2,
    draws: int = 8,
) -> None:
    """Run the study, write its table and figure to the folder `out`, and print a summary."""
    study = decoupling_study(depth=depth, channels=channels, draws=draws, seed=seed, progress=not verbosity.quiet)
    out.mkdir(parents=True, exist_ok=True)
    table, picture = out / f"{NAME}.nc", out / f"{NAME}.png"
    write_dataset(study, table, FORMAT, VERSION)
    save_figure(plot_study(study), picture)
    if verbosity.as_json:
        print_json({"settings": study.attrs, "profiles": [*profiles(study)]})
    else:
        Console().print(summary(study))
    verbosity.tell(f"wrote {table} and {picture}")


def profiles(study: xr.Dataset) -> Iterator[dict[str, float | str]]:
    """Decoupling, total and width (standard deviation) of each profile."""
    for name in study["setting"].to_numpy():
        row = study.sel(setting=name)
        law = row["capacity"] / row["capacity"].sum()
        middle = (law * row["input"]).sum()
        width = float((law * (row["input"] - middle) ** 2).sum() ** 0.5)
        yield {
            "setting": str(name),
            "decoupling": float(row["decoupling"]),
            "capacity": float(row["total"]),
            "width": width,
        }


def summary(study: xr.Dataset) -> Table:
    """Decoupling, total and width of each profile, as a table."""
    table = Table("setting", "decoupling", "capacity", "width (std. of the profile)")
    for setting, decoupling, capacity, width in (p.values() for p in profiles(study)):
        table.add_row(str(setting), f"{decoupling:.3f}", f"{capacity:.2f}", f"{width:.3f}")
    return table
