"""The figure of the effective field, drawn from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from studies.receptive_field_estimates import gaussian
from studies.receptive_field_measure import Field, to_pandas
from studies.receptive_field_stacks import offsets

# Okabe and Ito's colours, which colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


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
        for k, (_, points) in enumerate(part.groupby("activation")):
            _points(ax, points["depth"] * 1.05 ** (k - 1), points, colour, MARKERS[k])
    for marker, activation in zip(MARKERS, sorted(chosen["activation"].unique()), strict=False):
        ax.plot([], [], marker, color="grey", markerfacecolor="white", label=f"measured, {activation}")
    ax.plot([], [], ":", color="grey", label="half the theoretical field")
    _axes(ax, chosen, room=4)
    ax.set_title("Plain stacks, random weights", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left", ncols=2)


def _points(
    ax: Axes, depths: pd.Series, part: pd.DataFrame, colour: str, marker: str, label: str | None = None
) -> None:
    style = {"fmt": marker, "color": colour, "markersize": 6, "markerfacecolor": "white", "capsize": 3}
    ax.errorbar(depths, part["measured"], part["measured_error"], label=label, **style)


def _axes(ax: Axes, part: pd.DataFrame, room: float) -> None:
    """Log scales; room for a legend above."""
    _depths(ax, part)
    ax.set_yscale("log")
    ax.set_ylim(top=room * ax.get_ylim()[1])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("standard deviation / input pixels")


def _depths(ax: Axes, part: pd.DataFrame) -> None:
    depths = sorted(part["depth"].unique())
    ax.set_xscale("log")
    ax.set_xticks(depths, [str(depth) for depth in depths])
    ax.minorticks_off()
    ax.set_xlabel("depth L / convolutions")


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
        ax.errorbar(
            part["depth"] * 1.03 ** (k - 2.5),
            part["kurtosis"],
            part["kurtosis_error"],
            fmt=MARKERS[k],
            color=COLOURS[k],
            markerfacecolor="white",
            capsize=3,
            label=f"{weights}, {activation}",
        )
    ax.axhline(0, color="grey", linewidth=0.8)
    _depths(ax, chosen)
    ax.set_ylabel("excess kurtosis")
    ax.set_title("Towards the Gaussian: plain stacks, kernel 3", fontsize="medium")
    ax.legend(fontsize="small")


def _architectures(ax: Axes, frame: pd.DataFrame) -> None:
    chosen = frame[~frame["family"].isin(["plain", "width"])]
    for colour, marker, (family, part) in zip(COLOURS, MARKERS, chosen.groupby("family", sort=False), strict=False):
        ax.plot(part["depth"], part["predicted"], color=colour)
        _points(ax, part["depth"], part, colour, marker, str(family))
    _axes(ax, chosen, room=6)
    ax.set_title("Other ReLU stacks, kernel 3: the walk (lines) and measured", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left", ncols=2)
