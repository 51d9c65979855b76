"""The law of the walk after every block, and its moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc import results
from capalloc.results.base import Result, Variable, axis_frame
from capalloc.results.view import Axis, Chart, Fact, Line, Map, Table, View, standing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Names of the grid's axes, by their number.
SPACE = {1: ("column",), 2: ("row", "column"), 3: ("plane", "row", "column")}
#: What rounding may cost: mass against 1, and probabilities below 0.
MASS_TOLERANCE = 1e-10


def on_grid(values: NDArray[np.float64], spacing: float, *leading: tuple[str, NDArray[np.int64]]) -> xr.DataArray:
    """Values (*leading, *space) with the coordinates of space in pixels, 0 at the first cell."""
    shape = values.shape[len(leading) :]
    space = [(axis, np.arange(n) * spacing) for axis, n in zip(SPACE[len(shape)], shape, strict=True)]
    return xr.DataArray(values, [*leading, *space], name="law")


class Evolution(Result):
    """The law of one unit of capacity after each block, counted from the output, and what the border absorbed.

    - `law`: probabilities, (depth, *space), depth 0 being the start; coordinates of space in pixels;
    - `absorbed`: probability lost at the borders up to each depth.

    `to_pandas` has a row for each of "depths", the number of blocks passed: `absorbed`, and by axis `mean_...` and
    `deviation_...`, in pixels; or of "positions", each depth and position, with its `probability`.

    Args:
        data: the Dataset with those variables; its attributes say how it was made: description, borders and the like.

    Raises:
        ValueError: axes that do not fit, probabilities below 0, or a total that is not 1 at some depth.

    """

    FORMAT = "capalloc-evolution"
    MAKER = "capalloc.depth_limit"
    SCHEMA: ClassVar = {
        "law": Variable(("depth", "*"), low=-MASS_TOLERANCE),
        "absorbed": Variable(("depth",), low=-MASS_TOLERANCE),
    }

    law: xr.DataArray
    absorbed: xr.DataArray

    def check(self) -> None:
        """Probabilities sum to 1 at every depth."""
        total = self.law.sum(self.space) + self.absorbed
        if not float(abs(total - 1).max()) < MASS_TOLERANCE:
            raise ValueError(f"law and absorbed must sum to 1 at every depth, got {total.to_numpy().tolist()}")

    @property
    def settings(self) -> dict[str, str]:
        """Description, borders and the like."""
        return dict(self.data.attrs)

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

    def _depths(self) -> pd.DataFrame:
        moments = {"mean": self.mean, "deviation": self.deviation}
        columns = {
            f"{name}_{axis}": values.sel(axis=axis, drop=True)
            for name, values in moments.items()
            for axis in self.space
        }
        return axis_frame(xr.Dataset({"absorbed": self.absorbed, **columns}), "depth")

    def _positions(self) -> pd.DataFrame:
        return self.law.rename("probability").to_dataframe(dim_order=["depth", *self.space]).reset_index()

    ROWS: ClassVar = {"depths": _depths, "positions": _positions}

    def plot(self, ax: Axes | None = None, title: str = "", depth: int = -1) -> Axes:
        """Draw the law at one depth: a line, or a map summed over the leading axes.

        Args:
            ax: where to draw; a new figure by default.
            title: above the drawing.
            depth: number of blocks passed; -1 for all.

        """
        return results.plots.plot_map(self.law.isel(depth=depth), ax, title, unit="probability")

    @property
    def _present(self) -> xr.DataArray:
        """Probability of not being absorbed, (depth,); NaN for none, that moments are then NaN."""
        present = self.law.sum(self.space)
        return present.where(present > 0)

    def _axis(self, name: str) -> xr.DataArray:
        return xr.DataArray(list(self.space), dims=name, name=name)

    def view(self) -> View:
        """Show where the walk ends, and how it spreads on the way."""
        blocks = self.law.sizes["depth"] - 1
        mean, deviation = self.mean.to_numpy(), self.deviation.to_numpy()
        size = " x ".join(f"{name} {self.law.sizes[name]}" for name in self.space)
        made = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        ends = list(zip(self.space, mean[-1], deviation[-1], strict=True))
        spread = [Line(name, range(blocks + 1), deviation[:, k], "line", k) for k, name in enumerate(self.space)]
        return self._view(
            title="Walk through depth",
            heading=f"{blocks} blocks on {size}" + (f": {made}" if made else ""),
            about="Where one unit of capacity, let go at an output position, ends among the inputs.",
            facts=[
                standing("exact", "for the walk, which is the limit of wide and deep networks"),
                Fact("absorbed", f"{float(self.absorbed[-1]):.4g}", "at the borders"),
                *(Fact(f"deviation, {name}", f"{sd:.4g}", "pixels") for name, _, sd in ends),
            ],
            brief=2,
            tables=[
                Table(
                    "at the inputs, in pixels",
                    ["axis", "mean", "standard deviation"],
                    [[name, f"{centre:.4g}", f"{sd:.4g}"] for name, centre, sd in ends],
                )
            ],
            charts=[
                Chart(
                    "Spread on the way",
                    spread,
                    Axis("blocks passed, outputs first", whole=True),
                    Axis("deviation in pixels"),
                )
            ],
            maps=[
                Map(
                    self.final.drop_vars("depth", errors="ignore").clip(min=0),
                    "probability",
                    f"after {blocks} blocks",
                    "percent at the inputs",
                    100,
                )
            ],
            rows=("depths",),
        )
