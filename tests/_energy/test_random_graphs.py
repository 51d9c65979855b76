"""Small graphs of all registered operators, drawn at random: the Markov rule beside two independent counts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._derivatives import exact_derivatives
from capalloc._derivatives.autograd import LoopRows
from capalloc._model.input_metric import input_metric
from capalloc._model.problem import prepare
from operator_cases import CASES, CUBE, aten, attend
from zoo import gaussian, seeded_module

Function = Callable[[Tensor], Tensor]


def heads_of(x: Tensor) -> Tensor:
    keys = x[:, :24].reshape(-1, 2, 4, 3)
    return attend(x.reshape(-1, 4, 4, 3), keys, keys)


#: Cases that fix the number of examples, for any; and one whose numbers leave the range of float64, within it.
ANY_NUMBER: dict[object, Function] = {
    aten.view.default: lambda x: x.view(len(x), 12),
    aten.reshape.default: lambda x: x.mT.reshape(len(x), 12),
    aten.expand.default: lambda x: x.expand(len(x), 3, 4),
    aten.bmm.default: lambda x: torch.bmm(x, CUBE[:1].expand(len(x), 4, 5)),
    aten.baddbmm.default: lambda x: torch.baddbmm(gaussian(5), x, CUBE[:1].expand(len(x), 4, 5), beta=2, alpha=3),
    aten.scaled_dot_product_attention.default: heads_of,
    aten.acosh.default: lambda x: torch.acosh(x.exp() + 1),
    aten.numpy_T.default: lambda x: (x.T * 2).T,
    aten.gather.default: lambda x: x.gather(1, torch.tensor([0, 2]).expand(len(x), 2)),
    aten.squeeze.default: lambda x: x.mean(0, keepdim=True).squeeze() + x[:, 0],
    aten.scatter_reduce.two: lambda x: x.new_zeros(len(x), 3).scatter_reduce(
        1, torch.tensor([0, 1, 0, 2, 1]).expand(len(x), 5), x, "amax"
    ),
}
#: Operators that no network of single examples has, or whose derivative autograd lacks.
LEFT_OUT = {
    aten.squeeze.default,  # of one example it takes the axis of examples
    aten._unsafe_view.default,  # its case joins the examples
    aten.hardsigmoid.default,  # autograd lacks its second derivative
    aten.floor_divide.default,  # and these its first
    aten.floor_divide.Scalar,
}
DRAWN = sorted((op for op in CASES if op not in LEFT_OUT), key=str)


class Block(nn.Module):
    """h + C f(E (W h + b)): an operator f between fixed maps, with a free layer before them."""

    def __init__(self, op: object, width: int) -> None:
        super().__init__()
        case, (_, *shape) = CASES[op]
        self.function, self.shape = ANY_NUMBER.get(op, case), shape
        self.positive = any(part in str(op) for part in ("log", "sqrt"))
        self.free = nn.Linear(width, width)
        self.register_buffer("into", torch.randn(math.prod(shape), width) / width**0.5)
        sample = self.function(torch.rand(1, *shape, dtype=torch.float64) + 0.05)
        self.register_buffer("back", torch.randn(width, sample.numel()) / sample.numel() ** 0.5)

    def forward(self, h: Tensor) -> Tensor:
        x = F.linear(self.free(h), self.into).reshape(len(h), *self.shape)
        if self.positive:
            x = F.softplus(x) + 0.05
        return h + F.linear(self.function(x).reshape(len(h), -1), self.back)


class Drawn(nn.Module):
    def __init__(self, ops: tuple[object, ...], width: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.blocks = nn.Sequential(*(Block(op, width) for op in ops))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(x)))


def rank_by_autograd(model: nn.Module, x: Tensor) -> int:
    """Directions of parameters that constraints see, by reverse over reverse, example by example, output by output."""
    problem = prepare(model, x, dtype=torch.float64)
    replay = contextlib.nullcontext
    (directions,) = input_metric(None, problem, True).chunks(100)
    with exact_derivatives():
        parts = LoopRows(problem)(x, directions, replay)
    rows = torch.cat([part.flatten(3) if part.ndim > 3 else part[..., None] for part in parts.values()], 3)
    return int(torch.linalg.matrix_rank(rows.flatten(0, 2), rtol=1e-9))


def check(ops: tuple[object, ...], seed: int) -> None:
    model, x = seeded_module(Drawn, ops, seed=seed).eval(), gaussian(4, 2, seed=seed)
    with torch.no_grad():
        assume(bool(torch.isfinite(model(x)).all()))  # arc cosines and their like have a domain
    markov, hessian = (capalloc.propagate(model, x, solver=solver) for solver in ("markov", "hessian"))
    attrs = markov.attrs
    assert float(markov.capacity.min()) >= 0
    assert float(markov.capacity.sum()) + markov.bias == pytest.approx(markov.total)
    if attrs["symmetries_exact"]:
        assert markov.total == pytest.approx(hessian.total)
    else:
        assert markov.total >= hessian.total - 1e-6
    seen = attrs["num_params"] - attrs["unused_params"]
    assert rank_by_autograd(model, x) <= seen
    assert np.isfinite(hessian.total)


@pytest.mark.proves(
    "4", "the Markov rule has the total of the Hessian identity, for any graph", oracle="the Hessian's rank"
)
@settings(max_examples=5, deadline=None)
@given(ops=st.tuples(*[st.sampled_from(DRAWN)] * 3), seed=st.integers(0, 100))
def test_random_graphs_obey_the_hessian_identity(ops: tuple[object, ...], seed: int) -> None:
    check(ops, seed)
