"""Shattered gradients: the closed-form law against random networks of four families (docs/theory.md, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from torch import nn

from capalloc._depth.shattering_law import FAMILIES
from studies.shattering_measured import Design, Line, autocorrelation, measured, predictions
from studies.shattering_plot import NAMES, plot_shattering
from studies.study import Study, plus_minus, table

NEAR = 0.9
#: Random networks by width: about as long for each.
NETWORKS = {64: 3000, 128: 1600, 256: 700, 512: 240, 1024: 70}
TANH_NETWORKS = {64: 3000, 128: 1200, 256: 500, 512: 120}
TANH_FAMILIES = ("plain", "residual")
QUICK = {24: 300, 48: 150, 96: 60}


@dataclass(frozen=True, eq=False)
class Results:
    """All that the study measures and predicts."""

    relu: xr.Dataset
    tanh: xr.Dataset
    laws: xr.DataArray  # d = 1/2 at every block
    line: xr.Dataset


def run(quick: bool = False) -> Study:
    """Measure, predict, extrapolate to infinite width."""
    return shown(results(quick))


def results(quick: bool = False) -> Results:
    """The four families with ReLU, two of them with tanh, and gradients along a line."""
    depths = (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, 32, 64)
    design = Design(tuple(FAMILIES), depths, QUICK if quick else NETWORKS, NEAR, seed=0)
    other = Design(TANH_FAMILIES, depths, QUICK if quick else TANH_NETWORKS, NEAR, seed=1)
    line = Line(9, 2.0, 6, 64, 40, seed=2) if quick else Line(33, 2.0, 24, 1024, 60, seed=2)
    return Results(
        relu=measured(design, "relu", nn.ReLU()),
        tanh=measured(other, "tanh", nn.Tanh()),
        laws=predictions(design, "relu", decoupling=0.5),
        line=autocorrelation(line, tuple(FAMILIES)).assign_attrs(depth=line.depth, width=line.width),
    )


def shown(found: Results) -> Study:
    """Tables and the figure."""
    tables = {
        "agreement": agreement({"ReLU": found.relu, "tanh": found.tanh}, found.line),
        "families": families_table(found.relu),
        "tanh": families_table(found.tanh),
        "extrapolation": extrapolation_table(found.relu),
        "estimators": estimators_table(found.relu),
        "line": line_table(found.line),
    }
    title = "Correlation of the gradients of a random network at two inputs: measured (points) and the law (lines)"
    figure = plot_shattering(found.relu, found.tanh, found.laws, found.line, title)
    return Study("shattering.md", tables, {"shattering": figure})


def families_table(data: xr.Dataset) -> str:
    """Predicted and measured by family and depth, for both pairs."""
    head = ["family", "depth"]
    for pair in data["pair"].to_numpy():
        head += [f"ρ = {pair:g}: predicted", "widest", "infinite width", "z"]
    rows = []
    for family in data["family"].to_numpy():
        for depth in data["depth"].to_numpy():
            row: list[object] = [NAMES[family] if depth == data["depth"][0] else "", depth]
            for pair in data["pair"].to_numpy():
                row += _cells(data.sel(family=family, depth=depth, pair=pair))
            rows.append(row)
    return table(head, rows)


def _cells(at: xr.Dataset) -> list[str]:
    last = at.isel(width=-1)
    return [
        f"{float(at['predicted']):.4f}",
        plus_minus(last["measured"], last["error"]),
        plus_minus(at["intercept"], at["intercept_error"]),
        f"{float(at['z']):+.1f}",
    ]


def extrapolation_table(data: xr.Dataset) -> str:
    """Independent inputs, every second doubling of the depth: by width, and the intercept."""
    some = data.isel(pair=0, depth=slice(None, None, 2))
    widths = data["width"].to_numpy()
    middle = int(widths[len(widths) // 2])
    head = ["family", "depth", *(f"width {n}" for n in widths), "infinite width", "predicted", "χ² / freedom"]
    head += [f"excess at {middle}, in T²/n"]
    rows = []
    for family in some["family"].to_numpy():
        for depth in some["depth"].to_numpy():
            at = some.sel(family=family, depth=depth)
            by_width = [plus_minus(at["measured"].sel(width=n), at["error"].sel(width=n)) for n in widths]
            limit = plus_minus(at["intercept"], at["intercept_error"])
            quality = f"{float(at['chi_square']):.1f} / {int(at['freedom'])}"
            cells = [limit, f"{float(at['predicted']):.4f}", quality, excess(at.sel(width=middle))]
            rows.append([family, depth, *by_width, *cells])
    return table(head, rows)


def excess(at: xr.Dataset) -> str:
    """measured / predicted - 1 in units of T^2 / width, T the mean number of gates on a path."""
    unit = float(at["predicted"] * at["gates"] ** 2 / at["width"])
    return plus_minus((at["measured"] - at["predicted"]) / unit, at["error"] / unit, 1)


def estimators_table(data: xr.Dataset) -> str:
    """The ratio of means beside the mean cosine, on the narrowest and the widest networks, at the largest depth."""
    deep = data.isel(depth=-1)
    head = ["family", "ρ", "predicted"]
    ends = [int(data["width"][k]) for k in (0, -1)]
    head += [f"{what}, width {n}" for n in ends for what in ("ratio of means", "mean cosine")]
    rows = []
    for family in data["family"].to_numpy():
        for pair in data["pair"].to_numpy():
            at = deep.sel(family=family, pair=pair)
            cells = [f"{float(at['predicted']):.4f}"]
            for n in ends:
                here = at.sel(width=n)
                cells += [plus_minus(here["measured"], here["error"]), plus_minus(here["cosine"], here["cosine_error"])]
            rows.append([family, f"{pair:g}", *cells])
    return table(head, rows)


def line_table(line: xr.Dataset) -> str:
    """Autocorrelation at a few distances, measured and predicted."""
    some = line.isel(lag=np.unique(np.linspace(0, line.sizes["lag"] - 1, 9).round().astype(int))[1:])
    head = ["family", *(f"{lag:g}" for lag in some["lag"].to_numpy())]
    rows = []
    for family in line["family"].to_numpy():
        row = some.sel(family=family)
        rows.append([f"{family}, predicted", *(f"{v:.3f}" for v in row["predicted"].to_numpy())])
        pairs = zip(row["measured"], row["error"], strict=True)
        rows.append([f"{family}, measured", *(plus_minus(v, e, 3) for v, e in pairs)])
    return table(head, rows)


def agreement(by_activation: dict[str, xr.Dataset], line: xr.Dataset) -> str:
    """How the z-scores of all points lie: points, root mean square, largest, and share within 3 standard errors."""
    scores = {f"{name}, infinite width": data["z"].to_numpy().ravel() for name, data in by_activation.items()}
    off = ((line["measured"] - line["predicted"]) / line["error"]).isel(lag=slice(1, None))
    scores[f"ReLU, along a line, width {line.attrs['width']}"] = off.to_numpy().ravel()
    head = ["points", "number", "root mean square of z", "largest z in size", "within 3 errors"]
    rows = [
        [name, len(z), f"{np.sqrt(np.mean(z**2)):.2f}", f"{np.abs(z).max():.1f}", f"{np.mean(np.abs(z) < 3):.0%}"]
        for name, z in scores.items()
    ]
    return table(head, rows)
