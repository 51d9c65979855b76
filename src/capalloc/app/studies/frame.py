"""The frame of a study: files, figure, table and page from its dataset, and cells kept from run to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from capalloc._runtime.files import read_dataset, write_dataset, write_text
from capalloc.app.cli.as_json import records
from capalloc.app.cli.deliver import show
from capalloc.app.cli.options import Verbosity
from capalloc.results.plots import save_figure


@dataclass(frozen=True)
class StudyFrame:
    """The views of a study.

    Args:
        name: of the command and the files.
        version: of the format of its NetCDF file.
        plot: its figure.
        rows: the word for its rows in JSON, and these.
        table: the same for a terminal.
        page: one HTML file about the dataset and the bytes of the picture, if there is one.

    """

    name: str
    version: int
    plot: Callable[[xr.Dataset], Figure]
    rows: tuple[str, Callable[[xr.Dataset], pd.DataFrame]]
    table: Callable[[xr.Dataset], Table]
    page: Callable[[xr.Dataset, bytes], str] | None = None

    def deliver(self, study: xr.Dataset, folder: Path, verbosity: Verbosity) -> None:
        """Write NetCDF, PNG and the page into the folder, each whole or not at all, and print the numbers."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / self.name
        write_dataset(study, stem.with_suffix(".nc"), f"capalloc-{self.name}", self.version)
        save_figure(self.plot(study), stem.with_suffix(".png"))
        if self.page is not None:
            write_text(stem.with_suffix(".html"), self.page(study, stem.with_suffix(".png").read_bytes()))
        word, rows = self.rows
        show(verbosity, {"settings": study.attrs, word: records(rows(study))}, self.table(study))
        verbosity.tell(f"wrote {stem}{'.nc and .png' if self.page is None else '.nc, .png and .html'}")

    def read(self, folder: Path) -> xr.Dataset:
        """Read what `deliver` wrote."""
        return read_dataset(folder / f"{self.name}.nc", f"capalloc-{self.name}", self.version)


def kept(path: Path, name: str, wanted: Mapping[str, Any], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """Read a cell from its file if it was computed with the same settings, else compute it and keep it there."""
    if path.is_file():
        try:
            found = read_dataset(path, name, 1)
        except ValueError:  # damaged: compute it again
            found = xr.Dataset()
        if found.attrs == wanted:
            return found.drop_attrs()
    result = compute()
    write_dataset(result.assign_attrs(wanted), path, name, 1)
    return result


def panels(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> list[Axes]:
    """Make a new figure of rows and columns of axes; row by row."""
    figure = plt.figure(figsize=size, layout="constrained")
    return list(figure.subplots(rows, columns, squeeze=False, **shared).ravel())


def figure_of(axes: Sequence[Axes]) -> Figure:
    """Return the figure that axes stand in."""
    found = axes[0].get_figure(root=True)
    assert isinstance(found, Figure)
    return found
