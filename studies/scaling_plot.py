"""The figure of the scaling study, drawn from its tables alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.figures import BLACK, BLUE, ORANGE, SKY, VERMILION, log_axis, points

STYLES = ((VERMILION, "o"), (ORANGE, "s"), (BLACK, "D"), (SKY, "^"), (BLUE, "v"))


def plot_scaling(sweeps: dict[str, xr.Dataset], gains: dict[str, xr.Dataset]) -> Figure:
    """Four panels: T by depth and by memory, odds of biases, gains by width."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    by_size(axes[0, 0], sweeps["residual"], "α", "depth L, blocks")
    axes[0, 0].set(ylabel="T = Σ log(1 + λ)", title=r"Residual branches × $L^{-\alpha}$")
    by_size(axes[0, 1], sweeps["recurrent"], "α", "memory M, steps")
    axes[0, 1].set(ylabel="T = Σ log(1 + λ)", title=r"Recurrent branches × $M^{-\alpha}$")
    by_size(axes[1, 0], sweeps["residual biases"], "β", "depth L, blocks")
    axes[1, 0].set(ylabel="odds of ending at a bias", title=r"Residual biases ~ $L^{-\beta}$, branches × $L^{-1/2}$")
    by_width(axes[1, 1], gains)
    axes[1, 1].set(ylabel="gain of path energy", title=r"Plain layers, variance $n^{-\gamma}$ / E[a²]")
    figure.suptitle(
        "Scaling rules: random networks (points, mean over seeds) and exact sums (lines)", fontsize="medium"
    )
    return figure


def by_size(ax: Axes, data: xr.Dataset, letter: str, size: str) -> None:
    """One line and its points for each exponent."""
    for (colour, marker), exponent in zip(STYLES, data["exponent"].to_numpy(), strict=True):
        row = data.sel(exponent=exponent)
        fine = row["exact"]
        ax.plot(fine["size"], fine, color=colour, linewidth=1.2)
        over_seeds(ax, row["measured"], (colour, marker), f"{letter} = {exponent:g}")
    log_axis(ax, data["size"].to_numpy(), size, base=2)
    ax.set_yscale("log")
    ax.set_ylim(top=4 * ax.get_ylim()[1])  # room for the legend
    ax.legend(fontsize="small", ncols=2, loc="upper left")


def by_width(ax: Axes, gains: dict[str, xr.Dataset]) -> None:
    """The middle and outer exponents for each activation; lines n^(1 - gamma)."""
    for k, (activation, data) in enumerate(gains.items()):
        for exponent in data["exponent"].to_numpy()[::2]:
            row = data.sel(exponent=exponent)
            if k == 0:
                ax.plot(row["size"], row["exact"], color="grey", linewidth=1)
                ax.annotate(
                    f"γ = {exponent:g}",
                    (row["size"][0], row["exact"][0]),
                    xytext=(-6, 12),
                    textcoords="offset points",
                    ha="left",
                    fontsize="small",
                )
            label = activation if exponent == 1 else None
            over_seeds(ax, row["measured"], STYLES[2 * k], label, size=9 - 2 * k)
    log_axis(ax, next(iter(gains.values()))["size"].to_numpy(), "width n, units", base=2)
    ax.set_yscale("log")
    ax.legend(fontsize="small", loc="upper left")


def over_seeds(ax: Axes, measured: xr.DataArray, style: tuple[str, str], label: str | None, size: int = 6) -> None:
    """Draw means over seeds with standard errors."""
    error = measured.std("seed", ddof=1) / np.sqrt(measured.sizes["seed"])
    mean = measured.mean("seed")
    points(ax, mean["size"], mean, error, style, label, markersize=size, capsize=2)
