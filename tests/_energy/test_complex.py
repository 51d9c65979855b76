"""Stretches of complex numbers between real tensors: the answers of the same map written as a real matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from capalloc._energy.trace import trace
from energies import assert_is_squared_jacobian, captured
from zoo import gaussian

GAIN = torch.linspace(1, 0.2, 5).double()
WINDOW = torch.hann_window(4).double()
TURNS = torch.polar(torch.ones(4).double(), torch.arange(4.0).double())


def turned(h: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(h.reshape(-1, 4, 2)) * TURNS).flatten(1)


def spectrum(h: Tensor) -> Tensor:
    return torch.stft(h, 4, 2, window=WINDOW, center=False, return_complex=True)


def written(h: Tensor) -> Tensor:
    low = torch.zeros(len(h), 5, dtype=torch.complex128)
    low[:, :2] = torch.fft.rfft(h)[:, :2] * GAIN[:2]
    return torch.fft.irfft(low, n=8)


LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "filter": lambda h: torch.fft.irfft(torch.fft.rfft(h) * GAIN, n=8),
    "two tensors": lambda h: torch.complex(h[:, :4], h[:, 4:]).mul(1 + 2j).imag,
    "real part": lambda h: torch.fft.fft(h).real,
    "rotary": turned,
    "written into slices": written,
    "convolution": lambda h: torch.fft.irfft(torch.fft.rfft(h, n=16) * torch.fft.rfft(WINDOW, n=16), n=16)[:, :8],
    "spectrogram": lambda h: torch.view_as_real(spectrum(h)).flatten(1),
}


@pytest.mark.parametrize("function", LINEAR.values(), ids=LINEAR)
def test_energies_are_those_of_the_squared_jacobian(function: Callable[[Tensor], Tensor]) -> None:
    x = gaussian(2, 8)
    assert_is_squared_jacobian(trace(captured(function, x), x, "data", set()), function, x)


def test_a_modulus_goes_by_its_jacobian_on_each_example() -> None:
    x, function = gaussian(2, 8), lambda h: spectrum(h).abs()
    assert_is_squared_jacobian(trace(captured(function, x), x, "data", set()), function, x)


class Filtered(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(5, 8), nn.LazyLinear(3), function
        self.double()(gaussian(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.tanh(self.first(x))).flatten(1).relu())


@pytest.mark.parametrize("solver", ["markov", "segments"])
def test_networks_are_those_with_the_map_as_a_matrix(solver: str) -> None:
    x, matrix = gaussian(20, 5), turned(torch.eye(8).double())
    by_complex = capalloc.propagate(Filtered(turned), x, solver=solver)
    by_matrix = capalloc.propagate(Filtered(lambda h: h @ matrix), x, solver=solver)
    np.testing.assert_allclose(by_complex.capacity, by_matrix.capacity, rtol=1e-6)


def test_segments_end_at_a_modulus() -> None:
    x = gaussian(20, 5)
    model = Filtered(lambda h: spectrum(h).abs())
    segments = capalloc.propagate(model, x, solver="segments")
    assert segments.total == pytest.approx(capalloc.measure(model, x).total, abs=10)


def test_what_makes_a_weight_of_complex_numbers_is_unseen_too() -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate, self.scale, self.last = (
                nn.Parameter(gaussian(*n, seed=k)) for k, n in enumerate([(1,), (1,), (3, 8)])
            )

        def forward(self, x: Tensor) -> Tensor:
            kernel = self.scale * torch.exp(-self.rate.exp() * torch.arange(8))
            return torch.relu(torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(kernel), n=8)) @ self.last.T

    found = capalloc.propagate(Kernel(), gaussian(6, 8), solver="markov")
    assert (found.attrs["unseen_params"], found.attrs["unused_params"]) == (2, 0)


def test_queries_that_give_keys_their_shape_are_unseen() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.value = nn.Linear(4, 8).double(), nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            query, value = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2), self.value(x)[:, None]
            return nn.functional.scaled_dot_product_attention(
                query, x[:, None].expand_as(query), value.expand_as(query)
            )

    found = capalloc.propagate(Attention(), gaussian(6, 3, 4), solver="markov")
    assert (found.attrs["unseen_params"], found.attrs["unused_params"]) == (40, 0)
