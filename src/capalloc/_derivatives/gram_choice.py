"""Which way to the output Jacobian's parts works for a model, after a look at what it does with a few examples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from capalloc._derivatives.autograd import differentiable
from capalloc._derivatives.gram_factors import PlainParts, TappedParts
from capalloc._derivatives.tape import tap_model
from capalloc._model.checks import agree, run
from capalloc._model.problem import Problem, seeded

Source = TappedParts | PlainParts


def choose_parts(problem: Problem, x: Tensor) -> Source:
    """Sensitivities at tapped calls if they give the gradients of plain autograd on the examples `x`, else that.

    Parameters that come out wrong may have uses that no torch call shows: they are tapped at themselves. Models that
    `vmap` cannot enter may take another path through their calls for every example, and are not tapped at all.
    """
    weights, expected = _gradients(problem, x)
    opaque: set[str] = set()
    for _ in range(2):
        try:
            source = TappedParts(tap_model(problem, opaque))
            opaque = _wrong(source, x, weights, expected)
        except (RuntimeError, ValueError, TypeError, IndexError):
            break
        if not opaque:
            return source
    return PlainParts(problem)


def _gradients(problem: Problem, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Random weights (examples, outputs), and the gradients of the weighted sum of outputs, by plain autograd."""
    params = list(problem.params.values())
    with torch.enable_grad(), differentiable(problem):
        out = run(problem, x, 0)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        grads = tuple(torch.zeros_like(p) for p in params)
        if out.requires_grad:
            grads = torch.autograd.grad(out, params, weights, allow_unused=True, materialize_grads=True)
    return weights, dict(zip(problem.params, grads, strict=True))


def _wrong(source: TappedParts, x: Tensor, weights: Tensor, expected: Mapping[str, Tensor]) -> set[str]:
    """Parameters whose part differs from plain autograd's gradient."""
    with seeded(0, x.device):
        ((_, parts),) = source(x, weights=weights)
    return {name for name, part in parts.items() if not agree(part.rows.sum((0, 1)), expected[name].flatten())}
