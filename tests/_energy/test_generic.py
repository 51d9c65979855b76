"""Operators without a rule: their matrix against autograd's Jacobian."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._energy import sweep
from capalloc._energy.linear_map import LinearMap
from capalloc._energy.operator_matrix import OperatorError, find
from capalloc._energy.rules import UnsupportedOperatorError
from capalloc._energy.rules import any_linear_operator as generic
from capalloc._energy.trace import trace
from energies import assert_is_squared_jacobian, captured, energies
from zoo import gaussian, seeded_module

INDEX = torch.tensor([2, 0, 1, 1])
MASK = torch.tensor([[True, False, True], [False, False, True]])


def interpolate(**options):
    return lambda x: F.interpolate(x, **options)


def written_in_place(x):
    y = x.clone()
    y[:, 1:] = 2 * x[:, :-1]
    y[:, 0] = x[:, 1]
    y[:, 2] += x[:, 3]
    return y


OPERATORS = {
    "nearest": (interpolate(scale_factor=2), (2, 3, 4, 5)),
    "nearest 1d": (interpolate(scale_factor=1.7), (2, 3, 7)),
    "nearest-exact": (interpolate(scale_factor=1.7, mode="nearest-exact"), (2, 3, 4, 5)),
    "linear": (interpolate(size=9, mode="linear"), (2, 3, 4)),
    "bilinear": (interpolate(scale_factor=2, mode="bilinear"), (2, 3, 4, 5)),
    "bilinear corners": (interpolate(size=(7, 6), mode="bilinear", align_corners=True), (2, 3, 4, 5)),
    "bilinear down": (interpolate(size=(3, 2), mode="bilinear"), (2, 3, 5, 6)),
    "bilinear antialias": (interpolate(size=(3, 2), mode="bilinear", antialias=True), (2, 3, 7, 6)),
    "bicubic": (interpolate(scale_factor=2, mode="bicubic"), (1, 2, 5, 5)),
    "bicubic corners": (interpolate(size=(9, 3), mode="bicubic", align_corners=True), (1, 2, 5, 6)),
    "bicubic antialias": (interpolate(size=(3, 9), mode="bicubic", antialias=True), (1, 2, 5, 6)),
    "trilinear": (interpolate(scale_factor=2, mode="trilinear"), (1, 2, 3, 3, 3)),
    "area": (interpolate(size=(3, 2), mode="area"), (2, 3, 5, 6)),
    "scaled twice": (interpolate(scale_factor=(0.5, 3), mode="bilinear"), (2, 3, 6, 3)),
    "cumsum": (lambda x: x.cumsum(1), (2, 5, 3)),
    "flipped cumsum": (lambda x: x.cumsum(1).flip(1).cumsum(2), (2, 5, 3)),
    "diff": (lambda x: x.diff(dim=1), (2, 5)),
    "unfold": (lambda x: F.unfold(x, 3, dilation=2, padding=1, stride=2), (2, 3, 6, 7)),
    "fold": (lambda x: F.fold(x, (5, 6), 3, padding=1), (2, 18, 30)),
    "strided view": (lambda x: x.unfold(1, 3, 2), (2, 7, 2)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), (2, 8, 3, 4)),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (2, 2, 4, 6)),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), (2, 6, 3, 2)),
    "index select": (lambda x: x.index_select(1, INDEX), (2, 5)),
    "index": (lambda x: x[:, INDEX], (2, 5, 3)),
    "gather": (lambda x: x.gather(1, INDEX.expand(2, 4)), (2, 5)),
    "take along": (lambda x: torch.take_along_dim(x, INDEX[None], 1), (2, 5)),
    "repeat": (lambda x: x.repeat(1, 3), (2, 5)),
    "tile": (lambda x: x.tile(1, 2), (2, 5)),
    "repeat interleave": (lambda x: x.repeat_interleave(2, 1), (2, 5)),
    "index put": (lambda x: torch.zeros(2, 6, dtype=x.dtype).index_put((INDEX[1:3],), x), (2, 6)),
    "index add": (lambda x: torch.ones(2, 6, dtype=x.dtype).index_add(1, INDEX, x), (2, 4)),
    "scatter add": (lambda x: torch.zeros(2, 6, dtype=x.dtype).scatter_add(1, INDEX.expand(2, 4), x), (2, 4)),
    "masked fill": (lambda x: x.masked_fill(MASK, 0.0), (2, 3)),
    "tril": (lambda x: x.tril(), (2, 3, 4)),
    "triu": (lambda x: x.triu(1), (2, 3, 4)),
    "diagonal": (lambda x: x.diagonal(dim1=1, dim2=2), (2, 3, 4)),
    "diagonal matrix": (lambda x: x.diag_embed(), (2, 3)),
    "rot90": (lambda x: x.rot90(1, (2, 3)), (2, 2, 3, 3)),
    "chunk": (lambda x: torch.cat(x.tensor_split(3, 1)[::-1], 1), (2, 7)),
    "in place": (written_in_place, (2, 5)),
    "constant matrix": (lambda x: torch.einsum("bij,jk->bik", x, gaussian(4, 3, seed=5)), (2, 3, 4)),
    "matrices by example": (lambda x: torch.einsum("bij,bjk->bik", x, gaussian(2, 4, 3, seed=5)), (2, 3, 4)),
    "trace": (lambda x: torch.einsum("bii->b", x), (2, 4, 4)),
    "whole sum": (lambda x: x.sum(), (2, 5)),
    "cross": (lambda x: torch.linalg.cross(x, gaussian(2, 3, seed=4)), (2, 3)),
    "two arguments": (lambda x: torch.lerp(x, x.flip(1), 0.3), (2, 4)),
}


@pytest.mark.proves("4", "path energy: squared weights, gates E[a^2]", oracle="the squared Jacobian")
@pytest.mark.parametrize("name", OPERATORS)
def test_energies_are_those_of_the_squared_jacobian(name):
    function, shape = OPERATORS[name]
    x = gaussian(*shape)
    program = trace(captured(function, x), x, "data", set())
    offset = function(torch.zeros_like(x)).square()
    if name == "two arguments":  # two paths, not one of the summed weight
        one = torch.eye(4).double()
        jacobian = torch.block_diag(*[(0.49 * one + 0.09 * one.flip(1)).sqrt()] * 2)
    elif name == "in place":  # 2 x_1 + x_3 is a sum of two paths with weights 2 and 1
        one = torch.tensor([[0, 1, 0, 0, 0], [2, 0, 0, 0, 0], [0, 2, 0, 1, 0], [0, 0, 2, 0, 0], [0, 0, 0, 2, 0]])
        jacobian = torch.block_diag(one, one).double()
    else:
        jacobian = torch.func.jacrev(function)(x).reshape(-1, x.numel())
    if name == "flipped cumsum":
        first = torch.func.jacrev(lambda x: x.cumsum(1).flip(1))(x).reshape(-1, x.numel())
        second = torch.func.jacrev(lambda x: x.cumsum(2))(x).reshape(-1, x.numel())
        jacobian = (second.square() @ first.square()).sqrt()
    energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
    np.testing.assert_allclose(energy, jacobian.square().sum(1).reshape(energy.shape) + offset, rtol=1e-10, atol=1e-12)
    flow = sweep.law(program, torch.ones_like(energy), [program.input])
    at_input = flow.at_slots[program.input] * 2.0 ** program.exponents[program.output]
    np.testing.assert_allclose(at_input.reshape(-1), jacobian.square().sum(0), rtol=1e-10, atol=1e-12)


def found(function, *shape: int, **limit: int) -> LinearMap:
    outs = function(torch.zeros(shape, dtype=torch.float64)).shape
    return find(function, shape, outs, torch.Generator().manual_seed(0), **limit)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_convolution_with_fixed_weights_is_found(kernel, stride, padding, dilation, channels, seed):
    weight = gaussian(2, channels, kernel, 2, seed=seed)

    def function(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, (stride, 1), (padding, 0), (dilation, 1))

    operator = found(function, 2, channels, 7, 5)
    e, g = gaussian(2, channels, 7, 5).abs(), gaussian(*operator.out_shape)
    jacobian = torch.func.jacrev(function)(e).reshape(g.numel(), e.numel())
    np.testing.assert_allclose(operator.values(e), function(e), atol=1e-12)
    np.testing.assert_allclose(operator.energies(e).reshape(-1), jacobian.square() @ e.reshape(-1), atol=1e-12)
    np.testing.assert_allclose(operator.adjoint(g).reshape(-1), jacobian.square().T @ g.reshape(-1), atol=1e-12)


def test_axes_that_the_operator_treats_alike_need_no_matrix():
    operator = found(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 3, 4, 5, 6)
    assert operator.free == ((0, 0), (1, 1))
    assert operator.matrix.shape == (120, 30)
    moved = found(lambda x: x.transpose(1, 2).cumsum(2), 3, 4, 5)
    assert moved.free == ((0, 0), (2, 1))
    np.testing.assert_allclose(moved.energies(torch.ones(3, 4, 5)), torch.arange(1.0, 5).expand(3, 5, 4))
    named = found(lambda x: x.reshape(2, 12).cumsum(1), 2, 3, 4)  # names the number of examples
    assert named.free == ((0, 0),)


def test_energies_have_every_derivative_in_both_precisions():
    operator = found(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 1, 2, 4, 4)
    e = gaussian(1, 2, 4, 4)
    assert torch.autograd.gradcheck(operator.energies, e.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(operator.energies, e.clone().requires_grad_())
    dense = torch.func.jacrev(operator.energies)(e)
    np.testing.assert_allclose(dense, torch.func.jacfwd(operator.energies)(e), atol=1e-14)
    stacked = torch.func.vmap(operator.energies)(torch.stack([e, 2 * e]))
    np.testing.assert_allclose(stacked[1], 2 * operator.energies(e), atol=1e-14)
    assert operator.energies(e.float()).dtype == torch.float32
    np.testing.assert_allclose(operator.energies(e.float()), operator.energies(e), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        lambda x: x.clamp(-100, 100),
        lambda x: x.softmax(-1),
        lambda x: x + 1,
        lambda x: x * x.flip(-1),
        lambda x: x.sort(-1)[0],
        lambda x: x * x[:1].sign(),
    ],
)
def test_what_is_not_linear_has_no_matrix(function):
    with pytest.raises(OperatorError, match="not linear in what depends on the inputs"):
        found(function, 3, 4)


def test_an_operator_linear_for_each_example_but_not_across_them_is_refused():
    def function(x: Tensor) -> Tensor:  # x for x of rank one
        return x + torch.linalg.det(x[:2, :2])

    with pytest.raises(OperatorError, match="not linear in what depends on the inputs"):
        found(function, 3, 4)


def test_a_large_matrix_without_structure_is_refused():
    matrix = gaussian(8, 8)
    with pytest.raises(OperatorError, match=r"no comb of impulses tells .* more than 6 rows and columns"):
        found(lambda x: x @ matrix, 2, 8, limit=6)


def traced(function, x):
    return trace(captured(function, x), x, "data", set())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: torch.special.bessel_j0(x),
            r"aten.special_bessel_j0.default .*: it has none, and the operator is not linear",
        ),
        (lambda x: torch.fft.rfft(x), "its results are not real numbers"),
    ],
)
def test_operators_that_cannot_be_served(function, message):
    with pytest.raises(UnsupportedOperatorError, match=message):
        traced(function, gaussian(2, 3))


CURVED: dict[str, Callable[[Tensor], Tensor]] = {
    "product of vectors": lambda x: torch.linalg.cross(x[:, :3], x[:, 3:]),
    "inverse": lambda x: torch.linalg.inv(torch.diag_embed(x)),
    "logarithm of a determinant": lambda x: torch.linalg.slogdet(x[:, :4].reshape(-1, 2, 2))[1][:, None],
    "angle": lambda x: torch.atan2(x[:, :3], x[:, 3:]),
    "power": lambda x: torch.pow(x[:, :3].exp(), x[:, 3:]),
    "a product of spectra": lambda x: torch.fft.irfft(torch.fft.rfft(x).square(), n=6),
}


@pytest.mark.parametrize("function", CURVED.values(), ids=CURVED)
def test_curved_operators_without_a_rule_go_by_their_jacobian_on_each_example(function):
    x = gaussian(2, 6)
    assert_is_squared_jacobian(traced(function, x), function, x)


def test_a_result_names_the_operators_that_went_by_their_jacobian():
    model, x = nn.Sequential(nn.Linear(4, 4), Along(torch.special.i0), nn.Linear(4, 2)).double(), gaussian(6, 4)
    found = capalloc.propagate(model, x, solver="markov")
    assert found.attrs["notes"][-1].endswith("squared Jacobian on each example: aten.special_i0.default")
    with pytest.raises(UnsupportedOperatorError, match=r"linear segments end at gates that are known: .*special_i0"):
        capalloc.propagate(model, x, solver="segments")
    with pytest.raises(UnsupportedOperatorError, match=r"aten.special_i0.default.*it has none"):
        capalloc.propagate(model, x, solver="markov", gates="unit")


def test_filters_made_of_the_examples_are_gates():
    def filters(x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, :1, None, None, None] * W.double()

    def function(x: Tensor, w: Tensor) -> Tensor:  # each example's own filters, side by side as groups
        return F.conv2d(x.reshape(1, -1, 4, 4), w.flatten(0, 1), groups=len(x)).reshape(len(x), 2, 2, 2)

    x = gaussian(3, 2, 4, 4)
    program = traced(lambda x: function(x, filters(x)), x)
    assert_is_squared_jacobian(program, lambda z: function(z, filters(x)), x)


W = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))


class Along(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_matrix_is_found_once_for_all_batches(monkeypatch):
    calls = []
    monkeypatch.setattr(generic, "find", lambda *a: calls.append(a) or find(*a))

    def function(x: Tensor) -> Tensor:
        return x.cumsum(1).flip(1).cumsum(1) + x.index_select(1, torch.tensor([1, 0, 2]))

    x = gaussian(2, 3)
    graph = captured(function, x)
    trace(graph, x, "data", set())
    trace(graph, -x, "data", set())
    assert len(calls) == 2


def test_matrices_that_differ_between_batches_are_found_anew():
    class Steered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1).double())

        def forward(self, x: Tensor) -> Tensor:
            order = x.detach().argsort(1)
            return x.gather(1, order).cumsum(1)[:, :1] * self.scale

    x = gaussian(4, 3)
    whole = capalloc.walk(Steered(), x)
    parts = capalloc.walk(Steered(), x, batch_size=2)
    np.testing.assert_allclose(parts.inputs, whole.inputs)
    np.testing.assert_allclose(whole.inputs, np.bincount(x.argmin(1), minlength=3) / 4)


def test_constants_written_among_signals_start_paths():
    program = traced(lambda x: x.masked_fill(MASK, 3.0), gaussian(2, 3))
    energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
    np.testing.assert_allclose(energy, torch.where(MASK, 9.0, 1.0))
    infinite = traced(lambda x: x.masked_fill(MASK, -torch.inf), gaussian(2, 3))
    np.testing.assert_allclose(infinite.values[infinite.output], torch.where(MASK, 0.0, 1.0))


def rank(model: nn.Module, x: Tensor) -> tuple[int, float, bool]:
    exact = capalloc.propagate(model, x, solver="hessian")
    markov = capalloc.propagate(model, x, solver="markov")
    np.testing.assert_allclose(markov.total, markov.by_parameter.sum())
    return exact.attrs["rank"], markov.total, markov.attrs["symmetries_exact"]


class Between(nn.Module):
    """An operator between two convolutions: what it does to the channels' rescaling."""

    def __init__(self, between, read: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(read, 2, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(F.leaky_relu(self.first(x)))).mean((2, 3))


@pytest.mark.proves("4", "symmetries of any graph", oracle="the rank of the Hessian")
@pytest.mark.parametrize(
    ("between", "read"),
    [
        (lambda h: F.interpolate(h, scale_factor=2, mode="bilinear"), 4),
        (lambda h: F.interpolate(h, size=(3, 7), mode="bicubic", antialias=True), 4),
        (lambda h: F.channel_shuffle(h, 2), 4),
        (lambda h: F.pixel_shuffle(h, 2), 1),
        (lambda h: F.pixel_unshuffle(F.pad(h, (1, 1, 1, 1)), 2), 16),
        (lambda h: h.cumsum(1), 4),  # mixes all channels: one rescaling is left
        (lambda h: torch.einsum("bchw,cd->bdhw", h, torch.eye(4, dtype=h.dtype)[:, :3]), 3),
        (lambda h: h.index_select(1, torch.tensor([0, 0, 2])), 3),
        (lambda h: F.pad(h, (1, 1, 1, 1), value=0.5), 4),
        (lambda h: F.fold(F.unfold(h, 3, padding=1), (4, 4), 3, padding=1), 4),
    ],
)
def test_rescalings_through_an_operator_are_counted(between, read):
    exact, total, _ = rank(seeded_module(Between, between, read), gaussian(2, 1, 4, 4))
    assert total == pytest.approx(exact)


class Positions(nn.Module):
    """Learnt positions brought to another size, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        self.position = nn.Parameter(torch.randn(1, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        position = F.interpolate(self.position, size=x.shape[2:], mode="bilinear")
        return self.head(torch.tanh(self.embed(x) + position).mean((2, 3)))


def test_parameters_go_through_operators_too():
    exact, total, _ = rank(seeded_module(Positions), gaussian(2, 1, 3, 3))
    assert total == pytest.approx(exact)


class Repeated(nn.Module):
    """One kernel for four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.head = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.conv1d(x, self.kernel.repeat(4, 1, 1), groups=4)).mean(2))


def test_moved_parameters_stay_weights():
    exact, total, _ = rank(seeded_module(Repeated), gaussian(3, 4, 6))
    assert total == pytest.approx(exact)


def test_interpolation_of_a_large_image_is_quick():
    x = gaussian(1, 64, 56, 56).float()
    graph = captured(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), x)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        trace(graph, x, "data", set())
        seconds.append(time.process_time() - start)
    assert seconds[0] < 10  # about 0.2 and 0.02 on an idle core
    assert seconds[1] < 1


def scattered(x: Tensor, index: Tensor) -> Tensor:
    return x.new_zeros(len(x), 4).scatter(1, index.expand(len(x), -1), x)


def put(x: Tensor, index: Tensor) -> Tensor:
    return x.new_zeros(4, len(x)).index_put((index,), x.T)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.sampled_from([scattered, put]))
def test_of_entries_written_to_one_place_the_last_carries(places, write):
    """Forward mode moves tangents as values move; the reverse mode of autograd credits those overwritten too."""
    x, index = gaussian(2, 6), torch.tensor(places)
    program = trace(captured(lambda x: write(x, index), x), x, "data", set())
    squared = torch.func.jacfwd(lambda x: write(x, index))(x).reshape(-1, 12).square()
    forward, backward = energies(program)
    np.testing.assert_allclose(forward.reshape(-1), squared.sum(1))
    np.testing.assert_allclose(backward.reshape(-1), squared.sum(0))


def test_of_overlapping_windows_that_unpool_to_one_place_one_carries():
    def unpooled(x: Tensor) -> Tensor:
        top, index = F.max_pool1d(x, 3, 1, return_indices=True)
        return F.max_unpool1d(top, index, 3, 1, output_size=(8,))

    x = torch.tensor([[[0.0, 1, 5, 1, 0, 4, 1, 0]]], dtype=torch.float64)  # 5 wins three windows, 4 two or three
    _, backward = energies(trace(captured(unpooled, x), x, "data", set()))
    np.testing.assert_array_equal(backward.reshape(-1), (x > 3).double().reshape(-1))
