"""Derivatives by plain autograd, one example at a time: slow, and right for any model.

They serve models that function transforms cannot enter: custom `torch.autograd.Function`s, control flow on values,
in-place writes. A row (D_v + alpha) g_o is d/dtheta of (v . grad_x f_o + alpha f_o), with v held fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._derivatives.rows import Replay
from capalloc._derivatives.tape import Twice
from capalloc._model.custom_functions import learning
from capalloc._model.input_metric import Directions
from capalloc._model.problem import Problem
from capalloc._runtime.memory_limits import ran_out
from capalloc._runtime.surroundings import undisturbed


@dataclass(frozen=True)
class LoopRows:
    """Rows of constraints of a batch, by reverse over reverse.

    Raises ValueError where autograd has no second derivative.
    """

    problem: Problem

    def __call__(self, x: Tensor, directions: Directions, replay: Replay) -> dict[str, Tensor]:
        """Constraints of the examples `x` along `directions`: name -> (e, o, d, *parameter)."""
        with torch.enable_grad(), differentiable(self.problem), replay():
            parts = [self._example(one, directions) for one in x]
        return {name: torch.stack([part[k] for part in parts]) for k, name in enumerate(self.problem.params)}

    def mixed(self, x: Tensor, directions: Directions, weights: Tensor, replay: Replay) -> dict[str, Tensor]:
        """Constraints of one example and the weighted sum of its outputs: name -> (d, *parameter)."""
        with torch.enable_grad(), differentiable(self.problem), replay():
            parts = self._example(x, directions, weights[None])
        return {name: part[0] for name, part in zip(self.problem.params, parts, strict=True)}

    def _example(self, x: Tensor, directions: Directions, mix: Tensor | None = None) -> list[Tensor]:
        """One example's rows: for every parameter, (o, d, *parameter)."""
        at = directions.at(x).flatten(1)
        x = x.clone().requires_grad_()
        with Twice():
            out = self.problem(x[None])[0]
        rows = []
        try:
            for f in out if mix is None else mix @ out:
                slope = torch.autograd.grad(f, x, create_graph=True, materialize_grads=True)[0]
                rows.append(gradients_of(self.problem, at @ slope.flatten() + directions.alpha * f))
        except RuntimeError as error:
            if ran_out(error):
                raise
            raise ValueError(
                f"the model cannot be differentiated twice, which constraints need: {error}; write that operation in "
                "others, or ask propagate(solver='markov'), which differentiates nothing"
            ) from error
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def gradients_of(problem: Problem, values: Tensor) -> list[Tensor]:
    """Gradients of a few numbers, (n,), to every parameter: (n, *parameter) each."""
    params = list(problem.params.values())
    if not values.requires_grad:
        return [p.new_zeros(len(values), *p.shape) for p in params]
    rows = [
        torch.autograd.grad(value, params, retain_graph=True, allow_unused=True, materialize_grads=True)
        for value in values
    ]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


@contextmanager
def differentiable(problem: Problem) -> Iterator[None]:
    """Let the private copy's selected parameters require gradients for a while."""
    with learning(problem.params.values()):
        yield


@contextmanager
def exact_derivatives() -> Iterator[None]:
    """Record no gradients unasked, and run kernels whose derivatives are exact: convolutions on a GPU may round."""
    cudnn = torch.backends.cudnn
    own = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with undisturbed(), torch.no_grad(), cudnn.flags(**own, allow_tf32=False):
        yield
