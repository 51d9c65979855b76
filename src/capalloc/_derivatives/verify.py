"""The first way to a model's derivatives that runs, and agrees with plain autograd on a few examples.

Rows of constraints: per-call products or gradients' derivatives in forward mode, the same in reverse mode, plain
autograd in a loop. Products with constraints: piecewise, forward, reverse. Parts of the output Jacobian: tapped, plain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

from capalloc._derivatives.autograd import LoopRows, differentiable
from capalloc._derivatives.gram_factors import PlainParts, TappedParts
from capalloc._derivatives.products import PRODUCT_WAYS, ConstraintOperator, own_values, split
from capalloc._derivatives.rounding import beyond_rounding, nudged
from capalloc._derivatives.rows import (
    FactoredRows,
    GradientRows,
    Push,
    Replay,
    RowMaker,
    any_jvp,
    push_forward,
    push_reverse,
)
from capalloc._derivatives.tape import Tape, outputs_with, tap_model
from capalloc._derivatives.trust import check_derivatives
from capalloc._model.agree import agree
from capalloc._model.checks import run
from capalloc._model.input_metric import Directions, InputMetric
from capalloc._model.noticing import Noticing
from capalloc._model.problem import Problem, seeded
from capalloc._runtime.memory import give_back

P = ParamSpec("P")
#: Numbers that differ by less than rounding of this size are equal: gradients that should be zero may have rounding.
LEAST_SCALE = 1e-6
#: The share of the largest tensor's constraints that a smaller one counts as in a trial: rounding is far below it.
TENSOR_FLOOR = 1e-3
#: Size of a tensor's constraints, relative to the largest, from which on float32 tells mistakes from rounding, and up
#: to which they are rounding; and the least size of the largest.
CLEAR_FROM, ROUNDED, LEAST_LARGEST = 1e-5, 1e-7, 1e-2
#: Names of torch's calls that decompose matrices, beside those that begin with linalg_; and of those that do not.
DECOMPOSING = frozenset({"det", "logdet", "slogdet", "inverse", "pinverse", "orgqr", "ormqr", "lu", "qr", "svd"})
NOT_DECOMPOSING = frozenset({"linalg_vector_norm", "linalg_cross", "linalg_multi_dot", "linalg_vecdot"})
#: Changes in the last digits, any of which may show that two ways differ by rounding alone.
NUDGES = 4
PUSHES: tuple[tuple[str, Push], ...] = (("forward", push_forward), ("reverse", push_reverse))


@dataclass(frozen=True)
class Choice:
    """A way to rows that serves, its name, and why faster ones do not."""

    jacobian: RowMaker
    name: str
    reasons: tuple[str, ...]
    elements: int = 0  # that one forward pass of an example makes

    def forecast(self, num_outputs: int, num_params: int) -> int:
        """Float64 numbers held at once, per example and direction: rows, and sensitivities on their way."""
        return 4 * (num_outputs * num_params + (num_outputs + 1) * self.elements)


def choose_jacobian(problem: Problem, x: Tensor, replay: Replay) -> Choice:
    """Try each way on a few examples `x`, fastest first: on one if the model draws random numbers.

    Together examples get other draws than one by one.
    """
    check_derivatives(problem, x[:1], replay)
    loop = LoopRows(problem)
    reasons: list[str] = []
    for name, push in PUSHES:
        rows = GradientRows(problem, push)
        failure = row_errors(rows, loop, x, replay)
        if failure:
            reasons.append(f"{name} mode {failure}")
            continue
        with replay():
            tapped = tap_model(problem)
        # Where gates move with the examples of the trial they will with most, and two factors are found in vain.
        alone = FactoredRows(tapped, push, _no_rows)
        serves = not tapped.opaque and not row_errors(alone, loop, x, replay)
        chosen = FactoredRows(tapped, push, rows) if serves else rows
        return Choice(chosen, name, tuple(reasons), tapped.elements)
    return Choice(loop, "loop", tuple(reasons))


def _no_rows(x: Tensor, directions: Directions, replay: Replay) -> dict[str, Tensor]:
    """No rows: what is left to another way in a trial."""
    return {}


def choose_operator(
    problem: Problem,
    space: InputMetric,
    x: Tensor,
    replay: Replay,
    dtype: torch.dtype | None = None,
    own: bool = False,
) -> ConstraintOperator:
    """The first operator that serves on an example of `x`, in the precision of products, `dtype` or that of `x`.

    Ways are tried in that precision first: float32 takes a third of the time of float64. What forward mode does not
    make clear there is decided in the precision of `x`. A model that is our `own` goes to the precision of products if
    that loses nothing: a large one has no room beside another.

    Raises:
        TypeError: none does; the message says why.
        ValueError: autograd's derivatives are not those of the outputs.

    """
    dtype = dtype or x.dtype
    if dtype != x.dtype:
        held = [t for t in problem.model.state_dict().values() if t.is_floating_point() or t.is_complex()]
        own = own and not any(t.is_complex() or not torch.equal(t, t.to(dtype).to(t.dtype)) for t in held)
        recast = ConstraintOperator(problem, space, "").recast(dtype, own)
        for name in PRODUCT_WAYS:
            operator = replace(recast, name=name)
            if is_clear(Trial(operator, x[:1].to(dtype), replay)):
                wide = operator.recast(x.dtype).problem if own else problem
                check_derivatives(wide, x[:1], replay, modes=False)
                return operator
        if own:
            recast.recast(x.dtype, own)
    reasons = []
    for name in PRODUCT_WAYS:
        operator = ConstraintOperator(problem, space, name)
        trial = Trial(operator, x[:1], replay)
        failure = disagreement(trial)
        if not failure:
            check_derivatives(problem, x[:1], replay, modes=not trial.is_as_forward)
            return operator.recast(dtype, own) if dtype != x.dtype else operator
        reasons.append(f"{name} mode {failure}")
    raise TypeError(
        f"model allows no products with its constraints ({'; '.join(reasons)}); "
        'use solver="dense", which needs fewer derivatives'
    )


def choose_parts(problem: Problem, x: Tensor) -> TappedParts | PlainParts:
    """Sensitivities at tapped calls if they give the gradients of plain autograd on the examples `x`, else that.

    Parameters that come out wrong may have uses that no torch call shows: they are tapped at themselves. Models that
    `vmap` cannot enter may take another path through their calls for every example, and are not tapped at all.
    """
    weights, expected = plain_gradients(problem, x)
    opaque: set[str] = set()
    for _ in range(2):
        try:
            source = TappedParts(tap_model(problem, opaque))
            with seeded(0, x.device):
                ((_, parts),) = source(x, weights=weights)
        except Exception:  # transforms run the model's own code, which may raise anything
            break
        opaque = wrong_names({name: part.rows.sum((0, 1)) for name, part in parts.items()}, expected)
        if not opaque:
            return source
    return PlainParts(problem)


def explained(trial: Callable[P, str]) -> Callable[P, str]:
    """A trial that says how a way fails instead of failing."""

    @wraps(trial)
    def run_trial(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return trial(*args, **kwargs)
        except Exception as error:  # transforms run the model's own code, which may raise anything
            lines = str(error).strip().splitlines() or [""]
            return f"fails: {type(error).__name__}: {lines[0][:200]}"

    return run_trial


@explained
def row_errors(rows: RowMaker, loop: LoopRows, x: Tensor, replay: Replay) -> str:
    """Say why rows cannot serve on examples `x`; empty if they can.

    They are compared with plain autograd's along a random direction and the radial one: some operators have wrong
    second derivatives under batched transforms. One random sum over outputs keeps it cheap.
    """
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(x[:1].shape, generator=random, dtype=x.dtype).to(x.device)
    directions = Directions(shared, True, torch.zeros(2, dtype=torch.long))
    found = rows(x, directions, replay)
    if not found:
        return "leaves the examples to another way"
    weights = torch.randn(next(iter(found.values())).shape[1], generator=random, dtype=x.dtype).to(x.device)
    wrong: set[str] = set()
    for k, one in enumerate(x):
        mixed = {name: torch.tensordot(weights, part[k], 1) for name, part in found.items()}
        expected = loop.mixed(one, directions, weights, replay)
        off = wrong_names(mixed, expected)
        for seed in range(NUDGES if off else 0):
            with nudged(loop.problem, x, seed) as near:
                moved = rows(near, directions, replay)
                other = loop.mixed(near[k], directions, weights, replay)
            by_rows = {name: torch.tensordot(weights, moved[name][k], 1) for name in off}
            off = {n for n in off if beyond_rounding(mixed[n], expected[n], (by_rows[n], other[n]))}
        wrong |= off
    return f"gives wrong derivatives for {', '.join(sorted(wrong))}" if wrong else ""


@dataclass(frozen=True)
class Trial:
    """One random product of an operator with the constraints of example `x`, (1, *inputs), and one with C'."""

    operator: ConstraintOperator
    x: Tensor
    replay: Replay

    @cached_property
    def given(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the outputs, a row of slots, rho, and the outputs so weighted."""
        random = torch.Generator().manual_seed(0)
        with self.replay():
            out = self.operator.problem(self.x)[0]
        sizes = len(out), self.operator.space.num_slots
        weights, rho = (torch.randn(size, generator=random, dtype=out.dtype).to(out.device) for size in sizes)
        return weights, rho, out @ weights

    @cached_property
    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """C' rho, a random w that weighs its tensors alike, and C w."""
        weights, rho, _ = self.given
        problem = self.operator.problem
        at = self.operator.at(self.x, weights[None, None], self.replay)
        back = at.adjoint(rho[None, None, None])[0]
        give_back(len(back))
        norms = {name: part.norm() for name, part in split(problem, back).items()}
        least = TENSOR_FLOOR * max(float(norm) for norm in norms.values()) + LEAST_SCALE
        w = torch.randn(back.shape, generator=torch.Generator().manual_seed(1), dtype=back.dtype).to(back)
        for name, part in split(problem, w).items():
            part /= norms[name] + least
        return back, w, at.apply(w[None])[0, 0, 0]

    @cached_property
    def is_as_forward(self) -> bool:
        """True if w'C' rho is that of forward mode over forward mode, which shares no backward rule with the operator.

        It tells nothing if a model does not enter forward mode, or cuts gradients in a way that this mode sees through.
        Calls are in elementary operations: some fused norms have wrong second derivatives in this mode.
        """
        back, w, _ = self.found
        problem, weights, rho, given = self.operator.problem, *self.given
        v, constant = self.operator.space.directions(rho[None, None, None], self.x)

        def along(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            value, moved = any_jvp(lambda at: outputs_with(problem, params, at)[0] @ weights, (self.x,), (v[0, 0],))
            return value, moved + constant[0, 0, 0] * value

        try:
            with self.replay(), Tape(), Noticing(_decomposes) as decomposing:
                (value, _), (_, expected) = any_jvp(along, (own_values(problem),), (split(problem, w),))
        except Exception:  # transforms run the model's own code, which may raise anything
            return False
        return (
            not decomposing.seen and agree(value, given) and agree(w @ back, expected, (w * back).norm() + LEAST_SCALE)
        )

    @property
    def is_adjoint(self) -> bool:
        """True if (C w)'rho = w'(C' rho)."""
        (back, w, rows), (_, rho, _) = self.found, self.given
        return agree(rows @ rho, w @ back, rows.norm() * rho.norm() + LEAST_SCALE)


def _decomposes(function: Any) -> bool:
    """Tell whether a call of torch is linear algebra that decomposes matrices.

    Forward mode over forward mode, and reverse over forward, are wrong there without a word: of `torch.linalg.det`,
    `slogdet` and `householder_product` among others.
    """
    name = getattr(function, "__name__", "")
    decomposes = name.startswith(("linalg_", "cholesky", "lu_")) or name in DECOMPOSING
    return decomposes and name not in NOT_DECOMPOSING


@explained
def disagreement(trial: Trial) -> str:
    """Say why an operator cannot serve on the example of a trial; empty if it can.

    C' r is compared with plain autograd for a random r, and C w with C' r by the adjoint identity. One number of
    forward mode stands for plain autograd where they agree: it takes a fifth of the time.
    """
    back, w, rows = trial.found
    problem, space = trial.operator.problem, trial.operator.space
    weights, rho, _ = trial.given
    if not trial.is_as_forward:
        wrong = wrong_names(split(problem, back), _by_autograd(problem, space, trial.x[0], rho, weights, trial.replay))
        if wrong:
            return f"gives wrong derivatives for {', '.join(sorted(wrong))}"
    if not trial.is_adjoint:
        return f"gives products that are not adjoint, {float(rows @ rho):.8g} and {float(w @ back):.8g}"
    return ""


def is_clear(trial: Trial) -> bool:
    """Return True where an operator serves by forward mode alone, and every tensor's constraints are large enough."""
    try:
        back, _, _ = trial.found
        sizes = torch.stack([part.norm() for part in split(trial.operator.problem, back).values()])
        largest = sizes.max()
        doubtful = (sizes > ROUNDED * largest) & (sizes < CLEAR_FROM * largest)
        return bool(largest > LEAST_LARGEST) and not doubtful.any() and trial.is_as_forward and trial.is_adjoint
    except Exception:  # transforms run the model's own code, which may raise anything
        return False


def wrong_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> set[str]:
    """Names whose tensors differ by more than rounding, whatever their shape.

    A tensor that should be zero, as a bias before a norm that takes it away, has the rounding of the largest one.
    """
    sizes = {name: part.abs().max() for name, part in expected.items()}
    least = LEAST_SCALE * max(1.0, *map(float, sizes.values()))
    return {name for name, p in found.items() if not agree(p.flatten(), expected[name].flatten(), sizes[name] + least)}


def _by_autograd(
    problem: Problem, space: InputMetric, x: Tensor, rho: Tensor, weights: Tensor, replay: Replay
) -> dict[str, Tensor]:
    """C' r of one example by reverse over reverse, for r = weights (x) rho."""
    n = space.num_inputs
    along = space.along(rho[:n]).reshape(1, *space.shape)
    directions = Directions(along, space.intercept, torch.arange(1 + space.intercept), space.center)
    rows = LoopRows(problem).mixed(x, directions, weights, replay)
    return {name: part[0] + (rho[n] * part[1] if space.intercept else 0) for name, part in rows.items()}


def plain_gradients(problem: Problem, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Random weights (examples, outputs), and the gradients of the weighted sum of outputs, by plain autograd."""
    params = list(problem.params.values())
    with torch.enable_grad(), differentiable(problem):
        out = run(problem, x, 0)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        grads = tuple(torch.zeros_like(p) for p in params)
        if out.requires_grad:
            grads = torch.autograd.grad(out, params, weights, allow_unused=True, materialize_grads=True)
    return weights, dict(zip(problem.params, grads, strict=True))
