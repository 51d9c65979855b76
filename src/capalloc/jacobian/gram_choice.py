"""Which way to the output Jacobian's parts works for a model, after a look at what it does with a few examples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from capalloc.jacobian.gram_parts import PlainParts, TappedParts
from capalloc.jacobian.loop import differentiable
from capalloc.jacobian.taps import tap_model
from capalloc.problem import Problem, seeded

Source = TappedParts | PlainParts


def check_examples(problem: Problem, x: Tensor) -> tuple[int, bool]:
    """Examples must not see each other, and draws must repeat; returns the number of outputs, and if it draws."""
    first, again, other = (_run(problem, x, seed) for seed in (0, 0, 1))
    if not _agree(first, again):
        raise ValueError(
            "two passes over the same examples with the same seed give different outputs; "
            "let the model draw its random numbers from torch's default generator, and keep no state between calls"
        )
    draws = not _agree(first, other)
    if len(x) > 1 and not draws and not _agree(first[:1], _run(problem, x[:1], 0)):
        raise ValueError(
            "examples interact: the outputs for one example change when another is in the batch; "
            "use a model that treats each example alone (batch statistics: track running ones)"
        )
    return first.shape[1], draws


def _run(problem: Problem, x: Tensor, seed: int) -> Tensor:
    with seeded(seed, x.device):
        return problem(x)


def _agree(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: to the square root of the dtype's, far above it and far below any mistake."""
    if a.shape != b.shape:
        return False
    largest = torch.cat([a.abs().flatten(), b.abs().flatten()]).max()
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * largest)


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
        out = _run(problem, x, 0)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        grads = tuple(torch.zeros_like(p) for p in params)
        if out.requires_grad:
            grads = torch.autograd.grad(out, params, weights, allow_unused=True, materialize_grads=True)
    return weights, dict(zip(problem.params, grads, strict=True))


def _wrong(source: TappedParts, x: Tensor, weights: Tensor, expected: Mapping[str, Tensor]) -> set[str]:
    """Parameters whose part differs from plain autograd's gradient."""
    with seeded(0, x.device):
        ((_, parts),) = source(x, weights=weights)
    return {name for name, part in parts.items() if not _agree(part.rows.sum((0, 1)), expected[name].flatten())}
