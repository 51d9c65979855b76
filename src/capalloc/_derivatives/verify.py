"""Which way to the mixed derivative works for a model: the fastest that runs on a few examples.

Order: per-layer products with forward mode, the same with reverse mode, plain autograd in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._derivatives.autograd import LoopJacobian
from capalloc._derivatives.layerwise import Push, Replay, StructuredJacobian, push_forward, push_reverse
from capalloc._derivatives.metric import Directions
from capalloc._derivatives.tape import tap_model
from capalloc._model.problem import Problem

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


def choose_jacobian(problem: Problem, x: Tensor, replay: Replay) -> Choice:
    """Try each way on a few examples `x`, fastest first; a way must run and agree with plain autograd.

    Parameters that come out wrong, or all of them if the way does not run, are tapped at themselves in a second
    attempt: they may have uses that no torch call shows, as inside a custom autograd function.
    """
    loop = LoopJacobian(problem)
    reasons: list[str] = []
    for name, push in WAYS:
        trial = try_structured(loop, push, (), x, replay)
        if trial.wrong and trial.wrong != set(trial.opaque):
            trial = try_structured(loop, push, trial.wrong, x, replay)
        if trial.jacobian is not None and not trial.wrong:
            return Choice(trial.jacobian, name, tuple(reasons), trial.jacobian.tapped.elements)
        reasons.append(f"{name} mode {trial.failure}")
    return Choice(loop, "loop", tuple(reasons))


@dataclass(frozen=True)
class Trial:
    """What came of per-layer products with some parameters opaque."""

    jacobian: StructuredJacobian | None
    opaque: tuple[str, ...]
    wrong: set[str]
    failure: str


def try_structured(loop: LoopJacobian, push: Push, opaque: Collection[str], x: Tensor, replay: Replay) -> Trial:
    """Run per-layer products with `opaque` parameters tapped at themselves, and compare with plain autograd."""
    try:
        with replay():
            jacobian = StructuredJacobian(tap_model(loop.problem, opaque), push)
        wrong = {name for one in x.split(1) for name in disagreeing(jacobian, loop, one, replay)}
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return Trial(None, tuple(opaque), set(loop.problem.params), f"does not run: {reason[0][:200]}")
    failure = f"gives other derivatives than plain autograd for {', '.join(sorted(wrong))}"
    return Trial(jacobian, jacobian.tapped.opaque, wrong, failure)


def disagreeing(jacobian: StructuredJacobian, loop: LoopJacobian, x: Tensor, replay: Replay) -> list[str]:
    """Parameters whose constraints differ from plain autograd's, along a random direction and the radial one.

    Some operators have wrong second derivatives under batched transforms (the weight of a layer norm in torch
    2.13), so this is checked on real examples. One random sum over outputs keeps it cheap.
    """
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device)
    directions = Directions(shared, True, torch.zeros(2, dtype=torch.long))
    rows = jacobian(x, directions, replay)
    weights = torch.randn(next(iter(rows.values())).shape[1], generator=random, dtype=x.dtype).to(x.device)
    expected = loop.mixed(x[0], directions, weights, replay)
    return [name for name, r in rows.items() if not agree(torch.tensordot(weights, r[0], 1), expected[name])]


def agree(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding."""
    return bool(((a - b).abs() <= AGREEMENT * (1e-6 + b.abs().max())).all())


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
