"""The mixed derivative by plain reverse over reverse, one example at a time: slow, and right for any model.

It serves models that function transforms cannot enter: custom `torch.autograd.Function`s, control flow on values,
in-place writes. A row (D_v + alpha) g_o is d/dtheta of (v . grad_x f_o + alpha f_o), with v held fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._derivatives.layerwise import Replay
from capalloc._derivatives.metric import Directions
from capalloc._model.problem import Problem


@dataclass(frozen=True)
class LoopJacobian:
    """Rows of constraints of a batch, by autograd alone."""

    problem: Problem

    def __call__(self, x: Tensor, directions: Directions, replay: Replay) -> dict[str, Tensor]:
        """Constraints of the examples `x` along `directions`: name -> (e, o, d, *parameter)."""
        with torch.enable_grad(), differentiable(self.problem), replay():
            parts = [self.example(one, directions) for one in x]
        return {name: torch.stack([part[k] for part in parts]) for k, name in enumerate(self.problem.params)}

    def mixed(self, x: Tensor, directions: Directions, weights: Tensor, replay: Replay) -> dict[str, Tensor]:
        """Constraints of one example and the weighted sum of its outputs: name -> (d, *parameter)."""
        with torch.enable_grad(), differentiable(self.problem), replay():
            parts = self.example(x, directions, weights[None])
        return {name: part[0] for name, part in zip(self.problem.params, parts, strict=True)}

    def example(self, x: Tensor, directions: Directions, mix: Tensor | None = None) -> list[Tensor]:
        """One example's rows: for every parameter, (o, d, *parameter)."""
        at = directions.at(x).flatten(1)
        x = x.clone().requires_grad_()
        out = self.problem(x[None])[0]
        rows = [self.output(f, x, at, directions.alpha) for f in (out if mix is None else mix @ out)]
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]

    def output(self, f: Tensor, x: Tensor, at: Tensor, alpha: Tensor) -> list[Tensor]:
        """One output's rows: for every parameter, (d, *parameter)."""
        params = list(self.problem.params.values())
        slope = torch.autograd.grad(f, x, create_graph=True, materialize_grads=True)[0]
        combined = at @ slope.flatten() + alpha * f
        if not combined.requires_grad:
            return [p.new_zeros(len(alpha), *p.shape) for p in params]
        columns = [
            torch.autograd.grad(c, params, retain_graph=True, allow_unused=True, materialize_grads=True)
            for c in combined
        ]
        return [torch.stack(parts) for parts in zip(*columns, strict=True)]


@contextmanager
def differentiable(problem: Problem) -> Iterator[None]:
    """Let the private copy's selected parameters require gradients for a while."""
    try:
        for p in problem.params.values():
            p.requires_grad_(True)
        yield
    finally:
        for p in problem.params.values():
            p.requires_grad_(False)
