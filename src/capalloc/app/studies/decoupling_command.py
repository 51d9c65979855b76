"""The command `capalloc decoupling-study`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import xarray as xr
from rich.table import Table

from capalloc.app.cli.lines_in_a_log import lines_in_a_log
from capalloc.app.cli.options import Verbosity
from capalloc.app.studies.decoupling_figure import plot_decoupling_study
from capalloc.app.studies.decoupling_study import decoupling_study
from capalloc.app.studies.frame import StudyFrame


def run_decoupling_study(verbosity: Verbosity, out: Path, seed: int, depth: int, channels: int, draws: int) -> None:
    """Run the study into the folder `out`."""
    with lines_in_a_log(verbosity):
        study = decoupling_study(depth=depth, channels=channels, draws=draws, seed=seed, progress=not verbosity.quiet)
    DECOUPLING_FRAME.deliver(study, out, verbosity)


def profiles(study: xr.Dataset) -> pd.DataFrame:
    """Find decoupling, total and width (standard deviation) of each profile."""
    law = study["capacity"] / study["capacity"].sum("input")
    middle = (law * study["input"]).sum("input")
    width = (law * (study["input"] - middle) ** 2).sum("input") ** 0.5
    rows = {"decoupling": study["decoupling"], "capacity": study["total"], "width": width}
    return pd.DataFrame(rows, index=pd.Index(study["setting"].values, name="setting"))


def summary(study: xr.Dataset) -> Table:
    """Make the table for a terminal."""
    table = Table("setting", "decoupling", "capacity", "width (std. of the profile)")
    for setting, row in profiles(study).iterrows():
        table.add_row(str(setting), f"{row['decoupling']:.3f}", f"{row['capacity']:.2f}", f"{row['width']:.3f}")
    return table


DECOUPLING_FRAME = StudyFrame("decoupling-study", 1, plot_decoupling_study, ("profiles", profiles), summary)
