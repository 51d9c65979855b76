"""Path energies of captured functions, and how they compare with a squared Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import capalloc
from capalloc._energy import sweep
from capalloc._energy.program import Program
from capalloc._graph.capture import capture
from capalloc._model.problem import Problem


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def captured(function: Callable[[Tensor], Tensor], x: Tensor):
    problem = Problem(Function(function), x, probe=x)
    return capture(Problem(problem.model, x, probe=x[:1]), len(x))


def energies(program: Program) -> tuple[Tensor, Tensor]:
    """Path energy of every output, and of all outputs by the input where paths start."""
    scale = 2.0 ** program.exponents[program.output]
    out = program.values[program.output]
    flow = sweep.law(program, torch.ones_like(out), [program.input])
    return out * scale, flow.at_slots[program.input] * program.values[program.input] * scale


def assert_is_squared_jacobian(program: Program, linear: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Forward and backward energies against the Jacobian at x of a function whose gates are frozen."""
    jacobian = torch.func.jacrev(linear)(x).detach().reshape(-1, x.numel()).square()
    forward, backward = energies(program)
    np.testing.assert_allclose(forward.reshape(-1), jacobian.sum(1), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(backward.reshape(-1), jacobian.sum(0), rtol=1e-10, atol=1e-13)


def counted(allocation: capalloc.Allocation) -> int:
    """Parameters that paths use, less symmetries."""
    attrs = allocation.attrs
    return attrs["num_params"] - attrs["unused_params"] - attrs["unseen_params"] - attrs["symmetries"]
