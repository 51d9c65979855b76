"""The figure of the effective field, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from studies.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, log_axis, points
from studies.receptive_field_estimates import gaussian
from studies.receptive_field_measure import Field, to_pandas
from studies.receptive_field_stacks import offsets

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vP"
DEPTH_LABEL = "depth L / convolutions"


def plot_fields(fields: Sequence[Field]) -> Figure:
    """Deviation against depth, profiles, distance from the Gaussian, and residual scalings."""
    frame = to_pandas(fields)
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    _growth(axes[0, 0], frame)
    _profiles(axes[0, 1], fields)
    _kurtosis(axes[1, 0], frame)
    _architectures(axes[1, 1], frame)
    return figure


def _growth(ax: Axes, frame: pd.DataFrame) -> None:
    chosen = frame[(frame["family"] == "plain") & (frame["weights"] == "random")]
    for colour, (kernel, part) in zip(COLOURS, chosen.groupby("kernel"), strict=False):
        once = part.drop_duplicates("depth")
        ax.plot(once["depth"], (once["size"] - 1) / 2, ":", color=colour)
        ax.plot(once["depth"], once["predicted"], color=colour, label=f"walk, kernel {kernel}")
        for k, (_, some) in enumerate(part.groupby("activation")):
            depths = some["depth"] * 1.05 ** (k - 1)
            points(ax, depths, some["measured"], some["measured_error"], (colour, MARKERS[k]))
    for marker, activation in zip(MARKERS, sorted(chosen["activation"].unique()), strict=False):
        ax.plot([], [], marker, color="grey", markerfacecolor="white", label=f"measured, {activation}")
    ax.plot([], [], ":", color="grey", label="half the theoretical field")
    _axes(ax, chosen, room=4)
    ax.set_title("Plain stacks, random weights", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left", ncols=2)


def _axes(ax: Axes, part: pd.DataFrame, room: float) -> None:
    """Log scales; room for a legend above."""
    log_axis(ax, part["depth"], DEPTH_LABEL)
    ax.set_yscale("log")
    ax.set_ylim(top=room * ax.get_ylim()[1])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("standard deviation / input pixels")


def _profiles(ax: Axes, fields: Sequence[Field]) -> None:
    plain = [f for f in fields if f.case.family == "plain"]
    chosen = [f for f in plain if (f.case.stack.kernel, f.case.stack.activation) == (3, "relu")]
    chosen = [f for f in chosen if f.case.stack.weights == "random"]
    for k, field in enumerate((chosen[0], chosen[-1])):
        law, depth = field.case.stack.law(), field.case.stack.depth
        places, colour = offsets(law), COLOURS[k]
        ax.plot(places, gaussian(law), color="black", linewidth=0.8, label=None if k else "Gaussian")
        ax.plot(places, law, "--", color=colour, label=f"walk, L = {depth}")
        ax.plot(places, field.law, MARKERS[k], color=colour, markerfacecolor="white", label=f"measured, L = {depth}")
    reach = 3.5 * chosen[-1].case.stack.deviation
    ax.set(xlim=(-reach, reach), xlabel="offset from the centre / input pixels", ylabel="share of the squared gradient")
    ax.set_title("Profile along an axis: ReLU, kernel 3", fontsize="medium")
    ax.legend(fontsize="small")


def _kurtosis(ax: Axes, frame: pd.DataFrame) -> None:
    chosen = frame[(frame["family"] == "plain") & (frame["kernel"] == 3) & (frame["weights"] != "binomial")]
    chosen = chosen[(chosen["weights"] == "random") | (chosen["of"] == "gradient")]
    first = chosen[chosen["activation"] == "linear"].drop_duplicates("depth")
    ax.plot(first["depth"], first["predicted_kurtosis"], color="black", label="walk: -1.5 / L")
    kinds = chosen.groupby(["weights", "activation"], sort=False)
    for k, ((weights, activation), part) in enumerate(kinds):
        depths, style = part["depth"] * 1.03 ** (k - 2.5), (COLOURS[k], MARKERS[k])
        points(ax, depths, part["kurtosis"], part["kurtosis_error"], style, f"{weights}, {activation}")
    ax.axhline(0, color="grey", linewidth=0.8)
    log_axis(ax, chosen["depth"], DEPTH_LABEL)
    ax.set_ylabel("excess kurtosis")
    ax.set_title("Towards the Gaussian: plain stacks, kernel 3", fontsize="medium")
    ax.legend(fontsize="small")


def _architectures(ax: Axes, frame: pd.DataFrame) -> None:
    chosen = frame[~frame["family"].isin(["plain", "width"])]
    for colour, marker, (family, part) in zip(COLOURS, MARKERS, chosen.groupby("family", sort=False), strict=False):
        ax.plot(part["depth"], part["predicted"], color=colour)
        points(ax, part["depth"], part["measured"], part["measured_error"], (colour, marker), str(family))
    _axes(ax, chosen, room=6)
    ax.set_title("Other ReLU stacks, kernel 3: the walk (lines) and measured", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left", ncols=2)
