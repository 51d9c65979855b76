"""`shattering` in float32, which walks of larger networks take: the same as in float64, also where float32 ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import capalloc
from capalloc._depth.compare_gradients import _Compared
from capalloc._energy.markov import FloatRangeError
from capalloc._model.problem import prepare
from zoo import gaussian, seeded_module

POSITIONS, LINES, PROBES, STEP = 512, 2, 2, 0.1


class Waves(nn.Module):
    """Layers sin(gain W h): gates are cosines, which are the less alike the larger the gain is."""

    def __init__(self, depth: int, gain: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(4, 4, 1, bias=False) for _ in range(depth))
        self.gain = gain

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = torch.sin(self.gain * layer(h))
        return h.mean((1, 2))[:, None]


def compared(depth: int, gain: float) -> tuple[_Compared, _Compared, Tensor]:
    """A network of float32 walked in its own precision and in float64, and its examples."""
    x = gaussian(4, 4, POSITIONS).float()
    model = seeded_module(Waves, depth, gain).float()
    single = _Compared.of(prepare(model, x, None, traced=True, by_input=True), x, None)
    assert single.batches.dtype == torch.float32
    return single, replace(single, batches=replace(single.batches, dtype=torch.float64)), x


def correlations(of: _Compared) -> xr.Dataset:
    return of.correlations(STEP, LINES, PROBES, torch.Generator().manual_seed(0))


def test_float32_predicts_what_float64_does():
    single, double, _ = compared(20, 3.0)
    xr.testing.assert_allclose(correlations(single), correlations(double), rtol=1e-5)


def test_what_float32_would_lose_is_predicted_in_float64():
    """A correlation of 1e-40 is beyond float32, and is not 0."""
    single, double, x = compared(30, 30.0)
    with pytest.raises(FloatRangeError, match="leave the range of float32; predict them in float64"):
        correlations(single)
    model = seeded_module(Waves, 30, 30.0).float()
    found = capalloc.shattering(model, x, step=STEP, num_lines=LINES, num_probes=PROBES).data
    expected = correlations(double)
    xr.testing.assert_allclose(found.drop_attrs(), expected.drop_attrs())
    assert 0 < abs(float(found["predicted_independent"][0])) < 2.0**-60


def test_rates_are_those_of_float64():
    model, x = seeded_module(Residuals).float(), gaussian(4, 4, POSITIONS).float()
    rates = [capalloc.scaling(model, x, dtype=dtype).data["rate"] for dtype in ("auto", torch.float64)]
    assert bool((rates[0] != rates[1]).any())  # by rounding alone
    np.testing.assert_allclose(*rates, rtol=1e-5)


class Residuals(Waves):
    """The same layers, added to what they read."""

    def __init__(self) -> None:
        super().__init__(12, 1.0)

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = h + layer(torch.relu(h))
        return h.mean((1, 2))[:, None]
