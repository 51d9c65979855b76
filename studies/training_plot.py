"""The figure of the training study: accuracy by depth, and by the numbers predicted at initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW, log_axis
from studies.training_predict import IDLE, SHATTERED
from studies.training_results import Result

STYLES = {
    "plain, He": (BLUE, "o"),
    "plain, 1.5 He": (ORANGE, "v"),
    "plain, 2 He": (VERMILION, "^"),
    "plain, 1/n": (SKY, "s"),
    "plain tanh, 1/n": (PURPLE, "D"),
    "residual, 1": (VERMILION, "^"),
    "residual, $L^{-1/4}$": (ORANGE, "v"),
    "residual, $L^{-1/2}$": (BLUE, "o"),
    "residual, $L^{-1}$": (SKY, "s"),
    "residual, $L^{-2}$": (GREEN, "P"),
    "divided, 1": (PURPLE, "D"),
    "divided, $L^{-1/4}$": (YELLOW, "X"),
    "normalised branch": (BLACK, "*"),
    "no blocks": (GREY, "_"),
}


def draw(found: Mapping[str, Sequence[Result]]) -> Figure:
    """By depth above; against gradient correlation and T below."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 9), layout="constrained")
    digits, pairs = found["digits, SGD"], found["pairs, SGD"]
    by_depth(axes[0, 0], [r for r in digits if r.prediction.plain], "plain networks, digits, SGD", "upper right")
    by_depth(axes[0, 1], [r for r in digits if not r.prediction.plain], "residual networks, digits, SGD", "lower left")
    by_depth(
        axes[0, 2], [r for r in pairs if not r.prediction.plain], "residual networks, pairs, SGD (as in the middle)"
    )
    by_correlation(axes[1, 0], digits, "all networks, digits, SGD")
    by_time(axes[1, 1], digits, "residual networks, digits, SGD")
    by_time(axes[1, 2], pairs, "residual networks, pairs, SGD")
    return figure


def by_depth(ax: Axes, results: Sequence[Result], title: str, legend: str | None = None) -> None:
    """A line for each family, mean and standard error of the seeds."""
    for family in dict.fromkeys(result.network.family for result in results):
        line = [result for result in results if result.network.family == family]
        colour, marker = STYLES[family]
        depths, accuracy, error = (
            [pick(r) for r in line] for pick in (lambda r: r.network.depth, lambda r: r.accuracy, lambda r: r.error)
        )
        ax.errorbar(depths, accuracy, error, color=colour, marker=marker, capsize=2, label=family, markeredgecolor="k")
    log_axis(ax, (result.network.depth for result in results), "depth L (blocks)")
    if legend:
        ax.legend(fontsize=8, loc=legend)
    _finish(ax, results, title)


def by_correlation(ax: Axes, results: Sequence[Result], title: str) -> None:
    """Hollow where the predicted gain is out of bounds."""
    ax.axvspan(1e-5, SHATTERED, color="0.88", zorder=0)
    ax.text(1.2e-4, 1.0, "shattered", va="bottom")
    for inside, face, label in ((True, BLUE, "gain within 1000"), (False, "none", "gain outside")):
        for plain, marker in ((True, "s"), (False, "o")):
            chosen = [r for r in results if r.prediction.plain == plain and r.prediction.gain_fits == inside]
            x, y = ([pick(r) for r in chosen] for pick in (lambda r: r.prediction.correlation, lambda r: r.accuracy))
            name = f"{'plain' if plain else 'residual'}, {label}"
            ax.scatter(x, y, marker=marker, facecolor=face, edgecolor="k", s=45, label=name, zorder=2)
    ax.set_xscale("log")
    ax.set_xlim(1e-4, 1.3)
    ax.set_xlabel("predicted correlation of the gradients at two examples")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    _finish(ax, results, title)


def by_time(ax: Axes, results: Sequence[Result], title: str) -> None:
    """The phases shaded: no propagation to the left, shattering to the right."""
    low, high, edges = -np.log(IDLE), -np.log(SHATTERED), (1e-7, 200)
    ax.axvspan(edges[0], low, color=SKY, alpha=0.2, zorder=0)
    ax.axvspan(high, edges[1], color=VERMILION, alpha=0.2, zorder=0)
    for x, text in (
        (1e-4, "no propagation"),
        (np.sqrt(low * high), "balanced"),
        (np.sqrt(high * edges[1]), "shatters"),
    ):
        ax.text(x, 1.0, text, ha="center", va="bottom", fontsize=9)
    for result in results:
        if not result.prediction.plain and result.prediction.time > 0:
            colour, marker = STYLES[result.network.family]
            y, error = result.accuracy, result.error
            ax.errorbar(result.prediction.time, y, error, color=colour, marker=marker, markeredgecolor="k", capsize=2)
    ax.set_xscale("log")
    ax.set_xlim(*edges)
    ax.set_xlabel("predicted T = sum of log(1 + λ), at initial weights")
    _finish(ax, results, title)


def _finish(ax: Axes, results: Sequence[Result], title: str) -> None:
    ax.axhline(results[0].threshold, color="k", linestyle=":", linewidth=1)
    ax.set_ylim(-0.03, 1.06)
    ax.set_ylabel("test accuracy")
    ax.set_title(title)
