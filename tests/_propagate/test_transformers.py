"""Attention networks as people build them: from configurations, without downloads, in both attention spellings."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from capalloc._energy.trace import trace
from capalloc._graph.capture import capture
from capalloc._model.problem import prepare
from energies import assert_is_squared_jacobian, counted, energies
from transformer_models import ATTENTION, CASES, built
from zoo import gaussian, seeded_module


@pytest.fixture(scope="module")
def allocations() -> dict[str, capalloc.Allocation]:
    """Every network once, attention spelled out."""
    return {name: propagated(name, "eager") for name in CASES}


def propagated(name: str, attention: str) -> capalloc.Allocation:
    return capalloc.propagate(built(name, attention), gaussian(2, *CASES[name].shape), table=False, solver="markov")


@pytest.mark.parametrize("name", CASES)
def test_capacity_is_the_number_of_parameters_in_use_less_symmetries(allocations, name):
    allocation = allocations[name]
    assert allocation.total == pytest.approx(counted(allocation), rel=1e-9)
    assert float(allocation.by_parameter.sum()) == pytest.approx(allocation.total, rel=1e-9)
    assert bool((allocation.capacity > 0).any())


@pytest.mark.parametrize("name", CASES)
def test_what_paths_do_not_see_are_queries_keys_and_gating_branches(allocations, name):
    allocation, case = allocations[name], CASES[name]
    params = dict(built(name, "eager").named_parameters())
    steering = set(allocation.attrs["unseen_by_parameter"])
    assert steering == {key for key in params if re.search(case.steering, key)}
    # GPT-2 has queries, keys and values in one tensor; biases of keys move nothing.
    parts = {key: (1 / 3 if "bias" in key else 2 / 3) if name == "gpt2" else 1 for key in steering}
    assert allocation.attrs["unseen_params"] == round(sum(parts[key] * params[key].numel() for key in steering))
    noted = [note for note in allocation.attrs["notes"] if "not seen by paths" in note]
    assert len(noted) == (1 if steering else 0)
    if len(steering) > 3:
        assert re.search(rf"{len(steering)} parameter tensors, .* and {len(steering) - 3} more$", noted[0])
    idle = [key for key in params if re.search(case.idle, key)]
    assert all(float(allocation.by_parameter.sel(parameter=key)) == 0 for key in [*idle, *steering] if name != "gpt2")
    assert allocation.attrs["unused_params"] >= sum(params[key].numel() for key in idle)


@pytest.mark.parametrize("name", ATTENTION)
def test_fused_attention_gives_the_same_capacity(allocations, name):
    fused = propagated(name, "sdpa")
    # Spelled out, some of them take the softmax in float32.
    np.testing.assert_allclose(fused.capacity, allocations[name].capacity, rtol=1e-6)
    assert fused.attrs["unseen_params"] == allocations[name].attrs["unseen_params"]


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_programs_exported_with_the_machines_own_attention_kernels_are_walked(allocations, name, monkeypatch):
    x = gaussian(2, *CASES[name].shape)
    program = torch.export.export(built(name, "sdpa").eval(), (x,), strict=False).run_decompositions({})
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)  # it is decomposed already
    found = capalloc.propagate(program, x, table=False, solver="markov")
    np.testing.assert_allclose(found.capacity, allocations[name].capacity, rtol=1e-6)


class OneLayer(nn.Module):
    """Self-attention and a projection, without biases."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
        self.q, self.k, self.v, self.out = linear(3, 4), linear(3, 4), linear(3, 4), linear(4, 2)
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def weights(self, x: Tensor) -> Tensor:
        q, k = self.split(self.q(x)), self.split(self.k(x))
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.weights(x) @ self.split(self.v(x))).transpose(1, 2).flatten(2))


@pytest.mark.proves("4", "attention: A V with A as frozen gates", oracle="the sum over channels by einsum")
def test_one_attention_layer_in_closed_form():
    """Energy of the paths from (s, i) to (t, j): sum over channels c of O_jc^2 A_ts(head of c)^2 V_ci^2."""
    model, x = seeded_module(OneLayer), gaussian(2, 5, 3)
    attention = model.weights(x).detach().square().repeat_interleave(2, dim=1)  # of every channel's head
    v, out = model.v.weight.detach().square(), model.out.weight.detach().square()
    expected = torch.einsum("jc,ncts,ci->ntjsi", out, attention, v)
    problem = prepare(model, x)
    forward, backward = energies(trace(capture(problem, 2), x, "data", set(problem.params)))
    np.testing.assert_allclose(forward, expected.sum((3, 4)), rtol=1e-10)
    np.testing.assert_allclose(backward, expected.sum((1, 2)), rtol=1e-10)
    walked = capalloc.walk(model, x)
    np.testing.assert_allclose(walked.inputs, expected.sum((0, 1, 2)) / expected.sum(), rtol=1e-10)


def test_a_value_channel_is_one_symmetry_at_all_positions():
    model, x = seeded_module(OneLayer), gaussian(2, 5, 3)
    allocation, exact = capalloc.propagate(model, x, solver="markov"), capalloc.propagate(model, x, solver="hessian")
    assert "symmetries: lower bound" not in allocation.attrs["notes"]
    assert allocation.attrs["unseen_params"] == exact.attrs["unseen_params"] == 24
    assert allocation.attrs["symmetries"] == 4
    assert exact.attrs["rank"] == 12 + 8 - 4
    np.testing.assert_allclose(allocation.capacity, exact.capacity, rtol=1e-9)


class Block(nn.Module):
    """A pre-normalised transformer block of one head, gates and statistics taken from another input."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(3) for _ in range(2))
        self.attention = OneLayer(1)
        self.back = nn.Linear(2, 3)
        self.up, self.gate, self.down = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.back(self.attention(self.norms[0](x)))
        y = self.norms[1](h)
        return h + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


def block_energies(model: Block, x: Tensor) -> Tensor:
    """Path energies through the block by hand: squared weights, frozen gates, mean and beta as one path."""

    def linear(layer: nn.Linear, e: Tensor) -> Tensor:
        out = e @ layer.weight.square().T
        return out if layer.bias is None else out + layer.bias.square()

    def norm(layer: nn.LayerNorm, at: Tensor, e: Tensor) -> Tensor:
        mean, std = at.mean(-1, keepdim=True), (at.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
        return e * (layer.weight / std).square() + (layer.bias - mean / std * layer.weight).square()

    with torch.no_grad():
        y = model.norms[0](x)
        weights = model.attention.weights(y)[:, 0].square()
        values = weights @ linear(model.attention.v, norm(model.norms[0], x, torch.ones_like(x)))
        e = 1 + linear(model.back, linear(model.attention.out, values))
        h = x + model.back(model.attention(y))
        z = model.norms[1](h)
        gate = nn.functional.silu(model.gate(z)).square()
        return e + linear(model.down, gate * linear(model.up, norm(model.norms[1], h, e)))


@pytest.mark.proves("4", "mean and beta of a norm are one path", oracle="the squared network by hand")
def test_a_whole_block_against_its_squared_network():
    model, x = seeded_module(Block), gaussian(2, 5, 3)
    problem = prepare(model, x)
    forward, _ = energies(trace(capture(problem, 2), x, "data", set(problem.params)))
    np.testing.assert_allclose(forward, block_energies(model, x), rtol=1e-10)
    allocation = capalloc.propagate(model, x, solver="markov")
    assert allocation.attrs["unseen_params"] == 24 + 16
    assert allocation.total == pytest.approx(counted(allocation), rel=1e-9)
    exact = capalloc.propagate(model, x, solver="hessian")
    assert exact.attrs["rank"] == counted(allocation)
    # The Markov rule is exact but for the residual stream and the biases: 0.2 % of total variation.
    assert float(abs(allocation.capacity - exact.capacity).sum()) / 2 < 0.005 * allocation.total


def test_causal_attention_gives_later_positions_nothing():
    x = gaussian(2, 5, 8)

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = built("gpt2", "sdpa").model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(inputs_embeds=x).last_hidden_state[:, 2]

    found = capalloc.propagate(Middle(), x, table=False, solver="markov").capacity
    assert bool((found[:3] > 0).all())
    assert bool((found[3:] == 0).all())


def test_a_frozen_attention_layer_is_linear_in_its_values():
    model, x = seeded_module(OneLayer, 1), gaussian(2, 3, 3)
    model.v.weight.data, model.out.weight.data = torch.eye(4, 3).double(), torch.eye(2, 4).double()
    problem = prepare(model, x)
    program = trace(capture(problem, 2), x, "data", set(problem.params))
    assert_is_squared_jacobian(program, lambda z: (model.weights(x)[:, 0].detach() @ z)[..., :2], x)
