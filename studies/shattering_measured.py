"""What the shattering study measures, beside what the law predicts, as xarray datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import nn

from capalloc._depth.shattering_law import crossing, family_rates, gradient_correlation
from studies.shattering_estimates import extrapolate, mean_cosine, moments, pairs_of, ratio_of_means
from studies.shattering_networks import Net, products

#: Independent inputs of a network, each with a partner nearby: every pair of one correlation is averaged.
SOURCES = 4
#: Widths below this many times the depth are left out of the fit in 1 / width.
WIDTH_PER_BLOCK = 2


@dataclass(frozen=True)
class Design:
    """Which networks to draw."""

    families: Sequence[str]
    depths: Sequence[int]
    networks: Mapping[int, int]  # by width
    near: float  # correlation of a nearby pair; independent inputs are the other pair
    seed: int

    def __post_init__(self) -> None:
        widest, least = max(self.networks), WIDTH_PER_BLOCK * max(self.depths)
        if widest < least:
            raise ValueError(
                f"the widest networks must have at least {WIDTH_PER_BLOCK} units for each block, {least}, "
                f"got {widest}; add wider ones or leave out depths"
            )

    @property
    def nets(self) -> list[Net]:
        """Every family at every depth."""
        return [Net(family, depth) for family in self.families for depth in self.depths]


def measured(design: Design, activation: str, module: nn.Module) -> xr.Dataset:
    """Gradient correlations by family, depth, pair and width, their prediction and their limit of infinite width.

    Returns:
        Dataset: `measured` and `error` (ratio of means), `cosine` and `cosine_error`, over all axes; `predicted`,
        `intercept`, `intercept_error`, `chi_square`, `freedom` and `z` without "width"; `gates`, the mean number of
        gates on a path, by family and depth.

    """
    widths, pairs = list(design.networks), [0.0, design.near]
    mixing = nearby(SOURCES, design.near)
    columns: list[list[np.ndarray]] = []
    for width, networks in design.networks.items():
        generator = torch.Generator().manual_seed(design.seed + width)
        found = products(design.nets, width, networks, torch.from_numpy(mixing).float(), module, generator).numpy()
        at = [pairs_of(mixing, rho) for rho in pairs]
        each = [(*ratio_of_means(*moments(found, p)), *mean_cosine(found, p)) for p in at]
        columns.append(np.moveaxis(np.array(each), 1, 0))  # (statistics, pairs, nets)
    values = np.stack(columns, -1)
    dims = ("pair", "family", "depth", "width")
    shaped = values.reshape(4, len(pairs), len(design.families), len(design.depths), len(widths))
    names = ("measured", "error", "cosine", "cosine_error")
    data = xr.Dataset(
        {name: (dims, part) for name, part in zip(names, shaped, strict=True)},
        coords={"pair": pairs, "family": list(design.families), "depth": list(design.depths), "width": widths},
    )
    data["predicted"] = predictions(design, activation)
    crossed = [[crossing(family_rates(f, depth)).sum() for depth in design.depths] for f in design.families]
    data["gates"] = (("family", "depth"), np.array(crossed))
    return with_limits(data)


def nearby(sources: int, near: float) -> np.ndarray:
    """Mixing matrix of independent inputs, then of one partner of each at correlation `near`, (sources, points)."""
    eye = np.eye(sources)
    return np.block([[eye, near * eye], [np.zeros_like(eye), (1 - near**2) ** 0.5 * eye]])


def predictions(design: Design, activation: str, decoupling: float | None = None) -> xr.DataArray:
    """The law at the end of every net."""
    pairs = [0.0, design.near]
    table = [[_predicted(net, pairs, activation, decoupling) for net in design.nets]]
    values = np.array(table).reshape(len(design.families), len(design.depths), len(pairs))
    coords = {"family": list(design.families), "depth": list(design.depths), "pair": pairs}
    return xr.DataArray(values, coords, ("family", "depth", "pair"))


def _predicted(net: Net, pairs: Sequence[float], activation: str, decoupling: float | None) -> np.ndarray:
    rates = family_rates(net.family, net.depth)
    law = gradient_correlation(rates, pairs, activation, decoupling=decoupling)
    return np.broadcast_to(law["gradient"].to_numpy()[-1], (len(pairs),))


def with_limits(data: xr.Dataset) -> xr.Dataset:
    """Add the fit in 1 / width at every point, and how far its intercept is from the prediction."""

    def fitted(values: np.ndarray, errors: np.ndarray, depth: int) -> np.ndarray:
        widths = data["width"].to_numpy()
        used = widths >= WIDTH_PER_BLOCK * depth
        fit = extrapolate(widths[used], values[used], errors[used])
        curve = np.zeros(3)
        curve[: len(fit.coefficients)] = fit.coefficients
        return np.array([fit.intercept, fit.error, fit.chi_square, fit.freedom, *curve])

    parts = xr.apply_ufunc(
        fitted,
        data["measured"],
        data["error"],
        data["depth"],
        input_core_dims=[["width"], ["width"], []],
        output_core_dims=[["part"]],
        vectorize=True,
    )
    for k, name in enumerate(("intercept", "intercept_error", "chi_square", "freedom")):
        data[name] = parts.isel(part=k)
    data["curve"] = parts.isel(part=slice(4, None)).rename(part="power")
    data["z"] = (data["intercept"] - data["predicted"]) / data["intercept_error"]
    return data


@dataclass(frozen=True)
class Line:
    """Points a + t b of a line in input space, a and b independent Gaussian, t evenly from -reach to reach."""

    points: int
    reach: float
    depth: int
    width: int
    networks: int
    seed: int

    @property
    def mixing(self) -> np.ndarray:
        """(2, points), of unit variance: the gradient of a ReLU network does not depend on the length of its input."""
        t = np.linspace(-self.reach, self.reach, self.points)
        return np.stack([np.ones_like(t), t]) / np.sqrt(1 + t**2)


def autocorrelation(line: Line, families: Sequence[str]) -> xr.Dataset:
    """Gradient autocorrelation along a line, mean over its points, by family and distance: measured, predicted.

    Two points have rho = (1 + t t') / sqrt((1 + t^2)(1 + t'^2)). Lags go up to half the line.
    """
    nets = [Net(family, line.depth) for family in families]
    generator = torch.Generator().manual_seed(line.seed)
    mixing = torch.from_numpy(line.mixing).float()
    found = products(nets, line.width, line.networks, mixing, nn.ReLU(), generator).numpy()
    rho = np.clip(line.mixing.T @ line.mixing, -1, 1)
    lags = range((line.points + 1) // 2)
    pairs = [(np.arange(line.points - lag), np.arange(lag, line.points)) for lag in lags]
    estimates = np.array([ratio_of_means(*moments(found, pair)) for pair in pairs])  # (lags, 2, families)
    law = [gradient_correlation(family_rates(f, line.depth), rho.ravel())["gradient"][-1] for f in families]
    by_pair = np.array(law).reshape(len(families), *rho.shape)
    predicted = np.array([by_pair[:, first, second].mean(1) for first, second in pairs])
    dims = ("lag", "family")
    data = {"measured": estimates[:, 0], "error": estimates[:, 1], "predicted": predicted}
    distance = np.array(lags) * 2 * line.reach / (line.points - 1)
    return xr.Dataset({k: (dims, v) for k, v in data.items()}, coords={"lag": distance, "family": list(families)})
