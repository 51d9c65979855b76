"""Tables of the Markov rule: some rows at a time, and in float32, the same as all of them at once in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import capalloc
from capalloc.solvers import Markov
from zoo import gaussian, seeded_module


class Branched(nn.Module):
    """Norms, a residual block, a shared layer and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.shared = nn.Conv2d(8, 8, 1)
        self.unread = nn.Linear(2, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.block(h)
        return self.head(torch.relu(self.shared(torch.relu(self.shared(h)))).mean((2, 3)))


def table(x: Tensor, **settings) -> xr.Dataset:
    model = seeded_module(Branched).to(x.dtype)
    found = capalloc.propagate(model, x, table=True, layers=True, **settings)
    return found.data.drop_attrs()


@pytest.mark.parametrize("bytes_at_once", [1, 3 * 8 * 6 * 64 * 8])
@pytest.mark.parametrize("batch_size", [6, 4])
def test_rows_may_be_swept_in_parts(bytes_at_once, batch_size, monkeypatch):
    x = gaussian(6, 1, 8, 8)
    whole = table(x, solver="markov", batch_size=batch_size)
    monkeypatch.setattr("capalloc._energy.sweep.BYTES_OF_ROWS", bytes_at_once)
    xr.testing.assert_allclose(table(x, solver="markov", batch_size=batch_size), whole, rtol=1e-12, atol=1e-12)


def test_float32_gives_the_table_of_float64():
    """Entries of the table add up to the map in float64, whatever precision they were found in."""
    x = gaussian(3, 1, 40, 40).float()
    single, double = (table(x, solver=Markov(dtype=dtype)) for dtype in ("auto", torch.float64))
    np.testing.assert_allclose(single["table"], double["table"], atol=1e-5 * float(double["table"].max()))
    assert float(abs(single["table"] - double["table"]).max()) > 0  # by rounding alone
    assert single["table"].dtype == np.float64
    np.testing.assert_allclose(single["table"].sum("parameter"), single["capacity"], rtol=1e-9)
    assert float(single["table"].min()) >= 0
