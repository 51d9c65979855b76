"""The constraint matrix as an operator: C w and C' r of a batch of examples, no row of C ever formed.

With u_o a combination of outputs, f_o = u_o . f, and S^(1/2) the root of the metric, the row of (example, o, input i)
is (S^(1/2) d/dtheta grad_x f_o)_i, and that of the constant input d/dtheta (f_o - grad_x f_o . x) (docs/theory.md,
section 2). So

    C w   = S^(1/2) grad_x (D_w f_o),   D_w f_o - grad_x (D_w f_o) . x        D_w: along w in the parameters
    C' r  = d/dtheta sum_o (D_v_o f_o + r_o,const f_o),                       v_o = S^(1/2) r_o - x r_o,const.

Index convention: k vectors, o outputs, e examples, s slots. Parameter vectors are (k, params), all tensors flattened
side by side; rows are (k, o, e, s), not yet divided by the root of the number of examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from capalloc._derivatives.autograd import LoopJacobian, differentiable
from capalloc._derivatives.elementary import Elementary
from capalloc._derivatives.layerwise import Replay
from capalloc._derivatives.metric import Directions, InputMetric
from capalloc._derivatives.piecewise import PiecewiseOperator
from capalloc._derivatives.vectors import directions_of, own_values, slots_of, split, times_root
from capalloc._model.problem import Problem

#: their stubs promise three results, which hold with has_aux only
_jvp: Callable[..., Any] = jvp
_vjp: Callable[..., Any] = vjp
#: Relative error up to which two float64 products that should be equal count as equal.
AGREEMENT = 1e-8


class Bound(Protocol):
    """Products with the constraints of one batch."""

    def apply(self, w: Tensor, /) -> Tensor:
        """C w: (k, params) to (k, o, e, s)."""

    def adjoint(self, r: Tensor, /) -> Tensor:
        """C' r: (k, o, e, s) to (k, params)."""


class ConstraintOperator(Protocol):
    """Products with the constraints of a batch; `units` (o, e, outputs) are the combinations of outputs."""

    @property
    def problem(self) -> Problem:
        """The model."""

    @property
    def space(self) -> InputMetric:
        """The slots and their metric."""

    @property
    def name(self) -> str:
        """How it differentiates."""

    def at(self, x: Tensor, units: Tensor, replay: Replay) -> Bound:
        """The constraints of a batch, ready for products."""

    def apply(self, w: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C w: (k, params) to (k, o, e, s)."""

    def adjoint(self, r: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C' r: (k, o, e, s) to (k, params)."""


@dataclass(frozen=True)
class Given:
    """A batch and its operator: nothing is kept between products."""

    operator: ConstraintOperator
    x: Tensor
    units: Tensor
    replay: Replay

    def apply(self, w: Tensor) -> Tensor:
        """C w."""
        return self.operator.apply(w, self.x, self.units, self.replay)

    def adjoint(self, r: Tensor) -> Tensor:
        """C' r."""
        return self.operator.adjoint(r, self.x, self.units, self.replay)


@dataclass(frozen=True)
class ForwardOperator:
    """Forward over reverse for C w, reverse over forward for C' r, batched over vectors and outputs."""

    problem: Problem
    space: InputMetric
    name: str = "forward"

    def at(self, x: Tensor, units: Tensor, replay: Replay) -> Bound:
        """The constraints of a batch."""
        return Given(self, x, units, replay)

    def apply(self, w: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C w."""
        values = own_values(self.problem)

        def slopes(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            out, pull = _vjp(lambda at: self._outputs(params, at), x)
            slope = vmap(lambda u: pull(u)[0], randomness="same")(units)
            return slope, (units * out).sum(2)

        def along(tangent: Tensor) -> Tensor:
            moved = _jvp(slopes, (values,), (split(self.problem, tangent),))[1]
            return slots_of(self.space, moved[0], moved[1], x)

        with replay():
            rows: Tensor = vmap(along, randomness="same")(w)
        return rows

    def adjoint(self, r: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C' r."""
        values = own_values(self.problem)

        def combined(params: dict[str, Tensor], v: Tensor, constant: Tensor) -> Tensor:
            def derivative(u: Tensor, v: Tensor, constant: Tensor) -> Tensor:
                out, moved = _jvp(lambda at: self._outputs(params, at), (x,), (v,))
                total: Tensor = (u * (moved + constant[:, None] * out)).sum()
                return total

            total: Tensor = vmap(derivative, randomness="same")(units, v, constant).sum()
            return total

        def back(v: Tensor, constant: Tensor) -> Tensor:
            gradient = grad(combined)(values, v, constant)
            return torch.cat([g.flatten() for g in gradient.values()])

        with replay():
            vectors: Tensor = vmap(back, randomness="same")(*directions_of(self.space, r, x))
        return vectors

    def _outputs(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        with Elementary():
            returned = functional_call(self.problem.model, params, (x,))
        return self.problem.select(returned).reshape(len(x), -1)


@dataclass(frozen=True)
class ReverseOperator:
    """Reverse mode alone, for models that function transforms or forward mode cannot enter.

    C' r by reverse over reverse; it is linear in r, so that C w is the gradient of <C' r, w> in r.
    """

    problem: Problem
    space: InputMetric
    name: str = "reverse"

    def at(self, x: Tensor, units: Tensor, replay: Replay) -> Bound:
        """The constraints of a batch."""
        return Given(self, x, units, replay)

    def apply(self, w: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C w."""
        r = x.new_zeros(len(units), len(x), self.space.num_slots, requires_grad=True)
        with torch.enable_grad(), differentiable(self.problem):
            vector = self._gradient(r, x, units, replay)
            if not vector.requires_grad:
                return x.new_zeros(len(w), *r.shape)
            rows = [torch.autograd.grad(vector @ one, r, retain_graph=True)[0] for one in w]
        return torch.stack(rows)

    def adjoint(self, r: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C' r."""
        with torch.enable_grad(), differentiable(self.problem):
            return torch.stack([self._gradient(one, x, units, replay).detach() for one in r])

    def _gradient(self, r: Tensor, x: Tensor, units: Tensor, replay: Replay) -> Tensor:
        """C' r of one vector r, (o, e, s) to (params), differentiable in r."""
        params = list(self.problem.params.values())
        at = x.clone().requires_grad_()
        with replay():
            out = self.problem(at)
        v, constant = directions_of(self.space, r, x)
        combined = (units * (constant[..., None] * out)).sum()
        for u, one in zip(units, v, strict=True):
            slope = torch.autograd.grad((u * out).sum(), at, create_graph=True, materialize_grads=True)[0]
            combined = combined + (slope * one).sum()
        if not combined.requires_grad:
            return x.new_zeros(self.problem.num_params)
        parts = torch.autograd.grad(
            combined, params, create_graph=r.requires_grad, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])


#: By name, the fastest first.
OPERATORS: dict[str, Callable[[Problem, InputMetric], ConstraintOperator]] = {
    "piecewise": PiecewiseOperator,
    "forward": ForwardOperator,
    "reverse": ReverseOperator,
}


def recast(operator: ConstraintOperator, dtype: torch.dtype) -> ConstraintOperator:
    """The same operator in another precision."""
    problem, space = operator.problem, operator.space
    model = copy.deepcopy(problem.model).to(dtype)
    own = dict(model.named_parameters())
    probe = problem.probe.to(dtype)
    moved = replace(problem, model=model, params={name: own[name] for name in problem.params}, probe=probe)
    root = None if space.root is None else space.root.to(dtype)
    return OPERATORS[operator.name](moved, replace(space, root=root, like=probe))


def choose_operator(problem: Problem, space: InputMetric, x: Tensor, replay: Replay) -> ConstraintOperator:
    """The first operator that runs on an example of `x` and agrees with plain autograd.

    Raises:
        TypeError: neither does; the message says why.

    """
    reasons = []
    for build in OPERATORS.values():
        operator = build(problem, space)
        failure = disagreement(operator, x[:1], replay)
        if not failure:
            return operator
        reasons.append(f"{operator.name} mode {failure}")
    raise TypeError(
        f"model allows no products with its constraints ({'; '.join(reasons)}); "
        'use solver="dense", which needs fewer derivatives'
    )


def disagreement(operator: ConstraintOperator, x: Tensor, replay: Replay) -> str:
    """Why an operator cannot serve on example `x`, (1, *inputs); empty if it can.

    C' r is compared with plain autograd for a random r, and C w with C' r by the adjoint identity.
    """
    random = torch.Generator().manual_seed(0)
    problem, space = operator.problem, operator.space
    weights, rho, w = (
        torch.randn(size, generator=random, dtype=x.dtype).to(x.device)
        for size in (problem(x).shape[1], space.num_slots, problem.num_params)
    )
    try:
        back = operator.adjoint(rho[None, None, None], x, weights[None, None], replay)[0]
        rows = operator.apply(w[None], x, weights[None, None], replay)[0, 0, 0]
    except Exception as error:  # whatever a model does not stand, another way may
        lines = str(error).strip().splitlines() or [""]
        return f"fails: {type(error).__name__}: {lines[0]}"
    expected = _by_autograd(problem, space, x[0], rho, weights, replay)
    wrong = [
        name
        for name, part in split(problem, back).items()
        if not _near(part, expected[name], expected[name].abs().max() + 1e-6)
    ]
    if wrong:
        return f"gives wrong derivatives for {', '.join(wrong)}"
    one, other = rows @ rho, w @ back
    if not _near(one, other, rows.norm() * rho.norm() + 1e-6):
        return f"gives products that are not adjoint, {float(one):.8g} and {float(other):.8g}"
    return ""


def _by_autograd(
    problem: Problem, space: InputMetric, x: Tensor, rho: Tensor, weights: Tensor, replay: Replay
) -> dict[str, Tensor]:
    """C' r of one example by reverse over reverse, for r = weights (x) rho."""
    n = space.num_inputs
    along = times_root(space, rho[:n]).reshape(1, *space.shape)
    directions = Directions(along, space.intercept, torch.arange(1 + space.intercept))
    rows = LoopJacobian(problem).mixed(x, directions, weights, replay)
    return {name: part[0] + (rho[n] * part[1] if space.intercept else 0) for name, part in rows.items()}


def _near(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    return bool(((a - b).abs() <= AGREEMENT * scale).all())
