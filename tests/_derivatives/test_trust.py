"""Derivatives that autograd gets wrong are refused, right ones are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import capalloc
from zoo import gaussian, seeded_module


class Square(torch.autograd.Function):
    """x^2 with a backward that can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


class Once(Square):
    backward = staticmethod(once_differentiable(Square.backward))


class Kept(Square):
    """Keeps an intermediate that no graph leads to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.double = 2 * x
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ctx.double * grads[0]  # type: ignore[no-any-return]


class Through(torch.autograd.Function):
    """Rounds, and lets gradients through: wrong on purpose, and its derivative is a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Net(nn.Module):
    def __init__(self, act: Any, *, cuts: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.act, self.cuts = nn.Linear(4, 5), nn.Linear(5, 2), act, cuts

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.act(h) * h.detach().sigmoid() if self.cuts else self.act(h))


SOLVERS = {"dense": {}, "stochastic": {"ridge": 0.1, "solver": "stochastic"}}


@pytest.mark.parametrize(("function", "solver"), [(Once, "dense"), (Kept, "dense"), (Kept, "stochastic")])
def test_second_derivatives_that_are_missing_are_found_by_differences(function: Any, solver: str):
    with pytest.raises(ValueError, match=f"custom autograd function {function.__name__} are wrong") as raised:
        capalloc.measure(seeded_module(Net, function.apply), gaussian(6, 4), **SOLVERS[solver])
    assert "by differences of the gradient" in str(raised.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_hard_sigmoid_is_measured_as_the_clamp_that_it_is(solver: str):
    x = gaussian(30, 4)
    clamp = lambda h: (h + 3).clamp(0, 6) / 6  # noqa: E731
    found, expected = (
        capalloc.measure(seeded_module(Net, act), x, **SOLVERS[solver]) for act in (nn.Hardsigmoid(), clamp)
    )
    assert found.total == pytest.approx(expected.total)
    torch.testing.assert_close(torch.tensor(found.capacity.values), torch.tensor(expected.capacity.values))


def test_an_operation_without_a_second_derivative_is_named():
    def sums(h: Tensor) -> Tensor:
        return torch.special.zeta(h.exp() + 2, torch.ones_like(h))

    with pytest.raises(ValueError, match=r"cannot be differentiated twice, .*zeta.* is not implemented"):
        capalloc.measure(seeded_module(Net, sums), gaussian(6, 4))


def test_want_of_memory_is_not_taken_for_a_missing_derivative():
    def act(h: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    class Short(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.clone()

        @staticmethod
        def backward(ctx, g):
            return act(g)

    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        capalloc.measure(seeded_module(Net, Short.apply), gaussian(6, 4))


def test_right_custom_functions_are_measured_as_what_they_are():
    x = gaussian(30, 4)
    expected = capalloc.measure(seeded_module(Net, torch.square), x)
    found = capalloc.measure(seeded_module(Net, Square.apply), x)
    assert found.total == pytest.approx(expected.total)
    assert capalloc.measure(seeded_module(Net, Through.apply), x).total > 0
    # Cut on purpose, as differences cannot know.
    assert capalloc.measure(seeded_module(Net, Square.apply, cuts=True), x).total > 0


def test_entries_that_are_overwritten_are_found_by_the_two_modes():
    """By a call of ATen itself, which nothing is run in the place of."""

    def scattered(h: Tensor) -> Tensor:
        index = torch.tensor([0, 1, 2, 0, 1]).expand(len(h), -1)
        return torch.cat([torch.ops.aten.scatter.src(h.new_zeros(len(h), 3), 1, index, h.tanh()), h[:, :2]], 1)

    with pytest.raises(ValueError, match="in forward and in reverse mode disagree"):
        capalloc.measure(seeded_module(Net, scattered), gaussian(6, 4))


def test_entries_that_are_written_once_are_measured():
    def placed(h: Tensor) -> Tensor:
        return torch.zeros_like(h).scatter(1, torch.tensor([3, 1, 4, 0, 2]).expand(len(h), -1), h.tanh())

    x = gaussian(30, 4)
    expected = capalloc.measure(seeded_module(Net, torch.tanh), x).total
    assert capalloc.measure(seeded_module(Net, placed), x).total == pytest.approx(expected)


class Centred(nn.Module):
    """Units less their mean over places: the same at all places, and then nothing moves them, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.relu(self.inner(h - h.mean(1, keepdim=True)))).sum(1)


@pytest.mark.parametrize("seed", range(8))
def test_an_example_that_moves_no_output_tells_of_no_mistake(seed: int) -> None:
    assert capalloc.measure(seeded_module(Centred, seed=seed), gaussian(3, 4, 3, seed=seed)).total > 0


class Forwardless(torch.autograd.Function):
    """ReLU without a forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (ctx.saved_tensors[0] > 0)


class Rectified(nn.Sequential):
    def __init__(self, function: Any) -> None:
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 2))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self.function(self[0](x)))


def test_blocks_do_without_forward_mode() -> None:
    own, plain = (seeded_module(Rectified, f) for f in (Forwardless.apply, torch.relu))
    found, expected = (capalloc.propagate(m, gaussian(30, 3), solver="block") for m in (own, plain))
    torch.testing.assert_close(torch.tensor(found.capacity.values), torch.tensor(expected.capacity.values))


class Products(nn.Module):
    """Products of pairs of units, as a reduction that writes to places or written out."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.first, self.last, self.written = nn.Linear(3, 4), nn.Linear(2, 2), written

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        places = torch.tensor([0, 1, 1, 0]).expand(len(x), -1)
        pairs = torch.stack([h[:, 0] * h[:, 3], h[:, 1] * h[:, 2]], 1)
        return self.last(pairs if self.written else h.new_ones(len(x), 2).scatter_reduce(1, places, h, "prod"))


def test_where_forward_mode_alone_is_wrong_reverse_mode_answers() -> None:
    x = gaussian(12, 3)
    found, expected = (capalloc.measure(seeded_module(Products, written), x) for written in (False, True))
    assert found.total == pytest.approx(expected.total)
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)
