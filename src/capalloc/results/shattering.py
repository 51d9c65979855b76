"""The result of `shattering`: works from a saved file, with no model at hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from capalloc import results
from capalloc.results.base import Result, Variable, axis_rows
from capalloc.results.view import Axis, Chart, Fact, Line, Table, View, estimate, standing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Pairs of points whose gradients are compared.
PAIRS = ("independent", "nearby")
#: Predicted correlation of gradients below which a network counts as shattered: few such train (docs/validation.md).
SHATTERED = 0.01
#: What may be done about it, and for whom nothing need be.
AROUND = "give paths a way around gates (residual branches times 1/sqrt(depth), in blocks of one layer)"
NORMED = "networks with norms, as this one, are known to train all the same"
LIKENESS = Axis("correlation of gradients", -0.1, 1.05)


class Shattering(Result):
    """Likeness of the gradients at different inputs, measured and predicted (docs/theory.md, section 6).

    Along "place" (the inputs, sums of residual blocks, entries of gates; inputs first), correlations of the gradients
    of the outputs there:

    - `measured_independent`, `measured_nearby`, each with its `..._error`: between different examples, and between an
      example and a point near it;
    - `predicted_independent`, `predicted_nearby`: path average of the gate correlations met on the way.

    Along "gate": `decoupling` and `decoupling_nearby` of the two inputs, `crossing`: the share of path energy that
    crosses it. Along "distance", in units of the distance between two examples: `measured_line`,
    `measured_line_error`, `predicted_line`: autocorrelation of the gradient at the inputs on a line.

    Args:
        data: the Dataset with those variables.

    Raises:
        ValueError: a variable is missing, or a share of path energy is negative.

    """

    FORMAT = "capalloc-shattering"
    MAKER = "capalloc.shattering()"
    SCHEMA: ClassVar = {
        **dict.fromkeys(("place", "kind"), Variable(("place",))),
        **{f"measured_{pair}{end}": Variable(("place",)) for pair in PAIRS for end in ("", "_error")},
        **{f"predicted_{pair}": Variable(("place",)) for pair in PAIRS},
        **dict.fromkeys(("gate", "decoupling", "decoupling_nearby"), Variable(("gate",))),
        "crossing": Variable(("gate",), low=0),
        **dict.fromkeys(
            ("distance", "measured_line", "measured_line_error", "predicted_line"), Variable(("distance",))
        ),
    }
    ROWS: ClassVar = {f"{axis}s": axis_rows(axis) for axis in ("place", "gate", "distance")}
    VALUES = ("index", "correlation", "kept", "advice")

    @property
    def index(self) -> float:
        """Shattering index: the mean number of decouplings on a path, $sum_l d_l P(path crosses gate l)$."""
        return float(self._losses.sum())

    @property
    def correlation(self) -> float:
        """Predicted correlation of the gradients at the inputs of independent examples."""
        return float(self.predicted_independent[0])

    @property
    def kept(self) -> float:
        """The correlation that residual blocks leave: at the first block's sum, without what the stem takes.

        Without blocks it is that at the inputs. As predicted, or measured less two standard errors where that is more.
        """
        first = int((self.kind.to_numpy() == "stream").argmax())  # 0, the inputs, without any
        predicted = float(self.predicted_independent[first])
        sure = float(self.measured_independent[first] - 2 * self.measured_independent_error[first])
        return predicted if math.isnan(sure) else max(predicted, sure)

    @property
    def advice(self) -> list[str]:
        """Changes that the correlation at the inputs asks for; empty where it is not lost, or the weights trained."""
        if self.data.attrs.get("trained"):
            return []
        predicted, error = self.correlation, float(self.measured_independent_error[0])
        measured = estimate(float(self.measured_independent[0]), error, ".2g", ".1g")
        if not max(predicted, self.kept) < SHATTERED:
            return []
        remedy = NORMED if self.data.attrs.get("normed") else AROUND
        worst = [str(name) for name in self.gate.to_numpy()[self._losses.to_numpy().argsort()[::-1][:3]]]
        return [
            f"gradients at independent examples are unlike: correlation {predicted:.2g} predicted, {measured} "
            f"measured, {self.index:.3g} decouplings on a path, most at {', '.join(worst)}; {remedy}"
        ]

    @property
    def settled(self) -> str:
        """The sentence where there is no advice: what was looked at; nothing of trained weights."""
        if self.data.attrs.get("trained"):
            return ""
        return f"gradients at independent examples stay alike: {max(self.correlation, self.kept):.2g} correlated"

    def plot_line(self, ax: Axes | None = None) -> Axes:
        """Draw the autocorrelation of the gradient on a line in input space, on `ax` or on a new figure."""
        return results.plots.plot_chart(self._line(), ax)

    def view(self) -> View:
        """Correlations of gradients by depth and by distance, the gates that cost them, and what to change."""
        measured = estimate(
            float(self.measured_independent[0]), float(self.measured_independent_error[0]), ".2g", ".1g"
        )
        kept = Fact("kept by residual blocks", estimate(self.kept, digits=".3g"), "at the sum of the first one")
        return self._view(
            title="Shattering",
            heading=f"index {self.index:.3g}, correlation of gradients {estimate(self.correlation, digits='.3g')}",
            facts=[
                standing("estimated", "(measured with standard errors; predicted is a guide, for wide networks)"),
                Fact(
                    "correlation of gradients",
                    estimate(self.correlation, digits=".3g"),
                    f"predicted at the inputs; {measured} measured",
                ),
                *([kept] if (self.kind == "stream").any() else []),
                Fact("shattering index", f"{self.index:.3g}", "decouplings on a path, in the mean"),
            ],
            brief=1,
            tables=[self._correlations(), self._gates()],
            charts=[self._depth(), self._line()],
            advice=self.advice,
            settled="" if self.advice else self.settled,
        )

    @property
    def _losses(self) -> xr.DataArray:
        """Decouplings of each gate on a path."""
        return self.data["decoupling"].fillna(0) * self.data["crossing"]

    def _correlations(self) -> Table:
        rows = []
        for k, name in enumerate(self.data["place"].to_numpy()):
            at = self.data.isel(place=k)
            cells = [
                (estimate(float(at[f"measured_{pair}"]), float(at[f"measured_{pair}_error"])), at[f"predicted_{pair}"])
                for pair in PAIRS
            ]
            rows.append([str(name), *(cell for shown, p in cells for cell in (shown, estimate(float(p))))])
        return Table("correlation of gradients", ["place", "independent", "predicted", "nearby", "predicted"], rows)

    def _gates(self) -> Table:
        columns = (self.data[name].to_numpy() for name in ("gate", "decoupling", "crossing"))
        rows = [[str(name), estimate(d), estimate(p, digits=".1%")] for name, d, p in zip(*columns, strict=True)]
        return Table("gates", ["gate", "decoupling", "path energy"], rows)

    def _depth(self) -> Chart:
        """Sums of residual blocks alone where there are any, else gates."""
        kinds = self.data["kind"].to_numpy()
        along = self.data.isel(place=kinds != "gate") if "stream" in kinds else self.data
        places = np.arange(along.sizes["place"])
        lines = []
        for k, pair in enumerate(PAIRS):
            spread = 2 * along[f"measured_{pair}_error"].fillna(0).to_numpy()
            lines += [
                Line(f"{pair}, predicted", places, along[f"predicted_{pair}"], "line", k),
                Line(f"{pair}, measured", places, along[f"measured_{pair}"], "dots", k, spread, named=True),
            ]
        what = "residual block" if "stream" in kinds else "gate"
        names = [str(name) for name in along["place"].to_numpy()]
        return Chart(
            "Likeness of gradients, by depth", lines, Axis(f"{what}, inputs first", whole=True, names=names), LIKENESS
        )

    def _line(self) -> Chart:
        spread = 2 * self.measured_line_error.fillna(0).to_numpy()
        lines = [
            Line("predicted", self.distance, self.predicted_line),
            Line("measured", self.distance, self.measured_line, "dots", 0, spread),
        ]
        apart = Axis("distance, two examples apart = 1")
        return Chart("Likeness of gradients, by distance of the inputs", lines, apart, LIKENESS)
