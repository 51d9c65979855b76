"""Kinds of calls that other people's architectures make, each beside the same network without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers.integrations.moe  # registers an operator
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from zoo import gaussian, seeded_module


def assert_same(network: nn.Module, plain: nn.Module, x: Tensor) -> None:
    plain.load_state_dict(network.state_dict())
    found, expected = (capalloc.propagate(model.eval(), x, solver="markov") for model in (network, plain))
    assert found.total == pytest.approx(expected.total)
    np.testing.assert_allclose(found.capacity.values, expected.capacity.values, rtol=1e-6)


class Experts(nn.Module):
    """Each example goes through the matrix of the expert that a router picks: sorted in groups, or all and a mask."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 2)
        self.weights, self.grouped = nn.Parameter(torch.randn(3, 4, 4)), grouped

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        picked = self.router(h).argmax(1)
        chosen = picked[:, None] == torch.arange(3)
        if self.grouped:
            order = picked.argsort()
            ends = chosen.sum(0).cumsum(0).to(torch.int32)
            h = torch.ops.transformers.grouped_mm_fallback(h[order], self.weights, ends)[order.argsort()]
        else:
            h = torch.where(chosen.T[:, :, None], h @ self.weights, 0.0).sum(0)
        return self.last(F.relu(h))


@pytest.mark.skipif(not hasattr(torch.ops.transformers, "grouped_mm_fallback"), reason="transformers 5.0 has none")
def test_rows_in_groups_go_through_the_matrix_of_their_group() -> None:
    assert transformers.integrations.moe
    assert_same(*(seeded_module(lambda g=g: Experts(g)) for g in (True, False)), gaussian(12, 3))


class Routed(nn.Module):
    """Each expert gets the examples that pick it, which may be none, as rows of their own, or all and a mask."""

    def __init__(self, gathered: bool) -> None:
        super().__init__()
        self.first, self.router, self.gathered = nn.Linear(3, 4), nn.Linear(4, 3), gathered
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        picked, out = self.router(h).argmax(1), h.new_zeros(len(h), 2)
        for k, expert in enumerate(self.experts):
            if self.gathered:
                rows = (picked == k).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(h[rows]))
            else:
                out = out + torch.where((picked == k)[:, None], expert(h), 0.0)
        return out


def test_experts_that_no_example_picks_carry_nothing() -> None:
    network, plain = (seeded_module(lambda g=g: Routed(g)) for g in (True, False))
    assert_same(network, plain, gaussian(12, 3))
    assert_same(network, plain, gaussian(1, 3))
    field = capalloc.receptive_field(network, gaussian(12, 3))
    assert bool(field.support.all())


class Masked(nn.Module):
    """A softmax of some entries alone: the others are minus infinity, from a tensor or from a number."""

    def __init__(self, tensor: bool) -> None:
        super().__init__()
        self.first, self.last, self.tensor = nn.Linear(3, 5), nn.Linear(5, 2), tensor

    def forward(self, x: Tensor) -> Tensor:
        h, left_out = self.first(x), torch.arange(5) > 2
        fill = torch.full_like(h, -torch.inf)
        h = torch.where(left_out, fill, h) if self.tensor else h.masked_fill(left_out, -torch.inf)
        return self.last(h.softmax(-1))


def test_infinities_of_masks_start_no_paths() -> None:
    assert_same(*(seeded_module(lambda t=t: Masked(t)) for t in (True, False)), gaussian(6, 3))


class Picking(nn.Module):
    """Scales the entries that a mask picks, as many as an example has, or does it by a choice."""

    def __init__(self, picks: bool) -> None:
        super().__init__()
        self.first, self.last, self.picks = nn.Linear(3, 5), nn.Linear(5, 2), picks

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.picks:
            h[h < 0] *= 0.1
        return self.last(h if self.picks else torch.where(h < 0, 0.1 * h, h))


class Neighbours(nn.Module):
    """A sum over neighbours by a sparse matrix, or by the same matrix in full."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        near = torch.eye(5).roll(1, 0) + 0.5 * torch.eye(5)
        self.register_buffer("near", near.to_sparse() if sparse else near, persistent=False)
        self.product = torch.matmul

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.product(self.near, F.relu(self.first(x)).T).T)


@pytest.mark.parametrize("kind", [Picking, Neighbours])
def test_examples_are_walked_one_by_one_as_together(kind: type[nn.Module]) -> None:
    network, plain = (seeded_module(lambda own=own: kind(own)) for own in (True, False))
    x = gaussian(12, 3)
    assert_same(network, plain, x)
    together, apart = (capalloc.walk(network, x, batch_size=size) for size in (12, 1))
    np.testing.assert_allclose(together.inputs, apart.inputs, rtol=1e-9)
    for size in (12, 1):
        found = capalloc.propagate(network, x, solver="markov", layers=True, batch_size=size)
        assert "first" in found.layers
    assert bool(capalloc.receptive_field(network, x).support.all())


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": Tensor.to_sparse,
    "csr": Tensor.to_sparse_csr,
    "csc": Tensor.to_sparse_csc,
    "bsr": lambda near: near.to_sparse_bsr((5, 1)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("product", [torch.matmul, torch.sparse.mm], ids=["matmul", "mm"])
def test_a_sparse_buffer_of_any_layout_is_as_its_matrix(layout: str, product: Callable[..., Tensor]) -> None:
    network, plain = (seeded_module(lambda own=own: Neighbours(own)) for own in (True, False))
    network.near, network.product = LAYOUTS[layout](plain.near), product
    x = gaussian(12, 3)
    assert_same(network, plain, x)
    for solver in ("block", "hessian"):
        found, expected = (capalloc.propagate(m, x, solver=solver) for m in (network, plain))
        np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)


class Written(nn.Module):
    """Hidden units through one of two ways to write the same."""

    def __init__(self, ways: tuple[Callable[..., Tensor], Callable[..., Tensor]], own: bool) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(3, 4), nn.Linear(4, 2), ways[0] if own else ways[1]
        self.scale, self.pairs = nn.Parameter(gaussian(4)), nn.Parameter(gaussian(4, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.way(self, self.first(x))))


def test_a_signal_less_its_activation_has_a_field() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanhshrink(), nn.Linear(4, 2))
    assert bool(capalloc.receptive_field(model, gaussian(5, 3).float()).support.all())


WRITTEN: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "a division": (lambda m, h: h / m.scale.exp(), lambda m, h: h * (1 / m.scale.exp())),
    "a division by a number": (lambda m, h: h / m.scale.square().sum(), lambda m, h: h * (1 / m.scale.square().sum())),
    "tensordot": (
        lambda m, h: torch.tensordot(h.unflatten(1, (2, 2)), m.pairs, ([1, 2], [1, 2])),
        lambda m, h: F.linear(h, m.pairs.flatten(1)),
    ),
    "bilinear": (
        lambda m, h: F.bilinear(h[:, :2], h[:, 2:], m.pairs),
        lambda m, h: torch.einsum("bi,oij,bj->bo", h[:, :2], m.pairs, h[:, 2:]),
    ),
    "hypot": (
        lambda m, h: torch.hypot(h, m.scale),
        lambda m, h: torch.stack([h, m.scale.expand_as(h)]).norm(dim=0),
    ),
    "logaddexp": (
        lambda m, h: torch.logaddexp(h, m.scale),
        lambda m, h: torch.stack([h, m.scale.expand_as(h)]).logsumexp(0),
    ),
    "a learnt power": (
        lambda m, h: (h.square() + 0.1) ** m.scale,
        lambda m, h: ((h.square() + 0.1).log() * m.scale).exp(),
    ),
    "a learnt base": (lambda m, h: m.scale.exp() ** h, lambda m, h: (m.scale.exp().log() * h).exp()),
    "xlogy": (lambda m, h: torch.xlogy(h, m.scale.exp()), lambda m, h: h * m.scale.exp().log()),
    "xlog1py": (lambda m, h: torch.special.xlog1py(h, m.scale.exp()), lambda m, h: h * (1 + m.scale.exp()).log()),
    "ldexp": (lambda m, h: torch.ldexp(h, m.scale), lambda m, h: h * m.scale.exp2()),
    "fmod": (lambda m, h: torch.fmod(h, m.scale), lambda m, h: h - m.scale * (h / m.scale).trunc().detach()),
    "remainder": (lambda m, h: h % m.scale, lambda m, h: h - m.scale * (h / m.scale).floor().detach()),
    "floor division": (lambda m, h: h * (h // m.scale), lambda m, h: h * (h / m.scale).floor()),
    **{
        f"division rounded by {mode}": (
            lambda m, h, mode=mode: h * torch.div(h, m.scale, rounding_mode=mode),
            lambda m, h, step=step: h * step(h / m.scale),
        )
        for mode, step in {"floor": torch.floor, "trunc": torch.trunc, None: torch.clone}.items()
    },
    "copysign": (lambda m, h: torch.copysign(m.scale, h), lambda m, h: m.scale * (m.scale * h).sign()),
    "addcdiv": (lambda m, h: torch.addcdiv(h, h, m.scale), lambda m, h: h + h * (1 / m.scale)),
    "mv": (
        lambda m, h: torch.stack([torch.mv(m.pairs.flatten(1), row) for row in h]),
        lambda m, h: F.linear(h, m.pairs.flatten(1)),
    ),
    "addmv": (
        lambda m, h: torch.stack([torch.addmv(m.scale, m.pairs.flatten(1), row) for row in h]),
        lambda m, h: F.linear(h, m.pairs.flatten(1)) + m.scale,
    ),
    "dot": (
        lambda m, h: torch.stack([torch.dot(row, m.scale) for row in h])[:, None].expand(-1, 4),
        lambda m, h: (h * m.scale).sum(1, keepdim=True).expand(-1, 4),
    ),
    "inner": (lambda m, h: torch.inner(h, m.pairs.flatten(1)), lambda m, h: F.linear(h, m.pairs.flatten(1))),
    "outer": (
        lambda m, h: torch.stack([torch.outer(row, m.scale) for row in h]).diagonal(dim1=1, dim2=2),
        lambda m, h: (h[:, :, None] * m.scale).diagonal(dim1=1, dim2=2),
    ),
    "kron": (
        lambda m, h: torch.kron(h, m.scale[None])[:, :4],
        lambda m, h: (h[:, :, None] * m.scale).flatten(1)[:, :4],
    ),
    "cross": (
        lambda m, h: torch.linalg.cross(h[:, :3], m.scale[:3].expand(len(h), 3)).repeat(1, 2)[:, :4],
        lambda m, h: torch.stack(
            [h[:, i] * m.scale[j] - h[:, j] * m.scale[i] for i, j in ((1, 2), (2, 0), (0, 1))], 1
        ).repeat(1, 2)[:, :4],
    ),
    "a system of equations": (
        lambda m, h: torch.linalg.solve(m.pairs.flatten(1), h.T).T,
        lambda m, h: (torch.linalg.inv(m.pairs.flatten(1)) @ h.T).T,
    ),
    "a triangular system": (
        lambda m, h: torch.linalg.solve_triangular(m.pairs.flatten(1).tril(), h, upper=False, left=False),
        lambda m, h: h @ torch.linalg.inv(m.pairs.flatten(1).tril()),
    ),
}


def test_a_sum_of_exponentials_that_runs_is_that_of_each_stretch() -> None:
    ways = (
        lambda m, h: torch.logcumsumexp(h * m.scale, 1),
        lambda m, h: torch.stack([(h * m.scale)[:, : k + 1].logsumexp(1) for k in range(4)], 1),
    )
    assert_same(*(seeded_module(lambda own=own: Written(ways, own)) for own in (True, False)), gaussian(12, 3))


def test_distances_are_norms_of_differences() -> None:
    ways = (
        lambda m, h: torch.cdist(h[:, None], m.pairs.flatten(1))[:, 0],
        lambda m, h: (h[:, None] - m.pairs.flatten(1)).norm(dim=2),
    )
    network, plain = (seeded_module(lambda own=own: Written(ways, own)) for own in (True, False))
    found, expected = (capalloc.propagate(m, gaussian(12, 3), solver="markov") for m in (network, plain))
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)


@pytest.mark.parametrize("ways", WRITTEN.values(), ids=WRITTEN)
def test_one_function_written_in_two_ways_gives_one_answer(
    ways: tuple[Callable[..., Tensor], Callable[..., Tensor]],
) -> None:
    network, plain = (seeded_module(lambda own=own: Written(ways, own)) for own in (True, False))
    assert_same(network, plain, gaussian(12, 3))
