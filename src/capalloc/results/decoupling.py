"""The result of `decoupling`: works from a saved file, with no model at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from capalloc.results.base import Stored, check_variables
from capalloc.results.view import Card, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Levels of the quantiles, and the number of bins of the histograms, of decoupling over pairs.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20
#: Columns of the table, and how each is headed where a person reads it.
COLUMNS = {
    "kind": "kind",
    "units": "units",
    "decoupling": "units d",
    "coupled_decoupling": "coupled d",
    "example_decoupling": "examples d",
    "mean_squared_gate": "E[a²]",
    "dead": "dead",
    "saturated": "saturated",
}
ESTIMATES = ("decoupling", "coupled_decoupling", "example_decoupling")
FROM_0_TO_1 = (*ESTIMATES, "dead", "saturated")


@dataclass(frozen=True, eq=False, repr=False)
class Decoupling(Stored, Shown):
    """How far each gate of a network decouples what passes it: 0 as a linear map, 1 totally.

    One entry along "layer" for each gate, in order of depth (docs/theory.md, section 3):

    - `decoupling`: layer decoupling, the mean of d_jj' over pairs of distinct units;
    - `coupled_decoupling`: the same weighted with the squared cosines of the rows of the matrix that feeds the
      layer, NaN where no single matrix does;
    - `example_decoupling`: the mean of d over pairs of distinct examples;
    - `..._error`: standard errors of the three; `..._quantiles`, `..._histogram`: distributions over pairs;
    - `mean_squared_gate`: E[a^2] over units and examples;
    - `dead`: share of units whose gate is 0 on all examples; they take no part in the means;
    - `saturated`: share of (example, unit) entries whose gate is below 1 % of the largest one possible, which for
      ReLU and pooling are the closed ones; NaN for normalisation, whose gates have no bound;
    - `kind`, `operator`, `units`.

    Args:
        data: the Dataset with those variables.

    Raises:
        ValueError: a variable is missing, or a decoupling is outside [0, 1].

    """

    FORMAT = "capalloc-decoupling"
    ROWS: ClassVar = {"layers": "layer"}

    def check(self) -> None:
        """Variables are there, and decouplings in [0, 1]."""
        errors = (f"{name}_error" for name in ESTIMATES)
        check_variables(self.data, ("layer", *COLUMNS, "operator", *errors), "capalloc.decoupling()")
        for name in FROM_0_TO_1:
            values = self.data[name].to_numpy()
            outside = (values < 0) | (values > 1)
            if outside.any():
                raise ValueError(f"{name} must lie in [0, 1], but holds {values[outside][0]:.6g}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the gates, in order of depth."""
        return tuple(map(str, self.data["layer"].to_numpy()))

    def __getitem__(self, layer: str) -> xr.Dataset:
        """Everything known of one gate."""
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; there are {list(self.layers)}")
        return self.data.sel(layer=layer)

    def __len__(self) -> int:
        return len(self.layers)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw decoupling by depth on `ax`, or on a new figure.

        Bars are two standard errors, the band holds the middle half of the pairs of units, and normalisation,
        attention and softmax are marked as what they are.
        """
        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        depth = np.arange(len(self))
        labels = {"decoupling": "units", "coupled_decoupling": "units, by coupling", "example_decoupling": "examples"}
        for (name, label), marker, shift in zip(labels.items(), "o^s", (-0.12, 0, 0.12), strict=True):
            if self.data[name].isnull().all():
                continue
            error = 2 * self.data[f"{name}_error"].fillna(0)
            ax.errorbar(depth + shift, self.data[name], yerr=error, fmt=marker, capsize=2, markersize=5, label=label)
        if "decoupling_quantiles" in self.data:
            low, high = (self.data["decoupling_quantiles"].sel(quantile=q).to_numpy() for q in (0.25, 0.75))
            ax.vlines(depth - 0.12, low, high, color="C0", alpha=0.25, linewidth=8)
        kinds = self.data["kind"].to_numpy()
        names = [
            name if kind == "activation" else f"{name} ({kind})" for name, kind in zip(self.layers, kinds, strict=True)
        ]
        ax.set_xticks(depth, names, rotation=45 if len(self) > 4 else 0, ha="right" if len(self) > 4 else "center")
        ax.set(ylim=(-0.03, 1.03), ylabel="decoupling (0 linear, 1 total)", xlabel="gate, by depth")
        ax.legend(loc="best", fontsize="small")
        return ax

    def tables(self) -> dict[str, list[list[str]]]:
        """The rows that a person reads, header first."""
        rows = [["gate", *COLUMNS.values()]]
        for layer in self.layers:
            row = self.data.sel(layer=layer)
            rows.append([layer, *(_cell(row, name) for name in COLUMNS)])
        return {"gates": rows}

    def _card(self) -> Card:
        heading = f"{len(self)} gates on {self.data.attrs.get('num_examples', '?')} examples"
        notes = [str(note) for note in self.data.attrs.get("notes", ())]
        return Card("Decoupling", heading, tables=self.tables(), notes=notes)


def _cell(row: xr.Dataset, name: str) -> str:
    value: Any = row[name].item()
    if isinstance(value, (str, int)):
        return str(value)
    if not np.isfinite(value):
        return "–"
    if name in ESTIMATES:
        error = row[f"{name}_error"].item()
        return f"{value:.3f} ± {error:.3f}" if np.isfinite(error) else f"{value:.3f}"
    return f"{value:.1%}" if name in ("dead", "saturated") else f"{value:.3g}"
