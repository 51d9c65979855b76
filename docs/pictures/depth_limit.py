"""Draw docs/pictures/depth-limit.png and print the convergence table of docs/depth-limit.md.

python docs/pictures/depth_limit.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from capalloc.depth_limit import StepLaw, WalkBlock, chain, diffusion, gaussian, jump, point

HERE = Path(__file__).parent
FIVE = StepLaw.uniform(5)
SKEWED = StepLaw([2, 0, 0, 1], origin=1)  # -1 or +2, of mean 0
TILTED = StepLaw([[0, 0, 1], [1, 3, 1], [4, 1, 0]])  # correlated axes, and a drift
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe and Ito's, told apart by colour-blind readers
MARKERS = "osD"


@dataclass(frozen=True)
class Series:
    """Distances by one parameter, and the law that theory says they follow."""

    name: str
    theory: float
    parameter: Sequence[float]
    distance: Callable[[float], float]

    def values(self) -> np.ndarray:
        """Total-variation distances."""
        return np.array([self.distance(value) for value in self.parameter])

    def slope(self) -> float:
        """Of a straight line through the logarithms."""
        return float(np.polyfit(np.log(self.parameter), np.log(self.values()), 1)[0])


def total_variation(a: xr.DataArray, b: xr.DataArray) -> float:
    """sum |a - b| / 2."""
    return float(abs(a.to_numpy() - b.to_numpy()).sum()) / 2


def chain_to_jump(clock: str, border: str, size: int = 15, total: float = 2.0) -> Callable[[float], float]:
    """L blocks of rate `total` / L on `size` positions."""

    def distance(depth: float) -> float:
        blocks, start = [WalkBlock(FIVE, total / depth)] * int(depth), point(size)
        return total_variation(chain(blocks, start, border).final, jump(blocks, start, border, clock=clock).final)

    return distance


def jump_to_diffusion(law: StepLaw) -> Callable[[float], float]:
    """A block of rate T on a ring that is wide beside the walk."""

    def distance(rate: float) -> float:
        blocks, start = [WalkBlock(law, rate)], point(1024)
        return total_variation(jump(blocks, start, "periodic").final, diffusion(blocks, start, "periodic").final)

    return distance


def diffusion_to_gaussian(law: StepLaw, width: float, rate: float) -> Callable[[float], float]:
    """Cells of one size on a ring that is wide beside the walk, `width` in pixels."""

    def distance(spacing: float) -> float:
        shape = (round(width / spacing),) * law.ndim
        blocks = [WalkBlock(law, rate)]
        walk = diffusion(blocks, point(shape), "periodic", spacing=spacing)
        return total_variation(walk.final, gaussian(blocks, shape, spacing=spacing))

    return distance


DEPTHS, RATES, SPACINGS = 2.0 ** np.arange(5, 10), 4.0 ** np.arange(2, 6), 0.5 ** np.arange(1, 5)
CLOCKS = ("rate", "log", "steps")
STUDIES = {
    "chain to jump, depth L": [
        *(Series(f"T = 2, clock '{clock}'", -1, DEPTHS, chain_to_jump(clock, "absorbing")) for clock in CLOCKS),
        *(
            Series(f"T = 2, {border}", -1, DEPTHS, chain_to_jump("rate", border))
            for border in ("reflecting", "periodic")
        ),
        *(Series(f"T = 16, '{c}', wide ring", -1, DEPTHS, chain_to_jump(c, "periodic", 201, 16.0)) for c in CLOCKS),
    ],
    "jump to diffusion, total rate T": [
        Series("symmetric steps", -1, RATES, jump_to_diffusion(FIVE)),
        Series("skewed steps", -0.5, RATES, jump_to_diffusion(SKEWED)),
    ],
    "diffusion to Gaussian, cell size h in pixels": [
        Series("one axis, skewed steps", 2, SPACINGS, diffusion_to_gaussian(SKEWED, 32, 4.0)),
        Series("two axes, tilted steps with drift", 2, SPACINGS, diffusion_to_gaussian(TILTED, 24, 4.0)),
    ],
}


def table() -> str:
    """Distances at both ends, the fitted slopes, and theory's."""
    lines = ["| limit | case | from | to | slope | theory |", "| --- | --- | --- | --- | --- | --- |"]
    for limit, series in STUDIES.items():
        symbol = limit.split(",")[1].replace(" in pixels", "").split()[-1]
        for one in series:
            ends = [f"{one.distance(one.parameter[k]):.2g} at {symbol} = {one.parameter[k]:g}" for k in (0, -1)]
            lines.append(
                f"| {limit.split(',')[0]} | {one.name} | {' | '.join(ends)} | {one.slope():.3f} | {one.theory:g} |"
            )
    return "\n".join(lines)


def draw_laws(ax: Axes, depth: int, total: float) -> None:
    """The three laws after `depth` blocks of rate `total` / `depth`."""
    blocks, size = [WalkBlock(FIVE, total / depth)] * depth, 61
    places = np.arange(size) - size // 2
    ax.bar(places, chain(blocks, point(size)).final, color="0.8", label="chain")
    for describe, style, colour in ((jump, "o", COLOURS[0]), (diffusion, "-", COLOURS[1])):
        ax.plot(places, describe(blocks, point(size)).final, style, color=colour, markersize=3, label=describe.__name__)
    reach = 4 * np.sqrt(2 * total)
    ax.set(xlim=(-reach, reach), xlabel="displacement, in pixels", title=f"L = {depth} blocks, T = {total:g}")
    ax.legend(fontsize="small")


def draw_convergence(ax: Axes, limit: str) -> None:
    """Distances of one limit on logarithmic axes."""
    for one, colour, marker in zip(STUDIES[limit], COLOURS, MARKERS, strict=False):
        ax.loglog(
            one.parameter,
            one.values(),
            marker,
            color=colour,
            linestyle="-",
            label=f"{one.name}: slope {one.slope():.2f}",
        )
    title, axis = limit.split(", ", 1)
    ticks = STUDIES[limit][0].parameter
    ax.set(title=title, xlabel=axis, ylim=(1e-5, 2e-1))
    ax.set_xticks(ticks, [f"{value:g}" for value in ticks])
    ax.minorticks_off()
    ax.legend(fontsize="small", loc="lower left" if ticks[0] > 1 else "upper left")


def main() -> None:
    """Print the table and save the picture."""
    print(table())
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for ax, (depth, total) in zip(axes[0], ((2, 2.0), (64, 2.0), (256, 16.0)), strict=True):
        draw_laws(ax, depth, total)
    for ax, limit in zip(axes[1], STUDIES, strict=True):
        draw_convergence(ax, limit)
    axes[0, 0].set_ylabel("probability of a position")
    axes[1, 0].set_ylabel("total-variation distance")
    figure.savefig(HERE / "depth-limit.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
