"""Operators without a rule: their matrix against autograd's Jacobian."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import capalloc
from capalloc.energy import operators, sweep
from capalloc.energy.capture import capture
from capalloc.energy.operators import find
from capalloc.energy.rules import RULES, UnsupportedOperatorError
from capalloc.energy.trace import trace
from capalloc.problem import Problem
from test_rules import Function, captured
from zoo import gaussian, seeded_module

aten = torch.ops.aten
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


@pytest.mark.parametrize("name", OPERATORS)
def test_energies_are_those_of_the_squared_jacobian(name):
    function, shape = OPERATORS[name]
    x = gaussian(*shape)
    program = trace(captured(function, x), x, "data", set())
    offset = function(torch.zeros_like(x)).square()
    if name == "two arguments":  # two paths, not one of the summed weight
        jacobian = torch.stack([0.7 * torch.eye(4), 0.3 * torch.eye(4).flip(1)]).square().sum(0).sqrt()
        jacobian = torch.block_diag(jacobian, jacobian).double()
    elif name == "in place":
        jacobian = torch.tensor([[0, 1, 0, 0, 0], [2, 0, 0, 0, 0], [0, 5**0.5, 0, 0, 0], [0, 0, 2, 0, 0], [0, 0, 0, 2, 0]])
        jacobian[2] = torch.tensor([0, 2, 0, 1, 0])
        jacobian = torch.block_diag(jacobian, jacobian).double()
    else:
        jacobian = torch.func.jacrev(function)(x).reshape(-1, x.numel())
    if name == "flipped cumsum":
        first = torch.func.jacrev(lambda x: x.cumsum(1).flip(1))(x).reshape(-1, x.numel())
        second = torch.func.jacrev(lambda x: x.cumsum(2))(x).reshape(-1, x.numel())
        jacobian = (second.square() @ first.square()).sqrt()
    energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
    np.testing.assert_allclose(energy, jacobian.square().sum(1).reshape(energy.shape) + offset, rtol=1e-10, atol=1e-12)
    flow = sweep.law(program, torch.ones_like(energy))
    at_input = flow.at_slots[program.input] * 2.0 ** program.exponents[program.output]
    np.testing.assert_allclose(at_input.reshape(-1), jacobian.square().sum(0), rtol=1e-10, atol=1e-12)
