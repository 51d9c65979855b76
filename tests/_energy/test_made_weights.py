"""Weights that a graph of parameters makes have the energy of their value, which the parameters share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._energy import made_weights
from capalloc._graph import structure
from energies import counted
from zoo import gaussian, seeded_module

Make = Callable[[nn.Module], tuple[Tensor, Tensor]]


def assert_same_capacity(a: capalloc.Allocation, b: capalloc.Allocation) -> None:
    assert a.total == pytest.approx(b.total)
    np.testing.assert_allclose(a.capacity.values, b.capacity.values, rtol=1e-6)


class Made(nn.Module):
    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.make, self.call = nn.Linear(6, 5), nn.Linear(5, 2), make, F.linear
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))
        self.register_buffer("centred", torch.eye(6) - 1 / 6)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.make(self)
        return self.last(torch.relu(self.call(x, weight, bias)))


def standardised(m: nn.Module) -> Tensor:
    w = m.first.weight
    return (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)


MADE: dict[str, Callable[[nn.Module], Tensor]] = {
    "standardised": standardised,
    "batch norm": lambda m: F.batch_norm(m.first.weight[None], None, None, training=True)[0],
    "softmax": lambda m: m.first.weight.softmax(1),
    "binary": lambda m: m.first.weight.sign() * m.first.weight.abs().mean(),
    "low-rank update": lambda m: m.first.weight + m.up @ m.down,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_made_weights_count_the_parameters_that_make_them(make: Callable[[nn.Module], Tensor]) -> None:
    model, x = Made(lambda m: (make(m), m.first.bias)).eval(), gaussian(20, 6)
    allocation = capalloc.propagate(model, x, solver="markov")
    assert allocation.total == pytest.approx(counted(allocation))
    used = [name for name, p in model.named_parameters() if "up" not in name and "down" not in name]
    if make is MADE["low-rank update"]:
        used += ["up", "down"]
    entries = sum(dict(model.named_parameters())[name].numel() for name in used)
    assert allocation.attrs["num_params"] - allocation.attrs["unused_params"] == entries


SAME: dict[str, Make] = {
    "an inactive renorm": lambda m: (m.first.weight.renorm(2, 0, 1e3), m.first.bias),
    "there and back": lambda m: (m.first.weight.cumsum(0).diff(dim=0, prepend=m.first.weight[:1] * 0), m.first.bias),
    "masked by nothing": lambda m: (m.first.weight.masked_fill(torch.zeros(5, 6) > 0, 0.0), m.first.bias),
    "in pieces": lambda m: (torch.cat([m.first.weight[:2], m.first.weight[2:]]), m.first.bias),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_a_weight_made_entry_for_entry_is_the_plain_weight(make: Make) -> None:
    x = gaussian(20, 6)
    plain = capalloc.propagate(Made(lambda m: (m.first.weight, m.first.bias)).eval(), x, solver="markov")
    assert_same_capacity(capalloc.propagate(Made(make).eval(), x, solver="markov"), plain)


def test_entries_that_are_zero_count_as_those_of_a_plain_weight() -> None:
    models = [Made(make).eval() for make in (lambda m: (m.first.weight, m.first.bias), SAME["an inactive renorm"])]
    with torch.no_grad():
        for model in models:
            model.first.weight[:, ::2] = 0
    plain, made = (capalloc.propagate(model, gaussian(20, 6), solver="markov") for model in models)
    assert_same_capacity(made, plain)


def test_weights_that_are_rounded_to_zero_are_used() -> None:
    """A straight-through estimator: the gradient of the weight itself."""
    rounded = lambda m: (m.first.weight + (m.first.weight.round() - m.first.weight).detach(), m.first.bias)  # noqa: E731
    model = Made(rounded).eval()
    with torch.no_grad():
        model.first.weight[:, :2] *= 0.5
        model.first.weight[:, 2:] += torch.sign(model.first.weight[:, 2:])
    assert int((model.first.weight.round() == 0).sum()) == 10
    x = gaussian(40, 6)
    found, measured = capalloc.propagate(model, x, solver="markov"), capalloc.measure(model, x)
    assert found.attrs["unused_params"] == model.down.numel() + model.up.numel()
    assert found.total == pytest.approx(measured.total)


def inverse(m: nn.Module) -> Tensor:
    square = torch.cat([m.first.weight, m.up[:1].repeat(1, 3)])
    return torch.linalg.inv(square + 4 * torch.eye(6).to(square))


IN_PART: dict[str, Callable[[nn.Module], Tensor]] = {
    "rows of an inverse": lambda m: inverse(m)[:5],
    "kernels in proportions": lambda m: torch.einsum(
        "k,kij->ij", m.down[0, :5].softmax(0), m.first.weight.expand(5, 5, 6)
    ),
    "a mixture of kernels": lambda m: torch.einsum(
        "k,kij->ij", m.up[:3, 0].softmax(0), torch.stack([m.first.weight, m.first.weight.flip(0), m.up @ m.down])
    ),
    "a network's": lambda m: torch.relu(m.up[:, :1] * m.first.weight + m.down[:1]),
}


@pytest.mark.parametrize("make", IN_PART.values(), ids=IN_PART)
def test_parameters_hold_as_many_as_the_entries_that_paths_use(make: Callable[[nn.Module], Tensor]) -> None:
    model, x = Made(lambda m: (make(m), m.first.bias)).eval(), gaussian(80, 6)
    found, measured = capalloc.propagate(model, x, solver="markov", table=True), capalloc.measure(model, x)
    assert found.total == pytest.approx(measured.total)
    assert bool((found.by_parameter >= 0).all())


class Sparse(nn.Module):
    """A weight with holes, made of entries, before whose reading nothing mixes channels."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 0, 3])
        return x @ x.new_zeros(3, 5).index_put(places, self.entries).T

    def __init__(self) -> None:
        super().__init__()
        self.entries = nn.Parameter(gaussian(4))


def test_fields_keep_the_holes_of_a_made_weight() -> None:
    field = capalloc.receptive_field(seeded_module(Sparse), gaussian(3, 5))
    assert field.support.values.tolist() == field.influence.values.tolist() == [True, True, False, True, False]


class Decomposed(nn.Module):
    """A weight of fixed rows, changed by a low rank, with learnt lengths (DoRA)."""

    def __init__(self, scale: float, base: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Parameter(torch.randn(3, 4), requires_grad=base)
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(scale * torch.randn(3, 2))
        self.length, self.last = nn.Parameter(torch.rand(3, 1) + 1), nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base + self.up @ self.down
        return self.last(torch.relu(F.linear(x, self.length * weight / weight.norm(dim=1, keepdim=True))))


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_directions_and_lengths_of_a_weight_count_as_measured(scale: float, base: bool) -> None:
    model, x = Decomposed(scale, base), gaussian(60, 4)
    found, measured = capalloc.propagate(model, x, solver="markov"), capalloc.measure(model, x)
    assert found.total == pytest.approx(measured.total)
    assert found.attrs["unused_params"] == (0 if scale else model.down.numel())


class Branch(nn.Module):
    """x + gate(a) relu(W x + b), with a branch that is closed at the start."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last, self.gate = nn.Linear(3, 3), nn.Linear(3, 2), gate
        self.opening = nn.Parameter(torch.zeros(3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.gate(self.opening) * torch.relu(self.inner(x)))


@pytest.mark.parametrize("gate", [lambda a: a, torch.tanh, lambda a: a * 2, lambda a: torch.cat([a[:1], a[1:]])])
def test_a_branch_that_starts_closed_has_its_gate_alone(gate: Callable[[Tensor], Tensor]) -> None:
    model, x = Branch(gate), gaussian(30, 3)
    found, measured = capalloc.propagate(model, x, solver="markov"), capalloc.measure(model, x)
    assert found.total == pytest.approx(measured.total)
    assert dict(found.by_parameter.to_series())["inner.weight"] == 0


def test_a_gate_that_starts_at_zero_is_used() -> None:
    model, x = Made(lambda m: (m.first.weight, torch.tanh(m.first.bias))).eval(), gaussian(20, 6)
    with torch.no_grad():
        model.first.bias.zero_()
    assert dict(capalloc.propagate(model, x, solver="markov").by_parameter.to_series())["first.bias"] > 0


def test_a_bias_with_zeros_beside_it_is_the_bias_of_some_units() -> None:
    x = gaussian(20, 6)
    some = lambda m: (m.first.weight, torch.cat([m.first.bias[:3], m.first.bias.new_zeros(2)]))  # noqa: E731
    allocation = capalloc.propagate(Made(some).eval(), x, solver="markov")
    assert allocation.total == pytest.approx(capalloc.measure(Made(some).eval(), x).total)


def test_large_weights_are_taken_entry_by_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(20, 6)
    cut = lambda m: (m.first.weight.renorm(2, 0, 1e3), m.first.bias)  # noqa: E731
    exact = capalloc.propagate(Made(cut).eval(), x, solver="markov")
    monkeypatch.setattr(made_weights, "JACOBIAN_LIMIT", 4)
    assert_same_capacity(capalloc.propagate(Made(cut).eval(), x, solver="markov"), exact)


def test_a_large_weight_of_parameters_of_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_weights, "RECTANGLE_LIMIT", 4)
    model = Made(lambda m: (m.first.weight + m.up @ m.down, m.first.bias)).eval()
    with pytest.raises(
        NotImplementedError, match="their Jacobian is too large, and entries of one are not those of the"
    ):
        capalloc.propagate(model, gaussian(20, 6), solver="markov")


def test_the_hessian_identity_counts_what_leaves_made_weights_as_they_are() -> None:
    """The path program of a made weight is a polynomial in the parameters' squares, which knows of no rank."""
    model, x = Made(lambda m: (standardised(m), m.first.bias)).eval(), gaussian(20, 6)
    markov, hessian = (capalloc.propagate(model, x, solver=s) for s in ("markov", "hessian"))
    assert hessian.total - markov.total == pytest.approx(5)  # of ten directions, five are taken for symmetries


def orthogonal() -> nn.Module:
    model = Made(lambda m: (m.first.weight, m.first.bias))
    nn.utils.parametrizations.orthogonal(model.first)
    return model


RANKED: dict[str, Callable[[], nn.Module]] = {
    name: lambda make=make: Made(lambda m: (make(m), m.first.bias))
    for name, make in {
        **MADE,
        "centred columns": lambda m: m.first.weight - m.first.weight.mean(0),
        "product": lambda m: m.up @ m.down,
        "dense product": lambda m: F.linear(m.up, m.down.mT),
        "sum of outer products": lambda m: (m.up[:, :, None] * m.down).sum(1),
        "projected": lambda m: m.first.weight @ m.centred,
        "binary rows": lambda m: m.first.weight.sign() * m.first.weight.abs().mean(1, keepdim=True),
        "clamped": lambda m: m.first.weight.clamp(-0.3, 0.3),
        "through a bottleneck of two": lambda m: (m.first.weight @ m.down.mT) @ m.down,
    }.items()
}
RANKED |= {"orthogonal": orthogonal, "one matrix for weight and bias": lambda: Made(bordered)}


def bordered(m: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias as parts of one made matrix."""
    whole = torch.cat([m.first.weight, m.first.bias[:, None]], 1).softmax(1)
    return whole[:, :6], whole[:, 6]


@pytest.mark.proves("4", "standardised, orthogonal, softmax, low-rank updates", oracle="measured capacity")
@pytest.mark.parametrize("make", RANKED.values(), ids=RANKED)
@pytest.mark.parametrize("call", [F.linear, lambda x, w, b: x @ w.mT + b], ids=["dense", "matmul"])
def test_made_weights_hold_the_rank_of_their_jacobian(
    make: Callable[[], nn.Module], call: Callable[..., Tensor]
) -> None:
    model, x = make().eval(), gaussian(60, 6)
    model.call = call
    propagated = capalloc.propagate(model, x, solver="markov", table=True)
    assert propagated.total == pytest.approx(capalloc.measure(model, x).total)
    np.testing.assert_allclose(propagated.table.sum("parameter"), propagated.capacity, rtol=1e-9, atol=1e-12)


def test_a_product_too_large_for_its_jacobian_is_paths_through_both_and_an_upper_bound(monkeypatch) -> None:
    model, x = Made(lambda m: (m.up @ m.down, m.first.bias)).eval(), gaussian(60, 6)
    small = capalloc.propagate(model, x, solver="markov")
    monkeypatch.setattr(structure, "PRODUCT_LIMIT", 4)
    large = capalloc.propagate(model, x, solver="markov")
    assert (small.total, large.total) == (
        pytest.approx(30),
        pytest.approx(32),
    )
    assert not large.attrs["symmetries_exact"]


def test_what_is_taken_entry_by_entry_is_an_upper_bound(monkeypatch) -> None:
    model, x = Made(lambda m: (standardised(m), m.first.bias)).eval(), gaussian(60, 6)
    exact = capalloc.propagate(model, x, solver="markov")
    monkeypatch.setattr(made_weights, "JACOBIAN_LIMIT", 4)
    coarse = capalloc.propagate(model, x, solver="markov")
    assert coarse.total >= exact.total
    assert not coarse.attrs["symmetries_exact"]


class Merged(nn.Linear):
    """A fixed weight and an update of rank 2 that is free."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_of_a_weight_that_is_free_in_part_cannot_be_rescaled(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(Merged(), nn.ReLU(), nn.Linear(5, 2)).to(dtype), gaussian(60, 6).to(dtype)
    propagated, measured = capalloc.propagate(model, x, solver="markov"), capalloc.measure(model, x)
    assert propagated.total == pytest.approx(measured.total)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a share and what is left": lambda p, h, z: p.sigmoid() * h + (1 - p.sigmoid()) * z,
    "itself and one more": lambda p, h, z: p * h + (1 + p) * z,
    "a function of a multiple": lambda p, h, z: (2 * p).sigmoid() * h,
    "two functions": lambda p, h, z: p.exp() * h + p.tanh() * z,
    "one function twice": lambda p, h, z: p.exp() * h + p.exp() * z,
    "one function, and a multiple": lambda p, h, z: p.exp() * h - 2 * p.exp() * z,
}


class Mixed(nn.Module):
    """A layer and its activation, mixed by what is made of a parameter."""

    def __init__(self, way: Callable[[Tensor, Tensor, Tensor], Tensor], size: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.way = nn.Linear(6, 5), nn.Linear(5, 2), way
        self.mix = nn.Parameter(torch.randn(size))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.way(self.mix, torch.relu(h), h))


@pytest.mark.parametrize("size", [(), (5,)], ids=["one", "each"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_parameter_that_is_seen_in_several_ways_is_rescaled_where_all_are(
    way: Callable[[Tensor, Tensor, Tensor], Tensor], size: tuple[int, ...]
) -> None:
    model, x = Mixed(way, size), gaussian(60, 6)
    found = capalloc.propagate(model, x, solver="markov")
    assert found.total == pytest.approx(capalloc.measure(model, x).total)
    assert found.attrs["symmetries_exact"]
    assert found.total == pytest.approx(capalloc.propagate(model, x, solver="hessian").total)


class Hidden(nn.Module):
    """Two made weights in a row."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.make = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)]), make
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:2]:
            x = torch.relu(F.linear(x, self.make(layer.weight), layer.bias))
        return self.layers[2](x)


def test_hidden_made_weights_keep_the_rescalings_that_they_can_follow() -> None:
    x = gaussian(80, 4)
    for make in (lambda w: (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True), lambda w: w + w.T):
        model = Hidden(make).eval()
        assert capalloc.propagate(model, x, solver="markov").total == pytest.approx(capalloc.measure(model, x).total)


def test_segments_go_through_made_weights() -> None:
    model, x = Made(lambda m: (standardised(m), m.first.bias)).eval(), gaussian(20, 6)
    segments, measured = capalloc.propagate(model, x, solver="segments"), capalloc.measure(model, x)
    assert segments.total == pytest.approx(measured.total, abs=6)
