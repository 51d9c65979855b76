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
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, vmap

from capalloc._derivatives.autograd import differentiable
from capalloc._derivatives.metric import InputMetric
from capalloc._derivatives.piecewise import piecewise_products
from capalloc._derivatives.rows import Replay, any_jvp, any_vjp
from capalloc._derivatives.tape import Tape, outputs_with
from capalloc._model.problem import Problem


class BatchProducts(Protocol):
    """Products with the constraints of one batch."""

    def apply(self, w: Tensor, /) -> Tensor:
        """C w: (k, params) to (k, o, e, s)."""

    def adjoint(self, r: Tensor, /) -> Tensor:
        """C' r: (k, o, e, s) to (k, params)."""


@dataclass(frozen=True)
class ConstraintOperator:
    """Products with the constraints of any batch, by one of `PRODUCT_WAYS`."""

    problem: Problem
    space: InputMetric
    name: str

    def at(self, x: Tensor, units: Tensor, replay: Replay) -> BatchProducts:
        """Those of a batch; `units` (o, e, outputs) are the combinations of outputs."""
        return PRODUCT_WAYS[self.name](self.problem, self.space, x, units, replay)

    def recast(self, dtype: torch.dtype) -> ConstraintOperator:
        """The same in another precision."""
        problem, space = self.problem, self.space
        model = copy.deepcopy(problem.model).to(dtype)
        own = dict(model.named_parameters())
        probe = problem.probe.to(dtype)
        moved = replace(problem, model=model, params={name: own[name] for name in problem.params}, probe=probe)
        root = None if space.root is None else space.root.to(dtype)
        return ConstraintOperator(moved, replace(space, root=root, like=probe), self.name)


@dataclass(frozen=True)
class ForwardProducts:
    """Forward over reverse for C w, reverse over forward for C' r, batched over vectors and outputs."""

    problem: Problem
    space: InputMetric
    x: Tensor
    units: Tensor
    replay: Replay

    def apply(self, w: Tensor) -> Tensor:
        """C w."""

        def slopes(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            out, pull = any_vjp(lambda at: outputs_with(self.problem, params, at), self.x)
            slope = vmap(lambda u: pull(u)[0], randomness="same")(self.units)
            return slope, (self.units * out).sum(2)

        def along(tangent: Tensor) -> Tensor:
            slope, value = any_jvp(slopes, (own_values(self.problem),), (split(self.problem, tangent),))[1]
            return self.space.rows(slope, value, self.x)

        with self.replay(), Tape():
            rows: Tensor = vmap(along, randomness="same")(w)
        return rows

    def adjoint(self, r: Tensor) -> Tensor:
        """C' r."""

        def combined(params: dict[str, Tensor], v: Tensor, constant: Tensor) -> Tensor:
            def derivative(u: Tensor, v: Tensor, constant: Tensor) -> Tensor:
                out, moved = any_jvp(lambda at: outputs_with(self.problem, params, at), (self.x,), (v,))
                total: Tensor = (u * (moved + constant[:, None] * out)).sum()
                return total

            total: Tensor = vmap(derivative, randomness="same")(self.units, v, constant).sum()
            return total

        def back(v: Tensor, constant: Tensor) -> Tensor:
            gradient = grad(combined)(own_values(self.problem), v, constant)
            return torch.cat([g.flatten() for g in gradient.values()])

        with self.replay(), Tape():
            vectors: Tensor = vmap(back, randomness="same")(*self.space.directions(r, self.x))
        return vectors


@dataclass(frozen=True)
class ReverseProducts:
    """Reverse mode alone, for models that function transforms or forward mode cannot enter.

    C' r by reverse over reverse; it is linear in r, so that C w is the gradient of <C' r, w> in r.
    """

    problem: Problem
    space: InputMetric
    x: Tensor
    units: Tensor
    replay: Replay

    def apply(self, w: Tensor) -> Tensor:
        """C w."""
        r = self.x.new_zeros(len(self.units), len(self.x), self.space.num_slots, requires_grad=True)
        with torch.enable_grad(), differentiable(self.problem):
            vector = self._gradient(r)
            if not vector.requires_grad:
                return r.new_zeros(len(w), *r.shape)
            rows = [torch.autograd.grad(vector @ one, r, retain_graph=True)[0] for one in w]
        return torch.stack(rows)

    def adjoint(self, r: Tensor) -> Tensor:
        """C' r."""
        with torch.enable_grad(), differentiable(self.problem):
            return torch.stack([self._gradient(one).detach() for one in r])

    def _gradient(self, r: Tensor) -> Tensor:
        """C' r of one vector r, (o, e, s) to (params), differentiable in r."""
        params = list(self.problem.params.values())
        at = self.x.clone().requires_grad_()
        with self.replay():
            out = self.problem(at)
        v, constant = self.space.directions(r, self.x)
        combined = (self.units * (constant[..., None] * out)).sum()
        for u, one in zip(self.units, v, strict=True):
            slope = torch.autograd.grad((u * out).sum(), at, create_graph=True, materialize_grads=True)[0]
            combined = combined + (slope * one).sum()
        if not combined.requires_grad:
            return at.new_zeros(self.problem.num_params)
        parts = torch.autograd.grad(
            combined, params, create_graph=r.requires_grad, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])


#: (model, metric, examples, combinations of outputs, replay) -> products, by name, the fastest first
PRODUCT_WAYS: dict[str, Callable[[Problem, InputMetric, Tensor, Tensor, Replay], BatchProducts]] = {
    "piecewise": piecewise_products,
    "forward": ForwardProducts,
    "reverse": ReverseProducts,
}


def own_values(problem: Problem) -> dict[str, Tensor]:
    """The selected parameters' own values."""
    return {name: p.detach() for name, p in problem.params.items()}


def split(problem: Problem, vector: Tensor) -> dict[str, Tensor]:
    """A vector over all parameters, (params), as tensors by name."""
    parts = vector.split([p.numel() for p in problem.params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(problem.params.items(), parts, strict=True)}
