"""The result of `shattering`: works from a saved file, with no model at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import matplotlib.pyplot as plt
import numpy as np

from capalloc.results.base import Stored, check_variables
from capalloc.results.view import Card, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("independent", "nearby")
MEASURED = tuple(f"measured_{kind}{end}" for kind in KINDS for end in ("", "_error"))
PREDICTED = tuple(f"predicted_{kind}" for kind in KINDS)
GATE = ("decoupling", "decoupling_nearby", "crossing")
LINE = ("measured_line", "measured_line_error", "predicted_line")
#: Predicted correlation of gradients below which a network counts as shattered: few such train (docs/validation.md).
SHATTERED = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class Shattering(Stored, Shown):
    """How far the gradients at different inputs are alike, measured and predicted (docs/theory.md, section 6).

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
    ROWS: ClassVar = {"places": "place", "gates": "gate", "distances": "distance"}

    def check(self) -> None:
        """Variables are there, and no share of path energy is negative."""
        needed = ("place", "kind", *MEASURED, *PREDICTED, "gate", *GATE, "distance", *LINE)
        check_variables(self.data, needed, "capalloc.shattering()")
        crossing = self.data["crossing"].to_numpy()
        if (crossing < 0).any():
            raise ValueError(f"crossing must not be negative, but holds {crossing.min():.6g}")

    @property
    def index(self) -> float:
        """Shattering index: the mean number of decouplings on a path, sum of d_l P(path crosses gate l)."""
        return float((self.data["decoupling"].fillna(0) * self.data["crossing"]).sum())

    @property
    def correlation(self) -> float:
        """Predicted correlation of the gradients at the inputs of independent examples."""
        return float(self.data["predicted_independent"][0])

    @property
    def advice(self) -> list[str]:
        """What the correlation at the inputs means; empty where it is not lost."""
        measured, predicted = float(self.data["measured_independent"][0]), self.correlation
        if not min(predicted, 1) < SHATTERED:
            return []
        worst = [str(name) for name in self.data["gate"].to_numpy()[_losses(self).argsort()[::-1][:3]]]
        return [
            f"gradients at independent examples are unlike: correlation {predicted:.2g} predicted, {measured:.2g} "
            f"measured, {self.index:.3g} decouplings on a path, most at {', '.join(worst)}; give paths a way around "
            "gates (residual branches times 1/sqrt(depth))"
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the correlations of gradients by depth, on `ax` or on a new figure; bars are two standard errors.

        Where the model has residual blocks, at their sums alone.
        """
        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        kinds = self.data["kind"].to_numpy()
        along = self.data.isel(place=kinds != "gate") if "stream" in kinds else self.data
        depth = np.arange(along.sizes["place"])
        for kind, colour, marker in zip(KINDS, ("C0", "C1"), "os", strict=True):
            error = 2 * along[f"measured_{kind}_error"].fillna(0)
            label = f"{kind}, measured"
            ax.errorbar(depth, along[f"measured_{kind}"], error, fmt=marker, color=colour, capsize=2, label=label)
            ax.plot(depth, along[f"predicted_{kind}"], color=colour, label=f"{kind}, predicted")
        what = "residual block" if "stream" in kinds else "gate"
        ax.set(xlabel=f"{what}, inputs first", ylabel="correlation of gradients", ylim=(-0.1, 1.05))
        ax.legend(fontsize="small")
        return ax

    def plot_line(self, ax: Axes | None = None) -> Axes:
        """Draw the autocorrelation of the gradient on a line in input space, on `ax` or on a new figure."""
        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        at = self.data["distance"]
        ax.errorbar(at, self.data["measured_line"], 2 * self.data["measured_line_error"], fmt="o", label="measured")
        ax.plot(at, self.data["predicted_line"], label="predicted")
        ax.set(xlabel="distance, two examples apart = 1", ylabel="correlation of gradients", ylim=(-0.1, 1.05))
        ax.legend(fontsize="small")
        return ax

    def tables(self) -> dict[str, list[list[str]]]:
        """The rows that a person reads, header first."""
        rows = [["place", "independent", "predicted", "nearby", "predicted"]]
        for k, name in enumerate(self.data["place"].to_numpy()):
            at = self.data.isel(place=k)
            row = [str(name)]
            for kind in KINDS:
                value, error = float(at[f"measured_{kind}"]), float(at[f"measured_{kind}_error"])
                shown = f"{value:.3f} ± {error:.3f}" if np.isfinite(error) else f"{value:.3f}"
                row += [shown, f"{float(at[f'predicted_{kind}']):.3f}"]
            rows.append(row)
        gates = [["gate", "decoupling", "path energy"]]
        for name, d, p in zip(*(self.data[v].to_numpy() for v in ("gate", "decoupling", "crossing")), strict=True):
            gates.append([str(name), f"{d:.3f}", f"{p:.1%}"])
        return {"correlation of gradients": rows, "gates": gates}

    def _heading(self) -> str:
        return f"index {self.index:.3g}, correlation of gradients {self.correlation:.3g}"

    def _card(self) -> Card:
        return Card("Shattering", self._heading(), tables=self.tables(), notes=self.advice)


def _losses(result: Shattering) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    losses: np.ndarray[tuple[int], np.dtype[np.float64]] = (
        result.data["decoupling"].fillna(0) * result.data["crossing"]
    ).to_numpy()
    return losses
