"""The count of symmetries, against the rank of the Hessian of path energy: exact integers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._energy.batches import Batches
from capalloc._energy.symmetries.elimination import eliminate
from capalloc._energy.symmetries.labels import GROUND, Channels, Limits
from capalloc._model.problem import prepare
from capalloc._propagate.by_solver import by_markov
from symmetry_zoo import NEED_DATA, NETWORKS, Net, conv
from zoo import gaussian, seeded_module


def solved(model: nn.Module, x: Tensor, gates: str = "unit") -> tuple[capalloc.Allocation, int]:
    """By both solvers, of one export."""
    program = torch.export.export(model.eval(), (x,), strict=False)
    markov = capalloc.propagate(program, x, gates=gates, table=False, solver="markov")
    return markov, capalloc.propagate(program, x, gates=gates, solver="hessian").attrs["rank"]


@pytest.mark.proves("4", "symmetries of any graph", oracle="the rank of the Hessian")
@pytest.mark.parametrize("name", NETWORKS)
def test_total_is_the_rank_of_the_hessian(name):
    markov, rank = solved(*NETWORKS[name](), gates="data" if name in NEED_DATA else "unit")
    assert markov.total == pytest.approx(rank, abs=1e-6)
    assert "symmetries: lower bound" not in markov.attrs["notes"]


def test_a_mixer_without_biases_rescales_its_stream_and_both_kinds_of_hidden_channels():
    markov, _ = solved(*NETWORKS["mixer_without_biases"]())
    assert markov.attrs["symmetries"] == 3 + 2 * (5 + 4)  # stream; hidden channels of tokens and channels, two blocks


def test_a_bias_shared_by_the_channels_of_a_mixer_ties_its_stream():
    markov, _ = solved(*NETWORKS["mixer_with_biases"]())
    assert markov.attrs["symmetries"] == 1 + 2 * (5 + 4)


def test_the_factors_of_a_weight_rescale_against_each_other():
    markov, _ = solved(*NETWORKS["two_parameters_in_a_product"]())
    assert markov.attrs["symmetries"] == 4 * 4  # a channel after each of direction, gain, a and b


def pooled_neighbours() -> nn.Module:
    """Max pooling of positions with channels of their own: every window has its own, and pooling ties them all."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = torch.cat([n.a(x), n.b(x)], 2)
        return n.last(F.relu(F.max_pool1d(h, 2)).flatten(1))

    line = lambda: conv(2, 3, bias=False)  # noqa: E731
    return Net(run, a=line(), b=line(), last=nn.Linear(12, 1))


def product_in_a_kernel() -> nn.Module:
    """A kernel that is the product of two parameters: each pair of entries rescales by itself."""

    def run(n: Net, x: Tensor) -> Tensor:
        return n.last(F.relu(F.conv1d(x, n.one * n.two)).flatten(1))

    return Net(run, one=gaussian(3, 2, 3), two=gaussian(3, 2, 3), last=nn.Linear(12, 1))


@pytest.mark.parametrize("build", [pooled_neighbours, product_in_a_kernel])
def test_where_labels_are_too_coarse_the_count_is_called_a_lower_bound(build):
    model, x = seeded_module(build), gaussian(1, 2, 6 if build is product_in_a_kernel else 4)
    markov, rank = solved(model, x)
    assert not markov.attrs["symmetries_exact"]
    assert "symmetries: lower bound" in repr(markov)
    assert markov.total > rank + 0.5


class Token(nn.Module):
    """Attention that is read at a token of its own, which the mask may keep from its own value."""

    def __init__(self, closed: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3, bias=False)
        self.token, self.gain = nn.Parameter(gaussian(1, 1, 3)), nn.Parameter(gaussian(3, seed=1))
        self.value, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
        self.register_buffer("weights", gaussian(4, 4, seed=2).masked_fill(torch.eye(4).bool() & closed, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([self.token.expand(len(x), -1, -1), self.first(x)], 1)
        return self.last(F.relu((z + self.weights @ self.value(z * self.gain))[:, 0]))


@pytest.mark.parametrize("closed", [False, True])
def test_a_tie_by_outputs_that_nothing_reads_is_no_exact_one(closed):
    markov, rank = solved(seeded_module(partial(Token, closed)), gaussian(1, 3, 4))
    exact = "symmetries: lower bound" not in markov.attrs["notes"]
    assert exact == (round(markov.total) == rank) == (not closed)


def within(limits: Limits, model: nn.Module, x: Tensor) -> tuple[capalloc.Allocation, int]:
    """`solved`, counting within limits."""
    program = torch.export.export(model.eval(), (x,), strict=False)
    problem = prepare(program, x, None, None, traced=True)
    batches = replace(Batches.of(problem, "unit", "auto"), limits=limits)
    markov = by_markov(problem, batches, layers=False, table=False)
    return markov, capalloc.propagate(program, x, gates="unit", solver="hessian").attrs["rank"]


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(classes=0), "mixer_without_biases"),
        (Limits(uses=0), "convolution_over_joined_positions"),
        (Limits(solution=0), "mixer_without_biases"),
    ],
)
def test_beyond_the_limits_the_count_is_a_lower_bound(limits, name):
    markov, rank = within(limits, *NETWORKS[name]())
    assert not markov.attrs["symmetries_exact"]
    assert markov.total > rank - 1e-6


def balance(channels: Channels, *labels: torch.Tensor) -> None:
    """One parameter in two places, entry by entry: written, read, written too, read too."""
    written, read = (torch.stack([labels[k].reshape(-1), labels[k + 2].reshape(-1)], 1) for k in (0, 1))
    parameter = torch.arange(len(written)).repeat_interleave(2)
    channels.uses(parameter, written.reshape(-1), read.reshape(-1))


def test_a_forced_tie_that_what_came_before_implies_costs_nothing():
    def merged(*ties: tuple[int, int], late: bool = False, related: bool = False) -> bool:
        channels = Channels()
        labels = channels.fresh((4,))
        if related:  # a - b = c - d; with c tied to d this ties a to b
            balance(channels, *labels)
        for _ in range(2):
            if late:
                channels.merge(labels[:2], (2,), (0,), forced=True)
            for a, b in ties:
                channels.tie(labels[a], labels[b])
            late = not late
        return channels.resolve().exact

    assert not merged()
    assert merged((0, 1))
    assert merged((0, 2), (1, 2))
    assert not merged((0, 1), late=True)
    # balance(a, b, c, d): a - b = c - d
    assert merged((2, 3), related=True)
    assert not merged(related=True)


@pytest.mark.parametrize("name", ["mixer_without_biases", "iterated", "rezero"])
def test_large_blocks_place_symmetries_without_changing_their_number(name):
    exact, _ = solved(*NETWORKS[name]())
    coarse, rank = within(Limits(leverage=0), *NETWORKS[name]())
    assert coarse.total == pytest.approx(rank, abs=1e-6)
    assert capalloc.total_variation(exact, coarse) < 0.1


class Random(nn.Module):
    """A random graph of dense layers, ReLUs, sums and joins over (positions, channels), weights drawn from a pool."""

    def __init__(self, choices: list[tuple[int, int, int]], width: int, bias: bool) -> None:
        super().__init__()
        line = lambda i, o: nn.Linear(i, o, bias=bias)  # noqa: E731
        self.pool = nn.ModuleList(line(width, width) for _ in range(2))
        self.across = nn.ModuleList(line(2, 2) for _ in range(2))
        self.join = line(2 * width, width)
        self.scale = nn.Parameter(torch.ones(3))
        self.last = line(2 * width, 1)
        self.choices = choices

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for kind, first, second in self.choices:
            seen.append(self.combine(kind, second, seen[first % len(seen)], seen[second % len(seen)]))
        return self.last(torch.tanh(sum(seen[-2:])).flatten(1))

    def combine(self, kind: int, choice: int, a: Tensor, b: Tensor) -> Tensor:
        if kind == 0:
            return F.relu(self.pool[choice % 2](a))
        if kind == 1:
            return a + b
        if kind == 2:
            return self.across[choice % 2](a.mT).mT
        if kind == 3:
            return self.join(torch.cat([a, b], -1))
        return self.scale[choice % 3] * a if kind == 4 else torch.stack([a[:, 0], b[:, 1]], 1)


@pytest.mark.proves("4", "symmetries of any graph", oracle="the rank of the Hessian")
@settings(max_examples=12, deadline=None)
@given(
    choices=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_graphs_with_shared_weights(choices, bias, seed):
    model = seeded_module(Random, choices, 2, bias, seed=seed)
    model.scale.data = gaussian(3, seed=seed)
    markov, rank = solved(model, gaussian(1, 2, 2))
    assert "symmetries: lower bound" not in markov.attrs["notes"]
    assert markov.total == pytest.approx(rank, abs=1e-6)


def test_weights_of_zero_relate_nothing():
    """A class of positions is bound to another by the weights that are not 0, and by no others."""
    model, x = NETWORKS["position_shared_dense"]()
    whole, _ = solved(model, x)
    model.inner.weight.data[:2, 0] = 0
    model.inner.weight.data[2:, 1:] = 0  # the layer falls into two
    markov, rank = solved(model, x)
    assert markov.total == pytest.approx(rank, abs=1e-6)
    assert markov.attrs["symmetries"] == whole.attrs["symmetries"] + 1


def test_dead_channels_bind_nothing():
    model, x = NETWORKS["iterated"]()
    model.inner.weight.data[1] = 0
    markov, rank = solved(model, x)
    assert markov.total == pytest.approx(rank, abs=1e-6)


def random_relations(rng: np.random.Generator, labels: int, relations: int) -> tuple[Channels, np.ndarray]:
    channels = Channels()
    channels.fresh((labels,))
    rows = rng.integers(1, labels + 2, size=(relations, 4))
    balance(channels, *torch.from_numpy(rows).T)
    dense = np.zeros((relations, labels + 2))
    for column, sign in zip(rows.T, (1, -1, -1, 1), strict=True):
        np.add.at(dense, (np.arange(relations), column), sign)
    return channels, dense[:, 2:]


@pytest.mark.proves("4", "a symmetry is taken by the leverage of each channel", oracle="the null space by numpy")
@settings(max_examples=30, deadline=None)
@given(labels=st.integers(1, 30), relations=st.integers(0, 30), seed=st.integers(0, 999))
def test_freedom_is_the_leverage_in_the_null_space_of_the_relations(labels, relations, seed):
    rng = np.random.default_rng(seed)
    channels, dense = random_relations(rng, labels, relations)
    energy = rng.uniform(0.1, 1, labels)
    found = channels.resolve()
    through = torch.zeros(found.number, dtype=torch.float64)
    through[found.component[2:]] = torch.from_numpy(energy)
    s, vh = np.linalg.svd(dense)[1:] if relations else (np.zeros(0), np.eye(labels))
    null = vh[int((s > 1e-9).sum()) :].T
    q, _ = np.linalg.qr(np.sqrt(energy)[:, None] * null)
    np.testing.assert_allclose(found.freedom(through)[found.component[2:]], (q**2).sum(1), atol=1e-7)


def test_elimination_solves_what_it_is_given():
    rng = np.random.default_rng(0)
    equations = rng.integers(-2, 3, size=(12, 20)) * (rng.random((12, 20)) < 0.3)
    found = eliminate(csr_array(equations.astype(float)), 10_000)
    assert found is not None
    solution, removed = found
    assert removed.sum() == np.linalg.matrix_rank(equations)
    np.testing.assert_allclose((equations @ solution.toarray()), 0, atol=1e-9)
    assert solution[:, np.flatnonzero(removed)].nnz == 0


def test_ties_name_one_potential():
    channels = Channels()
    a, b, c = channels.fresh((3,)), channels.fresh((2, 3)), channels.fresh((3,))
    channels.tie(a, b)
    assert torch.equal(channels.canonical(b), a.expand(2, 3))
    assert torch.equal(channels.canonical(c), c)
    channels.tie(b[1], torch.tensor(GROUND))
    assert bool((channels.canonical(a) == GROUND).all())
    assert channels.resolve().number == 1 + 3
