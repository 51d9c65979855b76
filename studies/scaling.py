"""Scaling rules recovered by sweeps over sizes and exponents, on random networks (docs/theory.md, sections 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from capalloc._decoupling.gaussian_gates import gaussian_gate_moment
from studies.scaling_networks import (
    ACTIVATIONS,
    BLOCKS,
    CHANNELS,
    Channels,
    Family,
    Layer,
    Recurrent,
    Residual,
)
from studies.scaling_plot import plot_scaling
from studies.study import Study, plus_minus, table

EXPONENTS = (0.25, 0.375, 0.5, 0.625, 0.75)
WIDTH_EXPONENTS = (0.5, 0.75, 1.0, 1.25, 1.5)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Sizes of the sweeps."""

    depths: tuple[int, ...] = (8, 16, 32, 64, 128)
    steps: tuple[int, ...] = (8, 16, 32, 64)
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    channels: tuple[int, ...] = (4, 8, 16, 32, 64)
    seeds: int = 5
    layers: int = 20  # plain layers of each activation, width and exponent


QUICK = Design((4, 12), (4, 12), (16, 64), (4, 16), 2, 3)


def run(quick: bool = False) -> Study:
    """Sweep, fit and compare."""
    design = QUICK if quick else Design()
    sweeps = {
        "residual": times(Residual, design.depths, design.seeds),
        "recurrent": times(Recurrent, design.steps, design.seeds),
        "residual biases": biases(Residual, design.depths, design.seeds),
        "recurrent biases": biases(Recurrent, design.steps, design.seeds),
    }
    gains, by_channels = widths(design.widths, design.layers), channels(design.channels, design.seeds)
    tables = {
        "scaling": rules_table(sweeps, by_channels, gains),
        "scaling slopes": slopes_table(sweeps, gains),
        "channels": channels_table(by_channels),
    }
    return Study("scaling.md", tables, {"scaling": plot_scaling(sweeps, gains)})


# -- sweeps -------------------------------------------------------------------------------------------------


def sweep(
    name: str,
    sizes: Sequence[int],
    exponents: Sequence[float],
    seeds: int,
    measure: Callable[..., float],
    first: int = 0,
) -> xr.DataArray:
    """measure(size, exponent, generator) as (seed, exponent, size); every entry has a seed of its own."""
    found = np.empty((seeds, len(exponents), len(sizes)))
    for (j, size), (i, exponent) in product(enumerate(sizes), enumerate(exponents)):
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(100_000 * (first + seed) + 1000 * i + size)
            found[seed, i, j] = measure(size, exponent, generator)
    coords = {"seed": np.arange(seeds), "exponent": list(exponents), "size": list(sizes)}
    return xr.DataArray(found, coords, ("seed", "exponent", "size"), name=name)


def times(kind: type[Residual] | type[Recurrent], sizes: Sequence[int], seeds: int) -> xr.Dataset:
    """T against size for branches multiplied by size^-exponent, beside its exact sum."""
    families = {size: Family.of(kind, size, biases=False) for size in sizes}
    measured = sweep("T", sizes, EXPONENTS, seeds, lambda n, a, g: families[n].time(n**-a, g))
    return xr.Dataset({"measured": measured, "exact": exactly(exact_time(kind), measured)}, attrs={"what": "T"})


def biases(kind: type[Residual] | type[Recurrent], sizes: Sequence[int], seeds: int) -> xr.Dataset:
    """Odds of the biases, of size^-exponent, in a network whose branches are multiplied by size^(-1/2)."""
    families = {size: Family.of(kind, size, biases=True) for size in sizes}
    measured = sweep("odds", sizes, EXPONENTS, seeds, lambda n, b, g: families[n].odds(n**-0.5, n**-b, g))
    exact = exactly(exact_odds(kind), measured)
    return xr.Dataset({"measured": measured, "exact": exact}, attrs={"what": "odds of biases"})


def channels(sizes: Sequence[int], seeds: int) -> xr.Dataset:
    """T of residual convolution blocks against their channels for weights of variance c channels^-gamma."""
    families = {size: Channels.of(size) for size in sizes}
    measured = sweep("T", sizes, WIDTH_EXPONENTS, seeds, lambda n, power, g: families[n].time(power, g), first=9000)
    law = lambda n, power: BLOCKS * math.log1p((n / CHANNELS) ** (1 - power) / BLOCKS)  # noqa: E731
    return xr.Dataset({"measured": measured, "exact": exactly(law, measured)})


def widths(sizes: Sequence[int], seeds: int) -> dict[str, xr.Dataset]:
    """Gain of a layer against its width for weights of variance c width^-exponent, c = 1 / E[a^2]."""
    found = {}
    for number, activation in enumerate(ACTIVATIONS):
        constant = 1 / mean_squared_gate(activation)
        layers = {size: Layer.of(activation, size) for size in sizes}
        gain = lambda n, power, g, at=layers, c=constant: at[n].gain(c * n**-power, g)  # noqa: E731
        measured = sweep("gain", sizes, WIDTH_EXPONENTS, seeds, gain, first=1000 * (1 + number))
        exact = exactly(lambda n, power: n ** (1 - power), measured)
        found[activation] = xr.Dataset({"measured": measured, "exact": exact}, attrs={"constant": constant})
    return found


def mean_squared_gate(activation: str) -> float:
    """E[a^2] at pre-activations of variance 1."""
    return 1.0 if activation == "linear" else float(gaussian_gate_moment(activation.lower(), 1.0))


def exactly(law: Callable[[int, float], float], like: xr.DataArray) -> xr.DataArray:
    """The law at the sizes and exponents of a sweep, (exponent, size)."""
    values = [[law(int(n), float(a)) for n in like["size"]] for a in like["exponent"]]
    return xr.DataArray(values, {"exponent": like["exponent"], "size": like["size"]}, ("exponent", "size"))


def exact_time(kind: type[Residual] | type[Recurrent]) -> Callable[[int, float], float]:
    """T at branch gains of exactly eps^2; q = 1 + eps^2.

    Residual: L log q. Recurrent: energies e_t = q e_(t-1) + eps^2 from e_0 = 1, so T = log e_M = log(2 q^M - 1).
    """
    if kind is Residual:
        return lambda n, a: n * math.log1p(n ** (-2 * a))
    return lambda n, a: math.log(2 * (1 + n ** (-2 * a)) ** n - 1)


def exact_odds(kind: type[Residual] | type[Recurrent]) -> Callable[[int, float], float]:
    """Energy of biases, n^(-2 beta) (q^n - 1) / (q - 1) with q = 1 + 1/n, over that of inputs, q^n or 2 q^n - 1."""

    def law(n: int, beta: float) -> float:
        grown = (1 + 1 / n) ** n
        return n ** (1 - 2 * beta) * (grown - 1) / (grown if kind is Residual else 2 * grown - 1)

    return law


# -- fits ---------------------------------------------------------------------------------------------------


def slopes(values: xr.DataArray) -> xr.DataArray:
    """Of log value against log size, by least squares."""
    logs = np.log(values)
    away = np.log(values["size"]) - np.log(values["size"]).mean()
    return (logs * away).sum("size") / (away**2).sum()


def critical(values: xr.DataArray) -> xr.DataArray:
    """The exponent at which the slope is 0: between the two measured exponents where it changes its sign."""

    def zero(slope: Array, exponent: Array) -> float:
        return float(np.interp(0.0, -slope, exponent))  # slopes fall with the exponent

    found = slopes(values)
    return xr.apply_ufunc(zero, found, found["exponent"], input_core_dims=[["exponent"], ["exponent"]], vectorize=True)


def with_error(per_seed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean over seeds and its standard error."""
    return per_seed.mean("seed"), per_seed.std("seed", ddof=1) / math.sqrt(per_seed.sizes["seed"])


def recovered_constant(data: xr.Dataset) -> tuple[float, float]:
    """c that keeps path energy at exponent 1: the one used, over the gain that it gave; mean over widths and seeds."""
    value, error = with_error((data.attrs["constant"] / data["measured"].sel(exponent=1.0)).mean("size"))
    return float(value), float(error)


# -- tables -------------------------------------------------------------------------------------------------

RULES = {
    "residual": (r"residual branches × $L^{-\alpha}$", "T over L"),
    "recurrent": (r"recurrent branches × $M^{-\alpha}$", "T over M"),
    "residual biases": (r"residual biases ~ $L^{-\beta}$", "odds of biases over L"),
    "recurrent biases": (r"recurrent biases ~ $M^{-\beta}$", "odds of biases over M"),
}


def rules_table(sweeps: dict[str, xr.Dataset], by_channels: xr.Dataset, gains: dict[str, xr.Dataset]) -> str:
    """Exponents and constants that keep a quantity constant: recovered, exact at these sizes, in the limit."""
    head = ["rule", "kept constant", "recovered", "exact at these sizes", "limit"]
    rows = []
    for name, data in sweeps.items():
        value, error = with_error(critical(data["measured"]))
        exact = float(critical(data["exact"]))
        rows.append([*RULES[name], plus_minus(value, error), f"{exact:.4f}", "1/2"])
    found = plus_minus(*with_error(critical(by_channels["measured"])))
    rows.append([r"variance $c C^{-\gamma}$ of residual convolutions: γ", "T over C", found, "1", "1"])
    for activation, data in gains.items():
        value, error = with_error(critical(data["measured"]))
        rows.append(
            [rf"variance $c n^{{-\gamma}}$, {activation}: γ", "gain over n", plus_minus(value, error), "1", "1"]
        )
    for activation, data in gains.items():
        constant = data.attrs["constant"]
        name = f"variance c / n, {activation}: c"
        rows.append([name, "gain 1", plus_minus(*recovered_constant(data)), f"{constant:.4f}", f"{constant:.4f}"])
    return table(head, rows)


def channels_table(data: xr.Dataset) -> str:
    """T by channels and exponent, measured and exact."""
    head = ["γ", *(f"C = {n}" for n in data["size"].to_numpy())]
    rows = []
    for exponent in data["exponent"].to_numpy():
        at = data.sel(exponent=exponent)
        found = zip(*with_error(at["measured"]), strict=True)
        rows.append([f"{exponent:g}", *(plus_minus(v, e, 2) for v, e in found)])
        rows.append(["exact", *(f"{float(t):.2f}" for t in at["exact"])])
    return table(head, rows)


def slopes_table(sweeps: dict[str, xr.Dataset], gains: dict[str, xr.Dataset]) -> str:
    """Log-log slopes by exponent, measured and exact at these sizes."""
    head = ["sweep", *(f"{a:g}" for a in EXPONENTS)]
    rows = []
    for name, data in sweeps.items():
        value, error = with_error(slopes(data["measured"]))
        rows.append([RULES[name][0], *(plus_minus(v, e) for v, e in zip(value, error, strict=True))])
        rows.append(["exact", *(f"{float(s):.4f}" for s in slopes(data["exact"]))])
    exponents = [rf"variance $n^{{-\gamma}}$, γ = {a:g}" for a in WIDTH_EXPONENTS]
    rows.append(["**by width**", *(f"**{name}**" for name in exponents)])
    for activation, data in gains.items():
        value, error = with_error(slopes(data["measured"]))
        rows.append([f"gain, {activation}", *(plus_minus(v, e) for v, e in zip(value, error, strict=True))])
    rows.append(["exact, 1 - γ", *(f"{1 - a:g}" for a in WIDTH_EXPONENTS)])
    return table(head, rows)
