"""Zeros of float32 are trusted where no product can have been lost, and only there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

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


def test_dead_units_alone_do_not_repeat_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = []
    of = Batches.of
    monkeypatch.setattr(
        Batches,
        "of",
        lambda *args, **kwargs: walked.append(kwargs["dtype"]) or of(*args, **kwargs),
    )
    net = seeded_module(nn.Sequential, nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)).float()
    with torch.no_grad():
        net[0].bias[2] = -1e3
    found = capalloc.propagate(net, gaussian(2, 2, 8, 8).float(), solver=capalloc.solvers.Markov(torch.float32))
    assert found.attrs["unused_params"] == 2 * 9 + 1
    assert walked == [torch.float32]


def test_the_least_exponent_passes_over_zeros() -> None:
    assert least_exponent(torch.tensor([0.0, 3.0, 2.0**-40])) == -40
    assert least_exponent(torch.zeros(3)) == float("inf")
    assert least_of_gates(torch.tensor([True, False])) == 0
    assert least_of_gates(0.25) == -2
    assert least_of_gates(torch.tensor([0.0, 1.0])) is None  # may be a square that float32 lost
    assert least_of_gates(torch.tensor([0.0, 0.5]).double()) == -1
