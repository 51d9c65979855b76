"""The result of `decoupling`: works from a saved file, with no model at hand."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import xarray as xr

from capalloc.results.base import Result, Variable, axis_rows
from capalloc.results.view import Axis, Chart, Fact, Line, Table, View, by_depth, estimate, standing

#: Levels of the quantiles, and the number of bins of the histograms, of decoupling over pairs.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20
#: Columns of the table, and how each is headed where a person reads it.
GATE_COLUMNS = {
    "kind": "kind",
    "units": "units",
    "decoupling": "units d",
    "coupled_decoupling": "coupled d",
    "example_decoupling": "examples d",
    "mean_squared_gate": "E[a²]",
    "dead": "dead",
    "saturated": "saturated",
}
#: What has a standard error, and what it is of.
ESTIMATES = {"decoupling": "units", "coupled_decoupling": "units, by coupling", "example_decoupling": "examples"}


class Decoupling(Result):
    """Decoupling of what passes each gate of a network: 0 as a linear map, 1 totally.

    One entry along "layer" for each gate, in order of depth (docs/theory.md, section 3):

    - `decoupling`: layer decoupling, the mean of $d_jj'$ over pairs of distinct units;
    - `coupled_decoupling`: the same weighted with the squared cosines of the rows of the matrix that feeds the
      layer, NaN where no single matrix does;
    - `example_decoupling`: the mean of d over pairs of distinct examples;
    - `..._error`: standard errors of the three; `..._quantiles`, `..._histogram`: distributions over pairs;
    - `mean_squared_gate`: $E[a^2]$ over units and examples;
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
    MAKER = "capalloc.decoupling()"
    SCHEMA: ClassVar = {
        **dict.fromkeys(("layer", "kind", "operator", "units", "mean_squared_gate"), Variable(("layer",))),
        **{f"{name}_error": Variable(("layer",)) for name in ESTIMATES},
        **dict.fromkeys((*ESTIMATES, "dead", "saturated"), Variable(("layer",), 0, 1)),
    }
    ROWS: ClassVar = {"layers": axis_rows("layer")}

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

    def view(self) -> View:
        """Decoupling of each gate, as a table and by depth."""
        examples = self.data.attrs.get("num_examples", "?")
        means = {
            label: values.mean() for name, label in ESTIMATES.items() if len(values := self.data[name].dropna("layer"))
        }
        return self._view(
            title="Decoupling by depth",
            heading=f"{len(self)} gate{'s' * (len(self) != 1)} on {examples} examples",
            facts=[
                standing("estimated", "(after ± stand standard errors)"),
                Fact("gates", str(len(self)), f"on {examples} examples"),
                *(Fact(f"mean over gates, {label}", f"{m:.3f}", "(0 linear, 1 total)") for label, m in means.items()),
            ],
            brief=1,
            tables=[
                Table(
                    "gates",
                    ["gate", *GATE_COLUMNS.values()],
                    [self._row(layer) for layer in self.layers],
                    spare=("saturated", "E[a²]", "kind"),
                )
            ],
            charts=[self._chart()],
            series={"layers": self.decoupling.to_series().to_dict()},
        )

    def _row(self, layer: str) -> list[str]:
        row = self.data.sel(layer=layer)
        return [layer, *(_cell(row, name) for name in GATE_COLUMNS)]

    def _chart(self) -> Chart:
        depth, data = np.arange(1, len(self) + 1), self.data
        lines = []
        for k, (name, label) in enumerate(ESTIMATES.items()):
            if data[name].isnull().all():
                continue
            band = None
            if name == "decoupling" and "decoupling_quantiles" in data:
                low, high = (data["decoupling_quantiles"].sel(quantile=q).to_numpy() for q in (0.25, 0.75))
                band = (low, high)
            spread = 2 * data[f"{name}_error"].fillna(0).to_numpy()
            lines.append(Line(label, depth + 0.12 * (k - 1), data[name].to_numpy(), "dots", k, spread, band, True))
        kinds = map(str, data["kind"].to_numpy())
        names = [
            name if kind == "activation" else f"{name} ({kind})" for name, kind in zip(self.layers, kinds, strict=True)
        ]
        return Chart(
            "Decoupling of each gate; bars are two standard errors",
            lines,
            by_depth("gate", names),
            Axis("decoupling (0 linear, 1 total)", -0.03, 1.03),
        )


def _cell(row: xr.Dataset, name: str) -> str:
    value: Any = row[name].item()
    if isinstance(value, (str, int)):
        return str(value)
    if name in ESTIMATES:
        return estimate(value, row[f"{name}_error"].item())
    return estimate(value, digits=".1%" if name in ("dead", "saturated") else ".3g")
