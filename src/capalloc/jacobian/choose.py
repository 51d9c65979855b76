"""Which way to the mixed derivative works for a model: the fastest that runs on a few examples.

Order: per-layer products with forward mode, the same with reverse mode, plain autograd in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc.jacobian.directions import Directions
from capalloc.jacobian.loop import LoopJacobian
from capalloc.jacobian.structured import Push, Replay, StructuredJacobian, push_forward, push_reverse
from capalloc.jacobian.taps import TappedModel, tap_model
from capalloc.problem import Problem

Jacobian = Callable[[Tensor, Directions, Replay], dict[str, Tensor]]
WAYS: tuple[tuple[str, Push], ...] = (("forward", push_forward), ("reverse", push_reverse))
#: Relative error up to which two float64 gradients of the same function count as equal.
AGREEMENT = 1e-8


@dataclass(frozen=True)
class Choice:
    """A way that runs, its name, and why faster ones do not."""

    jacobian: Jacobian
    name: str
    reasons: tuple[str, ...]
    elements: int = 0  # that one forward pass of an example makes

    def forecast(self, num_outputs: int, num_params: int) -> int:
        """Float64 numbers held at once, per example and direction: rows, and sensitivities on their way."""
        return 4 * (num_outputs * num_params + (num_outputs + 1) * self.elements)


def choose_jacobian(problem: Problem, x: Tensor, directions: Directions, replay: Replay) -> Choice:
    """Try each way on a few examples `x` along a few directions, fastest first."""
    reasons: list[str] = []
    for name, push in WAYS:
        try:
            jacobian = structured(problem, x, push, replay)
            jacobian(x, directions, replay)
        except (RuntimeError, ValueError, TypeError) as error:
            reasons.append(f"{name} mode does not run: {str(error).strip().splitlines()[0][:200]}")
        else:
            return Choice(jacobian, name, tuple(reasons), jacobian.tapped.elements)
    return Choice(LoopJacobian(problem), "loop", tuple(reasons))


def structured(problem: Problem, x: Tensor, push: Push, replay: Replay) -> StructuredJacobian:
    """Tap the model; where taps miss part of a parameter's gradient, tap that parameter at itself."""
    with replay():
        tapped = tap_model(problem)
    missed = {name for one in x for name in incomplete(tapped, one, replay)}
    if missed:
        with replay():
            tapped = tap_model(problem, missed)
    return StructuredJacobian(tapped, push)


def incomplete(tapped: TappedModel, x: Tensor, replay: Replay) -> set[str]:
    """Parameters with uses that no torch call shows, as inside a custom autograd function."""
    whole = TappedModel(tapped.problem, tuple(tapped.problem.params), ())
    with replay():
        still = StructuredJacobian(tapped, push_forward).pull(x)
    with replay():
        expected = dict(zip(whole.opaque, StructuredJacobian(whole, push_forward).pull(x), strict=True))
    nothing = tuple(torch.zeros_like(t)[None] for t in still)
    seen = StructuredJacobian(tapped, push_forward).combine(x.new_ones(1), False, still, nothing)
    return {name for name, g in seen.items() if not agree(g[:, 0], expected[name])}


def agree(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding."""
    return bool((a - b).abs().max() <= AGREEMENT * b.abs().max())


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Keep attention to its mathematical form: fused kernels have no second derivative and no forward mode."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
