"""The result of `scaling`: works from a saved file, with no model at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from capalloc.results.base import Stored, check_variables
from capalloc.results.view import Card, Shown
from capalloc.results.words import factor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCK = ("block", "rate", "multiplier", "last_layer")
LAYER = ("layer", "gain", "gradient_gain", "mean_squared_gate", "rescaled")
#: Shares of path energy that take no branch at all, e^-T, beyond which residual blocks are out of balance.
TRIVIAL, DEGENERATE = 0.9, 0.01
#: Blocks and layers that are out of the balanced rate, or of gain 1, by more than these factors are advised on.
FAR_RATE, FAR_GAIN = 10.0, 1.25
#: Total gain of a plain network beyond which float32 training is likely to fail.
FAR_TOTAL = 1e3
#: Lines of advice of one kind; the rest are counted.
MOST = 5


@dataclass(frozen=True, eq=False, repr=False)
class Scaling(Stored, Shown):
    """Whether depth is scaled well: residual blocks by their rates, plain layers by their gains.

    Along "block", inputs first (docs/theory.md, section 5):

    - `rate`: lambda, path energy in the branch over that in the skip;
    - `multiplier`: what to multiply the branch by, so that every rate is 1 / (number of blocks) when all are;
    - `last_layer`: the layer whose parameters, weight and bias, may be multiplied in the branch's place; or empty.

    Along "layer", the stretches of the network without residual sums (section 6):

    - `gain`, `gradient_gain`: factors by which mean path energy per unit grows upwards, and by which that of
      gradients grows downwards; 1 keeps it: a variance of the weights of 1 / (fan-in E[a^2]), He's for ReLU;
    - `mean_squared_gate`: E[a^2] of the gate that ends the stretch, weighted by path energy;
    - `rescaled`: whether a normalisation or an average in the stretch sets the scale, whatever the weights.

    Args:
        data: the Dataset with those variables.

    Raises:
        ValueError: a variable is missing, or a rate is negative.

    """

    FORMAT = "capalloc-scaling"
    ROWS: ClassVar = {"blocks": "block", "layers": "layer"}

    def check(self) -> None:
        """Variables are there, and rates are not negative."""
        check_variables(self.data, (*BLOCK, *LAYER), "capalloc.scaling()")
        rates = self.data["rate"].to_numpy()
        if (rates < 0).any():
            raise ValueError(f"rate must not be negative, but holds {rates.min():.6g}")

    @property
    def T(self) -> float:  # noqa: N802
        """T = sum of log(1 + lambda) over residual blocks; NaN without any."""
        rates = self.data["rate"].to_numpy()
        return float(np.log1p(rates).sum()) if len(rates) else math.nan

    @property
    def skip_share(self) -> float:
        """e^-T: the share of path energy that takes no branch."""
        return math.exp(-self.T) if math.isfinite(self.T) else 0.0 if self.T > 0 else math.nan

    @property
    def phase(self) -> str:
        """Of the residual blocks: "degenerate" shatters, "balanced", "trivial" propagates nothing; or "plain"."""
        if not self.data.sizes["block"]:
            return "plain"
        if self.skip_share < DEGENERATE:
            return "degenerate"
        return "trivial" if self.skip_share > TRIVIAL else "balanced"

    @property
    def total_gain(self) -> float:
        """Product of the gains of the layers whose weights set the scale."""
        kept = self.data["gain"].to_numpy()[self.data["rescaled"].to_numpy() == 0]
        with np.errstate(divide="ignore", over="ignore"):
            return float(np.exp(np.log(kept[np.isfinite(kept)]).sum()))

    @property
    def advice(self) -> list[str]:
        """What to change, in order of depth; empty where nothing is out of balance."""
        return [*self._phase_advice(), *self._block_advice(), *self._layer_advice()]

    def _phase_advice(self) -> Iterator[str]:
        number, share = self.data.sizes["block"], self.skip_share
        if self.phase == "degenerate":
            yield (
                f"T = {self.T:.3g} over {number} residual blocks: only {share:.1g} of path energy takes no branch, so "
                f"gradients shatter where branches decouple; scale them down, to a rate of about 1/{number} each"
            )
        elif self.phase == "trivial":
            yield (
                f"T = {self.T:.3g} over {number} residual blocks: {share:.1%} of path energy takes no branch, so "
                f"branches propagate nothing; scale them up, to a rate of about 1/{number} each"
            )

    def _block_advice(self) -> Iterator[str]:
        number = self.data.sizes["block"]
        lines = []
        for row in _rows(self.data, "block", BLOCK):
            rate, name = float(row["rate"]), f'block "{row["block"]}"'
            far = rate == 0 or abs(math.log(rate * number)) > math.log(FAR_RATE)
            if rate == 0:
                lines.append(f"{name}: its branch passes nothing yet (weights of zero); nothing to multiply")
            elif not math.isfinite(row["multiplier"]):
                lines.append(f"{name}: its skip passes nothing; nothing to balance the branch with")
            elif self.phase != "balanced" or far:
                last = f"its last layer ({row['last_layer']})" if row["last_layer"] else "the branch"
                what = f"multiply {last} by {row['multiplier']:.2g}"
                lines.append(f"{name}: branch {rate:.3g} times the skip; {what}")
        yield from _first(lines, "more blocks, in the table")

    def _layer_advice(self) -> Iterator[str]:
        if self.phase != "plain":
            return
        lines = []
        for row in _rows(self.data, "layer", LAYER):
            gain = float(row["gain"])
            if gain == 0:
                lines.append(f'layer "{row["layer"]}": passes nothing (weights of zero, or gates that are all closed)')
            if row["rescaled"] or not gain > 0 or abs(math.log(gain)) <= math.log(FAR_GAIN):
                continue
            rule = _rule(float(row["mean_squared_gate"]))
            what = f"multiply its weights by {gain**-0.5:.2g}"
            lines.append(f'layer "{row["layer"]}": energy {factor(gain)}, where {rule} keeps it; {what}')
        total = self.total_gain
        if lines and not 1 / FAR_TOTAL < total < FAR_TOTAL:
            yield f"energy {factor(total)} from inputs to outputs: activations and gradients leave the range of numbers"
        yield from _first(lines, "more layers, in the table")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the rates by depth beside the balanced one, or the gains of a plain network, on `ax` or a new figure."""
        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        number = self.data.sizes["block"]
        if number:
            ax.plot(np.arange(1, number + 1), self.data["rate"], "o-", label="branch / skip")
            ax.axhline(1 / number, color="C1", linestyle="dashed", label=f"balanced, 1/{number}")
            ax.set(xlabel="residual block, by depth", ylabel="rate λ", title=f"{self.phase}: T = {self.T:.3g}")
        else:
            ax.plot(np.arange(1, self.data.sizes["layer"] + 1), self.data["gain"], "o-", label="energy, upwards")
            ax.plot(np.arange(1, self.data.sizes["layer"] + 1), self.data["gradient_gain"], "s--", label="gradients")
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set(xlabel="layer, by depth", ylabel="gain", title="plain")
        ax.set_yscale("log")
        ax.legend(fontsize="small")
        return ax

    def tables(self) -> dict[str, list[list[str]]]:
        """The rows that a person reads, header first: blocks, and layers."""
        found = {}
        if self.data.sizes["block"]:
            found["residual blocks"] = [["block", "rate", "multiplier", "last layer"]] + [
                [str(r["block"]), f"{r['rate']:.3g}", f"{r['multiplier']:.3g}", str(r["last_layer"])]
                for r in _rows(self.data, "block", BLOCK)
            ]
        found["layers"] = [["layer", "gain", "gradients", "E[a²]", "rescaled"]] + [
            [
                str(r["layer"]),
                *(f"{r[key]:.3g}" for key in ("gain", "gradient_gain", "mean_squared_gate")),
                "yes" if r["rescaled"] else "",
            ]
            for r in _rows(self.data, "layer", LAYER)
        ]
        return found

    def _heading(self) -> str:
        facts = f"{self.data.sizes['block']} residual blocks, {self.data.sizes['layer']} layers: {self.phase}"
        return facts if self.phase == "plain" else f"{facts}, T = {self.T:.3g}"

    def _card(self) -> Card:
        return Card("Scaling", self._heading(), tables=self.tables(), notes=self.advice)


def _rule(mean_squared_gate: float) -> str:
    """The variance rule that keeps path energy, by its usual name."""
    if math.isclose(mean_squared_gate, 0.5, rel_tol=0.1):
        return "He's variance 2 / fan-in"
    if math.isclose(mean_squared_gate, 1.0, rel_tol=0.1):
        return "Xavier's variance 1 / fan-in"
    return f"a variance of {1 / mean_squared_gate:.3g} / fan-in"


def _first(lines: list[str], rest: str) -> Iterator[str]:
    yield from lines[:MOST]
    if len(lines) > MOST:
        yield f"and {len(lines) - MOST} {rest}"


def _rows(data: xr.Dataset, dim: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    columns = [data[name].to_numpy() for name in names]
    for k in range(data.sizes[dim]):
        yield {name: column[k] for name, column in zip(names, columns, strict=True)}
