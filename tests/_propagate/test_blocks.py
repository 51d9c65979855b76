"""The block rule: exact where units do not overlap, closer to `measure` than the Markov rule elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import capalloc
from capalloc.solvers import Block
from zoo import dense, gaussian, reference_weights, seeded_module


@pytest.mark.proves("4", "the block rule", oracle="one unit of capacity for each input")
def test_exact_for_one_linear_unit_within_its_standard_error():
    """One output, f = v'(W x): every unit's weights see the inputs alike, and the map is uniform."""
    allocation = capalloc.propagate(dense([gaussian(1, 6)]), gaussian(50, 6), solver=Block(64))
    assert allocation.total == pytest.approx(6)
    deviation = (allocation.capacity - 1) / allocation.capacity.standard_error
    assert float(abs(deviation).max()) < 4  # six draws of a unit Gaussian


@pytest.mark.proves("4", "the block rule", oracle="measured capacity")
def test_closer_to_measure_than_the_markov_rule():
    """Over three networks; benchmarks/correction.py has the trained ones."""
    distances = {"markov": 0.0, "block": 0.0}
    for seed in (0, 10, 20):
        sizes = [(8, 6), (8, 8), (1, 8)]
        model = dense([gaussian(*size, seed=seed + k) for k, size in enumerate(sizes)])
        x = gaussian(200, 6, seed=seed)
        measured = capalloc.measure(model, x)
        for solver in distances:
            distances[solver] += capalloc.total_variation(capalloc.propagate(model, x, solver=solver), measured)
    assert distances["block"] < 0.8 * distances["markov"]


def test_biases_go_to_the_constant_input():
    model, x = seeded_module(nn.Sequential, nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), gaussian(60, 4)
    measured = capalloc.measure(model, x)
    block = capalloc.propagate(model, x, solver=Block(128))
    assert block.bias == pytest.approx(measured.bias, abs=4 * block.attrs["bias_standard_error"] + 0.3)


def test_probes_repeat_and_their_error_falls():
    model, x = seeded_module(nn.Sequential, nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), gaussian(16, 4)
    state = torch.random.get_rng_state()
    first, again = (capalloc.propagate(model, x, solver="block") for _ in range(2))
    other = capalloc.propagate(model, x, solver=Block(seed=5))
    many = capalloc.propagate(model, x, solver=Block(512))
    np.testing.assert_array_equal(first.capacity, again.capacity)
    assert not np.array_equal(first.capacity, other.capacity)
    assert float(many.capacity.standard_error.mean()) < 0.5 * float(first.capacity.standard_error.mean())
    assert torch.equal(state, torch.random.get_rng_state())


def test_float32_models_give_the_map_of_float64():
    model, x = dense(reference_weights()), gaussian(40, 3)
    wide = capalloc.propagate(model, x, solver="block")
    narrow = capalloc.propagate(model.float(), x.float(), solver="block")
    np.testing.assert_allclose(narrow.capacity, wide.capacity, rtol=1e-3)  # inverse roots magnify rounding of 1e-7


def test_queries_and_keys_bring_capacity():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(3, 9, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.out(nn.functional.scaled_dot_product_attention(q, k, v))

    from capalloc._model.problem import prepare
    from capalloc._propagate.unitwise import estimate

    problem = prepare(seeded_module(Attention), gaussian(20, 4, 3), params=["qkv.weight"], dtype=torch.float64)
    found = estimate(problem, 10, 16, torch.Generator().manual_seed(0))
    assert float(found.inputs.sum()) > 0
    assert torch.isfinite(found.inputs).all()


def test_large_tensors_share_one_block(monkeypatch):
    from capalloc._propagate import unitwise as blocks

    model, x = dense(reference_weights()), gaussian(100, 3)
    own = capalloc.propagate(model, x, solver=Block(64))
    monkeypatch.setattr(blocks, "BLOCK_LIMIT", 0)
    shared = capalloc.propagate(model, x, solver=Block(64))
    assert capalloc.total_variation(own, shared) < 0.05


def test_too_few_probes_is_an_error():
    with pytest.raises(ValueError, match="num_probes must be at least 2"):
        Block(num_probes=1)
