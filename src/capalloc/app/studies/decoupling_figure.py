"""The figure of the decoupling study, drawn from its table alone."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capalloc.app.studies.frame import figure_of, panels

FAMILY_TITLES = {
    "delta": "equal decoupling δ of all pairs",
    "activation": "measured gates of activations",
    "omega": "measured gates of sin(ω z)",
}
PROFILE_MARKERS = "osD^vP"


def plot_decoupling_study(study: xr.Dataset, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw capacity profiles, one panel for each family of settings, coloured by their decoupling.

    Args:
        study: what `decoupling_study` returned.
        axes: six Axes, three on a linear scale and three on a log one; a new figure by default.

    Returns:
        The figure; standard errors over networks are in the table.

    """
    if axes is None:
        axes = panels(2, len(FAMILY_TITLES), (12.5, 7), sharex=True, sharey="row")
    for k, (family, title) in enumerate(FAMILY_TITLES.items()):
        part = study.isel(setting=(study["family"] == family).to_numpy())
        linear, logarithmic = axes[k], axes[k + len(FAMILY_TITLES)]
        for ax in (linear, logarithmic):
            _profiles(ax, part)
        linear.set_ylim(bottom=0)
        linear.set_title(title, fontsize="medium")
        logarithmic.set_yscale("log")
        logarithmic.legend(fontsize="x-small", loc="lower center")
        logarithmic.set_xlabel("input, offset from the output's position")
    axes[len(FAMILY_TITLES)].set_ylabel("the same, log scale")
    axes[0].set_ylabel("capacity, in parameters")
    sizes = ", ".join(f"{name} {study.attrs[name]}" for name in ("depth", "channels", "kernel", "draws"))
    found = figure_of(axes)
    found.suptitle(f"Capacity of a stack of 1-D convolutions ({sizes})", fontsize="medium")
    return found


def _profiles(ax: Axes, part: xr.Dataset) -> None:
    colours = plt.get_cmap("viridis")
    for k, name in enumerate(part["setting"].to_numpy()):
        row = part.sel(setting=name)
        delta = float(row["decoupling"])
        measured = "" if str(name).startswith("δ") else f", d = {delta:.2f}"
        label = f"{name}{measured}, total {float(row['total']):.3g}"
        marker = PROFILE_MARKERS[k % len(PROFILE_MARKERS)]
        ax.plot(row["input"], row["capacity"], color=colours(0.9 * delta), marker=marker, markersize=4, label=label)
