"""Zeros of float32 are trusted where no product can have been lost, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._energy.batches import Batches
from capalloc._energy.ranges import least_exponent, least_of_gates
from zoo import gaussian, seeded_module

PRECISIONS = (torch.float32, torch.float64)


@given(st.lists(st.integers(-45, 0), min_size=12, max_size=12), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_float32_keeps_what_float64_keeps_whatever_the_sizes_of_the_weights(powers: list[int], seed: int) -> None:
    """Squares down to 2**-90 and their products through three layers, with dead units among them."""
    net = seeded_module(nn.Sequential, nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).float()
    with torch.no_grad():
        for layer, rows in zip((net[0], net[2], net[4]), torch.tensor(powers).reshape(3, 4), strict=True):
            layer.weight.mul_(2.0 ** rows[:, None])
            layer.bias.mul_(2.0**rows)
    x = gaussian(2, 3, seed=seed).float()
    narrow, wide = (capalloc.propagate(net, x, solver=capalloc.solvers.Markov(dtype)) for dtype in PRECISIONS)
    for count in ("unused_params", "symmetries"):
        assert narrow.attrs[count] == wide.attrs[count]


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The precisions of the walks, in turn."""
    found, of = [], Batches.of
    monkeypatch.setattr(Batches, "of", lambda *args, **kwargs: found.append(kwargs["dtype"]) or of(*args, **kwargs))
    return found


def test_dead_units_alone_do_not_repeat_the_walk(walked: list[torch.dtype]) -> None:
    net = seeded_module(nn.Sequential, nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)).float()
    with torch.no_grad():
        net[0].bias[2] = -1e3
    found = capalloc.propagate(net, gaussian(2, 2, 8, 8).float(), solver=capalloc.solvers.Markov(torch.float32))
    assert found.attrs["unused_params"] == 2 * 9 + 1
    assert walked == [torch.float32]


class Cropped(nn.Module):
    """Deep, of which a part in the middle is read: what arrives at the border has passed the corners of all kernels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(2 if k == 0 else 6, 6, 3, padding=1) for k in range(depth))
        self.layers = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(self.layers(x), scale_factor=2, mode="bilinear")
        return self.last(enlarged[:, :, 30:34, 30:34])


def test_small_energies_at_a_border_do_not_repeat_the_walk(walked: list[torch.dtype]) -> None:
    net = seeded_module(Cropped, 12).float()
    with torch.no_grad():
        net.layers[2].bias[2] = -1e3
        for p in net.layers[4].parameters():
            p[3] *= 1e-6
    x = gaussian(2, 2, 32, 32).float()
    narrow, wide = (capalloc.propagate(net, x, solver=capalloc.solvers.Markov(dtype)) for dtype in PRECISIONS)
    assert walked == list(PRECISIONS)
    assert narrow.attrs["unused_params"] == wide.attrs["unused_params"] > 6 * 9
    assert narrow.total == pytest.approx(wide.total, rel=1e-4)
    np.testing.assert_allclose(narrow.capacity, wide.capacity, rtol=1e-3)


def test_the_least_exponent_passes_over_zeros() -> None:
    assert least_exponent(torch.tensor([0.0, 3.0, 2.0**-40])) == -40
    assert least_exponent(torch.zeros(3)) == float("inf")
    assert least_of_gates(torch.tensor([True, False])) == 0
    assert least_of_gates(0.25) == -2
    assert least_of_gates(torch.tensor([0.0, 1.0])) is None  # may be a square that float32 lost
    assert least_of_gates(torch.tensor([0.0, 0.5]).double()) == -1
