"""The effective receptive field of random networks beside the walk's (docs/theory.md, section 6).

Gradients of the central output position with respect to the image, by autograd, over random networks and random
images, against `capalloc.walk` on the same networks and against the closed form sqrt(sum_l step variance x scale_l^2).

Reference: W. Luo, Y. Li, R. Urtasun, R. Zemel, Understanding the effective receptive field in deep convolutional
neural networks, NIPS 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from studies.receptive_field_measure import KIND, Case, measure_fields, slopes, to_pandas
from studies.receptive_field_plot import plot_fields
from studies.receptive_field_stacks import ACTIVATIONS, Stack
from studies.study import Study, plus_minus, table


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]  # of the stacks of growing width
    draws: Mapping[int, int]  # networks, by kernel
    walks: Mapping[int, int]  # those of them that are walked too


# What a draw costs grows as the fourth power of the kernel: its entries, times the area of the field.
FULL = Size((5, 10, 20, 40), (4, 8, 16, 32), draws={3: 400, 5: 100, 7: 40}, walks={3: 4, 5: 3, 7: 2})
QUICK = Size((4, 8), (2, 4), draws={3: 12}, walks={3: 1})


def plain_cases(size: Size) -> list[Case]:
    """Random weights, uniform ones, and those whose gradient, or its square, spreads unlike the walk."""
    random = [
        Case("plain", Stack(kernel, depth, activation), draws, walks=size.walks[kernel])
        for activation in ACTIVATIONS
        for kernel, draws in size.draws.items()
        for depth in size.depths
    ]
    uniform = [
        Case("plain", Stack(3, depth, activation, "uniform", channels=1), size.draws[3], "gradient", size.walks[3])
        for activation in ACTIVATIONS
        for depth in size.depths
    ]
    coherent = [
        Case("plain", Stack(3, depth, "linear", weights, channels=1), 2, of, walks=1)
        for weights, of in (("uniform", "gradient²"), ("binomial", "gradient"), ("binomial", "gradient²"))
        for depth in size.depths
    ]
    return [*random, *uniform, *coherent]


def scaled_cases(size: Size) -> list[Case]:
    """Dilated, strided and residual ReLU stacks of kernel 3."""
    draws, walks = size.draws[3], size.walks[3]
    cases = []
    for depth in size.depths:
        dilated = Stack(3, depth, dilations=(1, 2, 4, 8))  # its large field makes it the dearest
        cases += [
            Case("dilations 1, 2, 4, 8", dilated, -(-draws // 8), walks=-(-walks // 2)),
            Case("strides 2, 2, 1, 1 ...", Stack(3, depth, strides=(2, 2)), draws, walks=walks),
            Case("residual, ε = 1", Stack(3, depth, branch=1.0), draws, walks=walks),
            Case("residual, ε = 1/√L", Stack(3, depth, branch=depth**-0.5), draws, walks=walks),
            Case("residual, ε = 1/L", Stack(3, depth, branch=1 / depth), draws, walks=walks),
        ]
    return cases


def width_cases(size: Size) -> list[Case]:
    """Linear stacks of the largest depth and of growing width."""
    depth, draws = size.depths[-1], -(-size.draws[3] // 2)
    return [Case("width", Stack(3, depth, "linear", channels=channels), draws, walks=1) for channels in size.channels]


# -- tables ------------------------------------------------------------------------------------------------


def run(quick: bool = False) -> Study:
    """Measure all stacks; the tables and the figure of docs/receptive-field.md."""
    size = QUICK if quick else FULL
    fields = measure_fields([*plain_cases(size), *scaled_cases(size), *width_cases(size)])
    frame = to_pandas(fields)
    return Study(
        page="receptive-field.md",
        tables={
            "effective field": plain_table(frame),
            "effective field by architecture": scaled_table(frame),
            "effective field by width": width_table(frame),
        },
        pictures={"effective-field": plot_fields(fields)},
    )


def plain_table(frame: pd.DataFrame) -> str:
    """Every kind of plain stack at the largest depth, and its slope in depth."""
    found = slopes(frame)
    deepest = frame[(frame["family"] == "plain") & (frame["depth"] == frame["depth"].max())]
    head = [
        "weights",
        "activation",
        "kernel",
        "of",
        "predicted",
        "walk",
        "measured",
        "total variation (noise)",
        "slope",
    ]
    rows = []
    for _, row in deepest.iterrows():
        fit = found.loc[tuple(row[KIND])]
        rows.append(
            [
                *(row[name] for name in KIND),
                f"{row['predicted']:.3f}",
                *(_with_error(row["walk"], row["walk_error"]), _with_error(row["measured"], row["measured_error"])),
                f"{row['variation']:.4f} ({row['variation_floor']:.4f})",
                _with_error(fit["measured"], fit["error"]),
            ]
        )
    return table(head, rows)


def scaled_table(frame: pd.DataFrame) -> str:
    """Deviations of dilated, strided and residual stacks at every depth: predicted, then measured."""
    part = frame[~frame["family"].isin(["plain", "width"])]
    depths = sorted(part["depth"].unique())
    rows = []
    for family, stacks in part.groupby("family", sort=False):
        by_depth = stacks.set_index("depth")
        rows.append([family, *(_beside(by_depth.loc[depth]) for depth in depths)])
    return table(["stack", *(f"depth {depth}" for depth in depths)], rows)


def width_table(frame: pd.DataFrame) -> str:
    """Measured over predicted deviation against the number of channels."""
    part = frame[frame["family"] == "width"]
    rows = [
        [
            row["channels"],
            _with_error(row["measured"] / row["predicted"], row["measured_error"] / row["predicted"]),
            _with_error(row["alike"] / row["predicted"], row["alike_error"] / row["predicted"]),
        ]
        for _, row in part.iterrows()
    ]
    return table(["channels", "energies averaged", "networks weighted alike"], rows)


def _beside(row: pd.Series) -> str:
    return f"{row['predicted']:.3f} / {_with_error(row['measured'], row['measured_error'])}"


def _with_error(value: float, error: float) -> str:
    return plus_minus(value, error, 3) if error >= 5e-4 else f"{value:.3f}"
