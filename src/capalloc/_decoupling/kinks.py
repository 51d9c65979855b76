"""Kinks of an activation, where its slope or its curvature jumps: found by bisection."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._decoupling.activations import Elementwise
from capalloc._operators.calls import slope

#: Intervals searched; two kinks in one of them are found as one.
INTERVALS = 4096
HALVINGS = 40
#: A change across a vanishing interval counts as a jump above this share of the largest value.
JUMP = 1e-6


def find_kinks(activation: Elementwise, radius: float) -> tuple[float, ...]:
    """Find the points in (-radius, radius) where phi' or phi'' jumps, in order.

    Every interval of a grid is halved towards its larger change: across an interval 2^-40 as long a smooth
    function changes by rounding only, and a jump stays what it was.
    """
    found = _jumps(lambda z: slope(activation, z), radius)
    # Without a second derivative the quadrature's own check of convergence remains.
    found += _jumps(lambda z: _curvature(activation, z), radius)
    merged: list[float] = []
    for kink in sorted(found):
        if not merged or kink - merged[-1] > 1e-8 * radius:
            merged.append(kink)
    return tuple(merged)


def _jumps(function: Elementwise, radius: float) -> list[float]:
    grid = torch.linspace(-radius, radius, INTERVALS + 1, dtype=torch.float64)
    low, high = grid[:-1], grid[1:]
    f_low, f_high = function(low), function(high)
    least = JUMP * float(f_low.abs().max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        f_middle = function(middle)
        left = (f_middle - f_low).abs() >= (f_high - f_middle).abs()
        low, f_low = torch.where(left, low, middle), torch.where(left, f_low, f_middle)
        high, f_high = torch.where(left, middle, high), torch.where(left, f_middle, f_high)
    jumped = (f_high - f_low).abs() > least
    places = (low + high)[jumped] / 2
    # Bisection ends within radius * 2^-50 of the kink; a kink at 0 is a kink at 0.
    return [0.0 if abs(place) < 1e-9 * radius else place for place in places.tolist()]


def _curvature(activation: Elementwise, z: Tensor) -> Tensor:
    """phi''(z), 0 where phi has no second derivative."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        y = activation(leaf)
        if not y.requires_grad:
            return torch.zeros_like(z)
        (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        if not first.requires_grad:
            return torch.zeros_like(z)
        try:
            (second,) = torch.autograd.grad(first.sum(), leaf, allow_unused=True)
        except RuntimeError:
            return torch.zeros_like(z)
    return torch.zeros_like(z) if second is None else second.detach()
