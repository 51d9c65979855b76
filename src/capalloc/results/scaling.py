"""The result of `scaling`: works from a saved file, with no model at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from capalloc.results.base import Result, Variable, axis_rows
from capalloc.results.shattering import SHATTERED
from capalloc.results.view import Axis, Chart, Fact, Line, Table, View, by_depth, estimate, standing

if TYPE_CHECKING:
    from capalloc._linalg.aliases import Array

#: What the shape of a network means.
PHASES = {
    "plain": "no residual blocks",
    "trained": "no advice for trained weights",
    "balanced": "paths take branches, and a share of them none",
    "strong": "hardly a path goes around the branches, which alone is no fault at this depth",
    "degenerate": "hardly a path goes around the branches, and gradients shatter",
    "identity": "branches start closed on purpose, by a zero or a small scale",
    "trivial": "hardly a path goes through a branch: they propagate nothing",
}
#: Which networks the advice on rates is known to help (docs/scaling.md, "Whom the advice is for").
SCOPE = (
    "1/sqrt(depth) times the branch is the known limit for blocks of one layer; under Adam transformers want 1/depth"
)
#: Shares of path energy that take no branch at all, e^-T, beyond which residual blocks are out of balance.
TRIVIAL, DEGENERATE = 0.9, 0.01
#: Blocks and layers that are out of the balanced rate, or of gain 1, by more than these factors are advised on.
FAR_RATE, FAR_GAIN = 10.0, 1.25
#: Total gain of a plain network beyond which float32 training is likely to fail.
FAR_TOTAL = 1e3
#: Energies whose roots, squared again by an optimiser, leave the range of float32.
RANGE_OF_ENERGY = 1e38
#: Lines of advice of one kind; the rest are counted.
MOST_ADVICE = 5


class Scaling(Result):
    """The balance of depth: residual blocks by their rates, plain layers by their gains.

    Along "block", inputs first (docs/theory.md, section 5):

    - `rate`: $lambda$, path energy in the branch over that in the skip;
    - `multiplier`: what to multiply the branch by, so that every rate is 1 / (number of blocks) when all are;
    - `identity`: 1 where the branch starts at zero on purpose, which has no multiplier;
    - `last_layer`: the layer whose parameters, weight and bias, may be multiplied in the branch's place; or empty.

    Along "layer", the stretches of the network without residual sums (section 6):

    - `gain`, `gradient_gain`: factors by which mean path energy per unit grows upwards, and by which that of
      gradients grows downwards; 1 keeps it: a variance of the weights of $1 / (fan-in E[a^2])$, He's for ReLU;
    - `mean_squared_gate`: $E[a^2]$ of the gate that ends the stretch, weighted by path energy;
    - `rescaled`: whether a normalisation or an average in the stretch sets the scale, whatever the weights.

    Args:
        data: the Dataset with those variables.

    Raises:
        ValueError: a variable is missing, or a rate is negative.

    """

    FORMAT = "capalloc-scaling"
    MAKER = "capalloc.scaling()"
    SCHEMA: ClassVar = {
        **dict.fromkeys(("block", "multiplier", "identity", "last_layer"), Variable(("block",))),
        "rate": Variable(("block",), low=0),
        **dict.fromkeys(("layer", "gain", "gradient_gain", "mean_squared_gate", "rescaled"), Variable(("layer",))),
    }
    ROWS: ClassVar = {"blocks": axis_rows("block"), "layers": axis_rows("layer")}
    VALUES = ("phase", "T", "skip_share", "total_gain", "advice")

    @property
    def T(self) -> float:  # noqa: N802
        """$T = sum log(1 + lambda)$ over residual blocks; NaN without any."""
        rates = self.data["rate"].to_numpy()
        return float(np.log1p(rates).sum()) if len(rates) else math.nan

    @property
    def skip_share(self) -> float:
        """$e^-T$: the share of path energy that takes no branch."""
        return math.exp(-self.T) if math.isfinite(self.T) else 0.0 if self.T > 0 else math.nan

    @property
    def correlation(self) -> float:
        """`Shattering.kept` of the same network, where `diagnose` found it; else NaN."""
        return float(self.data.attrs.get("correlation", math.nan))

    @property
    def trained(self) -> bool:
        """True for the weights of a trained network, as told or as its norms show."""
        return bool(self.data.attrs.get("trained", False))

    @property
    def phase(self) -> str:
        """The word for its depth, a key of `PHASES`.

        "strong" where hardly a path goes around the branches, "degenerate" if moreover gradients are known to be
        unlike and the network has no norms; "trivial" where hardly a path takes a branch, "identity" if some start
        closed on purpose; "balanced" between. "trained" and "plain" are left without a verdict.
        """
        if not self.data.sizes["block"]:
            return "plain"
        if self.trained:
            return "trained"
        if self.skip_share < DEGENERATE:
            shattered = self.correlation < SHATTERED and not self.data.attrs.get("normed")
            return "degenerate" if shattered else "strong"
        if self.skip_share > TRIVIAL:
            return "identity" if self._closed().any() else "trivial"
        return "balanced"

    @property
    def total_gain(self) -> float:
        """Product of the gains of the layers whose weights set the scale."""
        kept = self.data["gain"].to_numpy()[self.data["rescaled"].to_numpy() == 0]
        with np.errstate(divide="ignore", over="ignore"):
            return float(np.exp(np.log(kept[np.isfinite(kept)]).sum()))

    @property
    def keeps_energy(self) -> bool:
        """Tell whether the gain of all layers together stays in the range that training needs."""
        return 1 / FAR_TOTAL < self.total_gain < FAR_TOTAL

    @property
    def change_in_all(self) -> str:
        """Words for the change of path energy by all layers together."""
        total, layers = self.total_gain, "" if self.phase == "plain" else ", along the layers outside residual blocks"
        if total == 0:
            return f"no energy gets from inputs to outputs{layers}"
        beyond = abs(math.log(total)) > math.log(RANGE_OF_ENERGY)
        become = "leave the range of numbers" if beyond else f"change by a factor of {total**0.5:.2g}"
        return f"energy {factor(total)} from inputs to outputs{layers}: activations and gradients {become}"

    @property
    def advice(self) -> list[str]:
        """Changes to make to initial weights, in order of depth; empty where nothing asks for one, or trained."""
        return [line for line, _ in self.advised]

    @property
    def advised(self) -> list[tuple[str, float]]:
        """Lines of advice, each with the number that it is about: T, a rate, a gain, or how many there are."""
        if self.trained:
            return []
        return [*self._phase_advice(), *self._block_advice(), *self._layer_advice()]

    def _phase_advice(self) -> Iterator[tuple[str, float]]:
        number, share = self.data.sizes["block"], self.skip_share
        found = f"T = {self.T:.3g} over {number} residual block{'s' * (number != 1)}"
        to_rate = f"to a rate of about 1/{number} each: {SCOPE}"
        closed = int(self._closed().sum())
        lines = {
            "degenerate": f"{found}: only {share:.1g} of path energy takes no branch, and gradients shatter "
            f"(correlation {self.correlation:.1g}); scale branches down, {to_rate}",
            "identity": f"{closed} of {number} branches start at the identity on purpose (zero or small last scale), "
            "to be opened by training; they get no multiplier",
            "trivial": f"{found}: {share:.1%} of path energy takes no branch, so branches propagate nothing at first; "
            f"scale them up, {to_rate}",
        }
        if math.isnan(self.correlation):
            lines["strong"] = (
                f"{found}: only {share:.1g} of path energy takes no branch; with ever more blocks of such rates "
                "gradients shatter, and whether they do at this depth `capalloc.diagnose` tells"
            )
        if self.phase in lines:
            yield lines[self.phase], float(closed) if self.phase == "identity" else self.T

    def _block_advice(self) -> Iterator[tuple[str, float]]:
        number, alike = self.data.sizes["block"], self.correlation >= SHATTERED  # not known: not alike
        lines: list[tuple[str, float]] = []
        for row, closed in zip(self._rows("block"), self._closed(), strict=True):
            rate, name = float(row["rate"]), f'block "{row["block"]}"'
            if closed:
                continue
            if rate == 0:
                lines.append(
                    (f"{name}: its branch passes nothing (gates that are all closed); nothing to multiply", 0.0)
                )
            elif not math.isfinite(row["multiplier"]):
                lines.append((f"{name}: its skip passes nothing; nothing to balance the branch with", rate))
            elif self.phase in ("degenerate", "trivial") or (self.phase != "strong" and _is_far(rate * number, alike)):
                last = f"its last layer ({row['last_layer']})" if row["last_layer"] else "the branch"
                what = f"multiply {last} by {row['multiplier']:.2g}"
                lines.append((f"{name}: branch {rate:.3g} times the skip; {what}", rate))
        yield from _first(lines, "block")

    def _layer_advice(self) -> Iterator[tuple[str, float]]:
        total = self.total_gain
        lost = total > 0 and not self.keeps_energy
        if lost:
            yield self.change_in_all, total
        if self.phase != "plain":
            return
        lines: list[tuple[str, float]] = []
        for row in self._rows("layer"):
            gain = float(row["gain"])
            if gain == 0:
                shut = "passes nothing (weights of zero, or gates that are all closed)"
                lines.append((f'layer "{row["layer"]}": {shut}', gain))
            if row["rescaled"] or not gain > 0 or abs(math.log(gain)) <= math.log(FAR_GAIN):
                continue
            rule = _rule(float(row["mean_squared_gate"]))
            what = f"multiply its weights by {gain**-0.5:.2g}"
            lines.append((f'layer "{row["layer"]}": energy {factor(gain)}, where {rule} keeps it; {what}', gain))
        number = int((self.data["rescaled"].to_numpy() == 0).sum())
        if lost and not lines:
            each = total ** (-0.5 / number)
            yield f"no layer alone is far from gain 1; multiply the weights of each by {each:.3g}", each
        yield from _first(sorted(lines, key=lambda line: line[1] > 0), "layer")

    @property
    def settled(self) -> str:
        """The sentence where there is no advice: what was looked at; nothing of trained weights."""
        number, layers = self.data.sizes["block"], self.data.sizes["layer"]
        if self.trained:
            return ""
        if number:
            return f"no rate of the {number} residual block{'s' * (number != 1)} asks for a change"
        return (
            f"none of {layers} layers changes the energy of paths by more than a factor of {FAR_GAIN:g}, nor all of "
            f"them together by {FAR_TOTAL:,.0f}"
        )

    def view(self) -> View:
        """Rates of residual blocks, gains of layers, and what to change."""
        number, layers = self.data.sizes["block"], self.data.sizes["layer"]
        multipliers = [
            "closed" if c else f"{m:.3g}" for m, c in zip(self.multiplier.values, self._closed(), strict=True)
        ]
        phase = self.phase if self.phase == "plain" else f"{self.phase}, T = {self.T:.3g}"
        tables = [
            Table("residual blocks", ["block", "rate", "multiplier", "last layer"], [
                [str(r["block"]), f"{r['rate']:.3g}", multiplier, str(r["last_layer"])]
                for r, multiplier in zip(self._rows("block"), multipliers, strict=True)
            ], spare=("last layer",)),
            Table("layers", ["layer", "gain", "gradients", "E[a²]", "rescaled"], [
                [
                    str(r["layer"]),
                    *(estimate(r[key], digits=".3g") for key in ("gain", "gradient_gain", "mean_squared_gate")),
                    "yes" if r["rescaled"] else "",
                ]
                for r in self._rows("layer")
            ]),
        ]  # fmt: skip
        return self._view(
            title="Scaling",
            heading=f"{number} residual block{'s' * (number != 1)}, {layers} layer{'s' * (layers != 1)}: {phase}",
            facts=[
                standing("exact", "but for rounding, for these examples (what to multiply by is a guide)"),
                *self._facts(),
            ],
            brief=1,
            tables=tables if number else tables[1:],
            charts=[self._rates() if number else self._gains()],
            advice=self.advice,
            settled="" if self.advice else self.settled,
            series={"gains": self._along("gain")} if self.phase == "plain" else {"rates": self._along("rate")},
        )

    def _facts(self) -> list[Fact]:
        facts = [Fact("regime", self.phase, f"({PHASES[self.phase]})")]
        if self.phase == "plain":
            gain = f"{self.total_gain:.4g}"
            return [*facts, Fact("gain of path energy in all", gain, "(1 keeps its scale)")]
        number, share = self.data.sizes["block"], self.skip_share
        written = "–" if math.isnan(share) else f"{share:.2g}" if share < 1e-3 else f"{share:.1%}"
        return [
            *facts,
            Fact("T, the sum of log(1 + λ)", f"{self.T:.3g}", f"over {number} residual block{'s' * (number != 1)}"),
            Fact("path energy that takes no branch", written, "(e^−T)"),
        ]

    def _rates(self) -> Chart:
        number = self.data.sizes["block"]
        return Chart(
            f"Strength of blocks: {self.phase}, T = {self.T:.3g}",
            [
                Line("branch over skip", np.arange(1, number + 1), self.rate, "dots", named=True),
                Line(f"balanced, 1/{number}", [0.5, number + 0.5], [1 / number] * 2, "dashed", 1),
            ],
            by_depth("residual block", list(self._along("rate"))),
            Axis("rate λ", log=True),
        )

    def _gains(self) -> Chart:
        depth = np.arange(1, self.data.sizes["layer"] + 1)
        ends = (0.5, len(depth) + 0.5)
        return Chart(
            "Gain of each layer; 1 keeps the scale",
            [
                Line("energy, upwards", depth, self.gain, "dots", named=True),
                Line("gradients, downwards", depth, self.gradient_gain, "dots", 1, named=True),
                Line("", ends, [1, 1], "thin", 3),
            ],
            by_depth("layer", list(self._along("gain"))),
            Axis("gain", log=True),
        )

    def _closed(self) -> Array:
        """Branches that start at the identity on purpose."""
        return np.asarray(self.data["identity"].to_numpy() != 0)

    def _along(self, variable: str) -> dict[str, float]:
        """A variable by the names of its axis."""
        return {str(name): float(value) for name, value in self.data[variable].to_series().items()}

    def _rows(self, axis: str) -> Iterator[dict[str, Any]]:
        """The variables along an axis, entry by entry."""
        names = [name for name, variable in self.SCHEMA.items() if variable.axes == (axis,)]
        columns = {name: self.data[name].to_numpy() for name in names}
        for k in range(self.data.sizes[axis]):
            yield {name: column[k] for name, column in columns.items()}


def _is_far(excess: float, alike: bool) -> bool:
    """Tell whether a rate is too small, or too large where gradients are not known to be alike."""
    return excess < 1 / FAR_RATE or (excess > FAR_RATE and not alike)


def factor(value: float) -> str:
    """A factor as growth or loss."""
    return f"grows {value:.3g} times" if value > 1 else f"falls to {value:.2g}"


def _rule(mean_squared_gate: float) -> str:
    """The variance rule that keeps path energy, by its usual name."""
    if math.isclose(mean_squared_gate, 0.5, rel_tol=0.1):
        return "He's variance 2 / fan-in"
    if math.isclose(mean_squared_gate, 1.0, rel_tol=0.1):
        return "Xavier's variance 1 / fan-in"
    return f"a variance of {1 / mean_squared_gate:.3g} / fan-in"


def _first(lines: list[tuple[str, float]], of: str) -> Iterator[tuple[str, float]]:
    yield from lines[:MOST_ADVICE]
    if (more := len(lines) - MOST_ADVICE) > 0:
        yield f"and {more} more {of}{'s' * (more > 1)}, in the table", float(more)
