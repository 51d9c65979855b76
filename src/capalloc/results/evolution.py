"""The law of the walk after every block, and its moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc.results.base import Savable, axis_frame, check_variables
from capalloc.results.plots import plot_map
from capalloc.results.view import Card, Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Names of the grid's axes, by their number.
SPACE = {1: ("column",), 2: ("row", "column"), 3: ("plane", "row", "column")}
#: What rounding may cost: mass against 1, and probabilities below 0.
ROUNDING = 1e-10


def on_grid(values: NDArray[np.float64], spacing: float, *leading: tuple[str, NDArray[np.int64]]) -> xr.DataArray:
    """Values (*leading, *space) with the coordinates of space in pixels, 0 at the first cell."""
    shape = values.shape[len(leading) :]
    space = [(axis, np.arange(n) * spacing) for axis, n in zip(SPACE[len(shape)], shape, strict=True)]
    return xr.DataArray(values, [*leading, *space], name="law")


@dataclass(frozen=True, eq=False)
class Evolution(Savable, Shown):
    """Where one unit of capacity is after each block, counted from the output: a law, and what the border absorbed.

    Args:
        law: probabilities, (depth, *space), depth 0 being the start; coordinates of space in pixels.
        absorbed: probability lost at the borders up to each depth, (depth,).
        settings: what it was made by: description, borders and the like.

    Raises:
        ValueError: axes that do not fit, probabilities below 0, or a total that is not 1 at some depth.

    """

    law: xr.DataArray
    absorbed: xr.DataArray
    settings: Mapping[str, str] = field(default_factory=dict)

    FORMAT = "capalloc-evolution"
    ROWS = ("depths", "positions")

    def __post_init__(self) -> None:
        if self.law.dims[:1] != ("depth",) or self.absorbed.dims != ("depth",) or self.law.ndim < 2:
            raise ValueError(
                f"law must be (depth, *space) and absorbed (depth,), got {self.law.dims} and {self.absorbed.dims}"
            )
        if float(self.law.min()) < -ROUNDING or float(self.absorbed.min()) < -ROUNDING:
            raise ValueError(f"law and absorbed must be at least 0, got {float(self.law.min()):.3g}")
        total = self.law.sum(self.space) + self.absorbed
        if not float(abs(total - 1).max()) < ROUNDING:
            raise ValueError(f"law and absorbed must sum to 1 at every depth, got {total.to_numpy().tolist()}")

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the grid's axes."""
        return tuple(str(dim) for dim in self.law.dims[1:])

    @property
    def final(self) -> xr.DataArray:
        """Law after all blocks, at the inputs, (*space)."""
        return self.law.isel(depth=-1)

    @property
    def mean(self) -> xr.DataArray:
        """Mean position of what is not absorbed, (depth, axis), in pixels; NaN where all of it is.

        On periodic axes it is the mean of coordinates: a walk that goes round is not unwound.
        """
        present = self._present
        means = [(self.law * self.law[name]).sum(self.space) / present for name in self.space]
        return xr.concat(means, self._axis("axis")).transpose("depth", "axis").rename("mean")

    @property
    def covariance(self) -> xr.DataArray:
        """Covariance of the position of what is not absorbed, (depth, axis, other), in pixels squared."""
        present = self._present
        mean = self.mean
        away = [self.law[name] - mean.sel(axis=name, drop=True) for name in self.space]
        rows = [
            xr.concat([(self.law * a * b).sum(self.space) / present for b in away], self._axis("other")) for a in away
        ]
        return xr.concat(rows, self._axis("axis")).transpose("depth", "axis", "other").rename("covariance")

    @property
    def deviation(self) -> xr.DataArray:
        """Standard deviation along each axis of what is not absorbed, (depth, axis), in pixels."""
        squares = self.covariance.to_numpy().diagonal(axis1=1, axis2=2)
        return xr.zeros_like(self.mean).copy(data=np.sqrt(squares.clip(min=0))).rename("deviation")

    def to_xarray(self) -> xr.Dataset:
        """All of it as a Dataset: `law`, `absorbed`, and the settings as attributes."""
        return xr.Dataset({"law": self.law, "absorbed": self.absorbed}, attrs=dict(self.settings))

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Evolution:
        """The evolution that `to_xarray` was called on.

        Raises:
            ValueError: a variable is missing, or an invariant does not hold.

        """
        check_variables(dataset, ("law", "absorbed"), "Evolution.to_xarray()")
        return cls(dataset["law"], dataset["absorbed"], dict(dataset.attrs))

    def to_pandas(self, rows: str | None = None) -> pd.DataFrame:
        """A tidy table of the walk.

        Args:
            rows: "depths", a row for each number of blocks passed: `absorbed`, and by axis `mean_...` and
                `deviation_...`, in pixels; "positions", a row for each depth and position, with its `probability`.

        Raises:
            ValueError: other rows.

        """
        return super().to_pandas(rows)

    def _frame(self, rows: str) -> pd.DataFrame:
        if rows == "positions":
            return self.law.rename("probability").to_dataframe(dim_order=["depth", *self.space]).reset_index()
        moments = {"mean": self.mean, "deviation": self.deviation}
        columns = {
            f"{name}_{axis}": values.sel(axis=axis, drop=True)
            for name, values in moments.items()
            for axis in self.space
        }
        return axis_frame(xr.Dataset({"absorbed": self.absorbed, **columns}), "depth")

    def plot(self, ax: Axes | None = None, title: str = "", depth: int = -1) -> Axes:
        """Draw the law at one depth: a line, or a map summed over the leading axes.

        Args:
            ax: where to draw; a new figure by default.
            title: above the drawing.
            depth: number of blocks passed; -1 for all.

        """
        ax = plot_map(self.law.isel(depth=depth), ax, title)
        if len(self.space) == 1:
            ax.set_ylabel("probability")
        elif (bar := ax.images[-1].colorbar) is not None:
            bar.set_label("probability")
        return ax

    @property
    def _present(self) -> xr.DataArray:
        """Probability of not being absorbed, (depth,); NaN for none, that moments are then NaN."""
        present = self.law.sum(self.space)
        return present.where(present > 0)

    def _axis(self, name: str) -> xr.DataArray:
        return xr.DataArray(list(self.space), dims=name, name=name)

    def _card(self) -> Card:
        rows = [["axis", "mean", "standard deviation"]]
        ends = zip(self.space, self.mean.to_numpy()[-1], self.deviation.to_numpy()[-1], strict=True)
        rows += [[name, f"{mean:.4g}", f"{deviation:.4g}"] for name, mean, deviation in ends]
        return Card(
            "depth_limit.Evolution",
            f"{self.law.sizes['depth'] - 1} blocks",
            facts={**self.settings, "absorbed": f"{float(self.absorbed[-1]):.4g}"},
            tables={"at the inputs, in pixels": rows},
            map=self.final * 100,
            label="percent at the inputs",
        )

    def __repr__(self) -> str:
        size = " x ".join(f"{name} {self.law.sizes[name]}" for name in self.space)
        described = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        spread = ", ".join(
            f"{name} {mean:.4g} +/- {deviation:.4g}"
            for name, mean, deviation in zip(
                self.space, self.mean.to_numpy()[-1], self.deviation.to_numpy()[-1], strict=True
            )
        )
        lines = [f"Evolution through {self.law.sizes['depth'] - 1} blocks on {size}", f"  {described}"]
        lines.append(
            f"  at the inputs (mean +/- standard deviation): {spread}; absorbed {float(self.absorbed[-1]):.4g}"
        )
        return "\n".join(line for line in lines if line.strip())
