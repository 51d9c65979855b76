"""Gaussian gate moments by quadrature: E[g(z)] and E[g(z) g(z')] for any function g, smooth or with kinks.

z = s x and z' = s (rho x + sigma y), with x and y independent unit Gaussians and sigma = sqrt(1 - rho^2).
Smooth functions: a product Gauss-Hermite rule. Functions with kinks: Gauss-Legendre on panels that end at the
kinks, for y at fixed x, and for x also around the points where a kink passes through z', at the scale sigma.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Integrand = Callable[[Tensor], Tensor]
#: Gaussian mass beyond this many standard deviations is 1e-19.
GAUSSIAN_REACH = 9.0
#: Gauss-Hermite nodes: even, so that none is at 0; doubled until two answers agree.
HERMITE_NODES = (40, 80, 160)
#: Gauss-Legendre nodes on a panel, and the numbers of parts each panel is cut into until two answers agree.
PANEL_DEGREE = 12
PANEL_PARTS = (1, 2, 4, 8)
#: Agreement asked for, relative to E[g^2].
AGREE = 1e-9
#: Values held at once.
VALUES_AT_ONCE = 2**20


def moment(function: Integrand, rho: Tensor, scale: float, kinks: Sequence[float]) -> Tensor:
    """E[g(z) g(z')] for every correlation in rho (any number, one axis).

    Args:
        function: g, elementwise on float64 tensors.
        rho: correlations in [-1, 1], shape (correlations,).
        scale: standard deviation s of z.
        kinks: points of z where g or its derivative jumps; none for a smooth function.

    Returns:
        Moments, shape (correlations,).

    Warns:
        RuntimeWarning: refining the rule still changes the answer by more than `AGREE`.

    """
    unit = max(mean_square(function, scale, kinks), torch.finfo(torch.float64).tiny)
    answer = torch.full_like(rho, math.inf)  # so that two rules at least are asked
    todo = torch.arange(len(rho))
    change = math.inf
    for rule in ([] if kinks else _hermite_rules()) + _panel_rules(kinks, scale):
        refined = rule(function, rho[todo], scale)
        change_each = (refined - answer[todo]).abs() / unit
        answer[todo] = refined
        todo = todo[change_each > AGREE]
        change = float(change_each.max()) if len(change_each) else 0.0
        if not len(todo):
            return answer
    warnings.warn(
        f"quadrature of the gate moment changed by {change:.1e} of E[a^2] at its last refinement; "
        "name the activation's kinks with kinks=, or take the digits above that as they are",
        RuntimeWarning,
        stacklevel=3,
    )
    return answer


def mean_square(function: Integrand, scale: float, kinks: Sequence[float]) -> float:
    """E[g(z)^2], by the panels that `moment` uses."""
    x, weight = _nodes(_breaks(kinks, scale), PANEL_PARTS[2])
    return float((weight * function(scale * x).square()).sum())


MomentRule = Callable[[Integrand, Tensor, float], Tensor]


def _hermite_rules() -> list[MomentRule]:
    return [lambda g, rho, scale, n=n: _hermite(g, rho, scale, n) for n in HERMITE_NODES]  # type: ignore[misc]


def _panel_rules(kinks: Sequence[float], scale: float) -> list[MomentRule]:
    def rule(parts: int) -> MomentRule:
        return lambda g, rho, _: torch.stack([_panels(g, float(r), scale, kinks, parts) for r in rho])

    return [rule(parts) for parts in PANEL_PARTS]


def _hermite(function: Integrand, rho: Tensor, scale: float, nodes: int) -> Tensor:
    x, weight = _hermite_nodes(nodes)
    left = weight * function(scale * x)
    answers = []
    for part in rho.split(max(1, VALUES_AT_ONCE // nodes**2)):
        sigma = ((1 - part) * (1 + part)).clamp(min=0).sqrt()
        z = part[:, None, None] * x[:, None] + sigma[:, None, None] * x
        answers.append(function(scale * z) @ weight @ left)
    return torch.cat(answers) if answers else torch.zeros_like(rho)


def _panels(function: Integrand, rho: float, scale: float, kinks: Sequence[float], parts: int) -> Tensor:
    sigma = math.sqrt(max(0.0, (1 - rho) * (1 + rho)))
    outer = [*_breaks(kinks, scale), *_crossings(kinks, scale, rho, sigma)]
    x, weight = _nodes(sorted(outer), parts)
    left = weight * function(scale * x)
    if sigma == 0:
        return (left * function(scale * rho * x)).sum()
    total = torch.zeros((), dtype=torch.float64)
    base = torch.tensor(_breaks((), scale), dtype=torch.float64)
    edges = torch.tensor(kinks, dtype=torch.float64) / scale
    width = (len(base) + len(edges) - 1) * parts * PANEL_DEGREE
    for some, factor in zip(*(t.split(max(1, VALUES_AT_ONCE // width)) for t in (x, left)), strict=True):
        moving = ((edges - rho * some[:, None]) / sigma).clamp(-GAUSSIAN_REACH, GAUSSIAN_REACH)
        breaks = torch.cat([base.expand(len(some), -1), moving], 1).sort(1).values
        y, inner = _legendre(breaks, parts)
        z = scale * (rho * some[:, None] + sigma * y)
        total += factor @ (inner * function(z)).sum(1)
    return total


def _breaks(kinks: Sequence[float], scale: float) -> list[float]:
    """Panels of unit length at most, finer around 0 where features of a wide z are narrow in x, and the kinks."""
    fine = [side * 2.0**k / scale for k in range(-2, 4) for side in (-1, 1)] if scale > 1 else []
    regular = np.linspace(-GAUSSIAN_REACH, GAUSSIAN_REACH, 13).tolist()
    return sorted(max(-GAUSSIAN_REACH, min(GAUSSIAN_REACH, b)) for b in [*regular, *fine, *(k / scale for k in kinks)])


def _crossings(kinks: Sequence[float], scale: float, rho: float, sigma: float) -> list[float]:
    """Places of x where z' passes a kink: around kink / (s rho), at the scale sigma / |rho| and doublings of it."""
    if rho == 0:
        return []
    offsets = [0.0] + [side * 2.0**k for k in range(0, 40) for side in (-1, 1) if sigma * 2.0**k < 2 * GAUSSIAN_REACH]
    places = [(kink / scale + offset * sigma) / rho for kink in kinks for offset in offsets]
    return [place for place in places if abs(place) < GAUSSIAN_REACH]


def _nodes(breaks: Sequence[float], parts: int) -> tuple[Tensor, Tensor]:
    """Nodes, and weights that carry the Gaussian density, on consecutive panels."""
    kept = torch.tensor(breaks, dtype=torch.float64).unique()
    x, weight = _legendre(kept[None], parts)
    return x[0], weight[0]


def _legendre(breaks: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on the panels between consecutive breaks (rows, breaks), each cut into equal parts."""
    node, weight = _legendre_nodes(PANEL_DEGREE)
    start, length = breaks[:, :-1, None, None], breaks.diff(dim=1)[..., None, None] / parts
    x = start + length * (torch.arange(parts, dtype=torch.float64)[:, None] + node)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return x.flatten(1), (density * length * weight).flatten(1)


@lru_cache
def _hermite_nodes(nodes: int) -> tuple[Tensor, Tensor]:
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(weight / weight.sum())


@lru_cache
def _legendre_nodes(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(weight / 2)
