"""The constraint matrix as an operator: C w and C' r of a batch of examples, no row of C ever formed.

With u_o a combination of outputs, f_o = u_o . f, and S^(1/2) the root of the metric, the row of (example, o, input i)
is (S^(1/2) d/dtheta grad_x f_o)_i, and that of the constant input d/dtheta (f_o - grad_x f_o . x) (docs/theory.md,
section 2). So

    C w   = S^(1/2) grad_x (D_w f_o),   D_w f_o - grad_x (D_w f_o) . x        D_w: along w in the parameters
    C' r  = d/dtheta sum_o (D_v_o f_o + r_o,const f_o),                       v_o = S^(1/2) r_o - x r_o,const.

Index convention: k vectors, o outputs, e examples, s slots. Parameter vectors are (k, params), all tensors flattened
side by side; rows are (k, o, e, s), not yet divided by the root of the number of examples; factors at a call are
(k, o, e, *own).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import grad, vmap

from capalloc._derivatives.autograd import differentiable
from capalloc._derivatives.rows import Replay, any_jvp, any_vjp
from capalloc._derivatives.tape import Tape, TappedCall, names_of, outputs_with
from capalloc._model.complex_params import cast
from capalloc._model.input_metric import InputMetric
from capalloc._model.problem import Problem


@dataclass(frozen=True)
class BatchProducts(ABC):
    """Products with the constraints of one batch; `units` (o, e, outputs) are the combinations of outputs."""

    problem: Problem
    space: InputMetric
    x: Tensor
    units: Tensor
    replay: Replay

    @abstractmethod
    def apply(self, w: Tensor) -> Tensor:
        """C w: (k, params) to (k, o, e, s)."""

    @abstractmethod
    def adjoint(self, r: Tensor) -> Tensor:
        """C' r: (k, o, e, s) to (k, params)."""

    def pieces(self, r: Tensor) -> Iterable[Tensor]:
        """C' r as pieces for all tensors in order, (k, entries) each."""
        return list(self.adjoint(r).split([p.numel() for p in self.problem.params.values()], 1))

    def each(self, r: Tensor) -> Tensor:
        """C' r of every example apart: (k, o, e, s) to (k, e, params)."""
        return torch.cat([*self.each_by_tensor(r)], 2)

    def each_by_tensor(self, r: Tensor) -> Iterable[Tensor]:
        """C' r of every example apart, as pieces for all tensors in order, (k, e, entries)."""
        one_by_one = zip(self.x.split(1), self.units.split(1, 1), r.split(1, 2), strict=True)
        found = torch.stack([replace(self, x=x, units=units).adjoint(part) for x, units, part in one_by_one], 1)
        return list(found.split([p.numel() for p in self.problem.params.values()], 2))


@dataclass(frozen=True)
class ConstraintOperator:
    """Products with the constraints of any batch, by one of `PRODUCT_WAYS`."""

    problem: Problem
    space: InputMetric
    name: str

    def at(self, x: Tensor, units: Tensor, replay: Replay) -> BatchProducts:
        """Those of a batch; `units` (o, e, outputs) are the combinations of outputs."""
        return PRODUCT_WAYS[self.name](self.problem, self.space, x, units, replay)

    def recast(self, dtype: torch.dtype, own: bool = False) -> ConstraintOperator:
        """The same in another precision; a model that is our `own` is in no other from then on."""
        problem, space = self.problem, self.space
        model = cast(problem.model if own else copy.deepcopy(problem.model), dtype)
        named = dict(model.named_parameters())
        probe = problem.probe.to(dtype)
        moved = replace(problem, model=model, params={name: named[name] for name in problem.params}, probe=probe)
        return ConstraintOperator(moved, space.to(probe), self.name)


@dataclass(frozen=True)
class ForwardProducts(BatchProducts):
    """Forward over reverse for C w, reverse over forward for C' r, batched over vectors and outputs."""

    def apply(self, w: Tensor) -> Tensor:
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
        return torch.cat([*self.pieces(r)], 1)

    def pieces(self, r: Tensor) -> Iterable[Tensor]:
        """C' r by parameter: of a large network no vector is made of them."""
        with self.replay(), Tape():
            return self._back(self.x, self.units, *self.space.directions(r, self.x))

    def each_by_tensor(self, r: Tensor) -> Iterable[Tensor]:
        """C' r of every example apart, side by side where the model's calls batch: a recurrence has no more of them."""
        v, constant = self.space.directions(r, self.x)
        sides = self.x[:, None], self.units[:, :, None], v[:, :, :, None], constant[:, :, :, None]
        try:
            with self.replay(), Tape():
                pieces: tuple[Tensor, ...] = vmap(self._back, (0, 1, 2, 2), 1, randomness="same")(*sides)
        except RuntimeError:
            return super().each_by_tensor(r)
        return pieces

    def _back(self, x: Tensor, units: Tensor, v: Tensor, constant: Tensor) -> tuple[Tensor, ...]:
        """C' r of directions and constants (k, o, e, ...), summed over examples: (k, entries) of each parameter."""

        def combined(params: dict[str, Tensor], v: Tensor, constant: Tensor) -> Tensor:
            def derivative(u: Tensor, v: Tensor, constant: Tensor) -> Tensor:
                out, moved = any_jvp(lambda at: outputs_with(self.problem, params, at), (x,), (v,))
                total: Tensor = (u * (moved + constant[:, None] * out)).sum()
                return total

            total: Tensor = vmap(derivative, randomness="same")(units, v, constant).sum()
            return total

        def back(v: Tensor, constant: Tensor) -> tuple[Tensor, ...]:
            gradient = grad(combined)(own_values(self.problem), v, constant)
            return tuple(g.flatten() for g in gradient.values())

        pieces: tuple[Tensor, ...] = vmap(back, randomness="same")(v, constant)
        return pieces


@dataclass(frozen=True)
class ReverseProducts(BatchProducts):
    """Reverse mode alone, for models that function transforms or forward mode cannot enter.

    C' r by reverse over reverse; it is linear in r, so that C w is the gradient of <C' r, w> in r.
    """

    def apply(self, w: Tensor) -> Tensor:
        r = self.x.new_zeros(len(self.units), len(self.x), self.space.num_slots, requires_grad=True)
        with torch.enable_grad(), differentiable(self.problem):
            vector = self._gradient(r)
            if not vector.requires_grad:
                return r.new_zeros(len(w), *r.shape)
            rows = [torch.autograd.grad(vector @ one, r, retain_graph=True)[0] for one in w]
        return torch.stack(rows)

    def adjoint(self, r: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class PiecewiseProducts(BatchProducts):
    """Products call by call, about four convolutions for each layer, its sensitivities at hand.

    Where gates do not move with the input, sensitivities delta_o of the outputs to what leaves a call do not either,
    and with h what enters it a row is delta_o (x) (D_v + alpha) h (docs/theory.md, section 2). So C' r is one sweep of
    input directions forward and a product of two factors at every call, C w its transpose: dW' delta_o at every call,
    and one sweep backward. One run of the model serves any number of vectors: both sweeps go along its graph, the one
    forward as the transpose of the one backward, which runs no line of the model again.
    """

    calls: tuple[TappedCall, ...]  # with their inputs h, which know how they come from x
    deltas: tuple[Tensor, ...]  # sensitivities to every call's output: (o, e, *out)

    def apply(self, w: Tensor) -> Tensor:
        params = self.problem.params
        split = zip(params.items(), w.split([p.numel() for p in params.values()], 1), strict=True)
        parts = {name: part.unflatten(1, p.shape or (1,)) for (name, p), part in split}
        num_outputs = len(self.deltas[0])
        value: Tensor = w.new_zeros(len(w), num_outputs, len(self.x))
        moving, back = [], []
        for call, delta in zip(self.calls, self.deltas, strict=True):
            h = call.input
            if call.weight is not None:
                sent = call.rule.to_input(parts[call.weight], delta)
                value = value + (sent * h.detach()).flatten(3).sum(3)
                if h.requires_grad:
                    moving.append(h)
                    back.append(sent.flatten(0, 1))
            if call.bias is not None:
                value = value + torch.einsum("oec,kc->koe", bias_gradients(call, delta), parts[call.bias].flatten(1))
        (slope,) = batched_gradients(moving, [self.x], back, len(w) * num_outputs, [self.x])
        return self.space.rows(slope.unflatten(0, (len(w), num_outputs)), value, self.x.detach())

    def adjoint(self, r: Tensor) -> Tensor:
        return torch.cat([*self.pieces(r)], 1)

    def pieces(self, r: Tensor) -> Iterable[Tensor]:
        return (piece[:, 0] for piece in self._along(r, [slice(None)]))

    def each_by_tensor(self, r: Tensor) -> Iterable[Tensor]:
        """C' r of every example apart: one sweep for all, then the products of each."""
        return self._along(r, [slice(k, k + 1) for k in range(len(self.x))])

    def _along(self, r: Tensor, groups: list[slice]) -> Iterator[Tensor]:
        """C' r of groups of examples, tensor by tensor: (k, groups, entries)."""
        v, constant = self.space.directions(r, self.x.detach())
        moved = dict(enumerate(self._moved(v)))
        for name, p in self.problem.params.items():
            found = r.new_zeros(len(r), len(groups), p.numel())
            for place, (call, delta) in enumerate(zip(self.calls, self.deltas, strict=True)):
                if call.weight == name:
                    dh = moved.pop(place)  # each is as large as a layer, and used once
                    weights = constant.reshape(*constant.shape, *(1,) * (dh.ndim - 3))
                    along = torch.addcmul(dh, call.input.detach(), weights)
                    for k, part in enumerate(groups):
                        found[:, k] += call.rule.to_weight(along[:, :, part], delta[:, part]).flatten(1)
                if call.bias == name:
                    gradients = bias_gradients(call, delta)
                    for k, part in enumerate(groups):
                        found[:, k] += torch.einsum("oec,koe->kc", gradients[:, part], constant[:, :, part])
            yield found

    def _moved(self, v: Tensor) -> list[Tensor]:
        """Changes of what enters each call along input directions (k, o, e, *inputs): (k, o, e, *in)."""
        cotangents, slope = self._pulled
        found = iter(batched_gradients([slope], cotangents, [v.flatten(0, 1)], math.prod(v.shape[:2]), cotangents))
        still = (call.input.new_zeros(()).expand(*v.shape[:2], *call.input.shape) for call in self.calls)
        return [
            next(found).unflatten(0, v.shape[:2]) if call.input.requires_grad else none
            for call, none in zip(self.calls, still, strict=True)
        ]

    @cached_property
    def _pulled(self) -> tuple[list[Tensor], Tensor]:
        """Cotangents of what enters the calls, zeros, and their image at x, which is linear in them."""
        moving = [call.input for call in self.calls if call.input.requires_grad]
        cotangents = [h.new_zeros(()).expand(h.shape).requires_grad_() for h in moving]
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(moving, self.x, cotangents, create_graph=True, materialize_grads=True)
        return cotangents, slope


def piecewise_products(
    problem: Problem, space: InputMetric, x: Tensor, units: Tensor, replay: Replay
) -> PiecewiseProducts:
    """Products for a model whose gates do not move with the input, all of its parameters in calls with a rule.

    Raises:
        NotImplementedError: a parameter enters another call, or one whose leading axis is not the examples.

    """
    for copied in (False, True):  # layers are large, and few models overwrite what entered them
        at = x.clone().requires_grad_()
        with torch.enable_grad(), replay(), Tape(names_of(problem), marked=True, copied=copied) as tape:
            out = problem.select(problem.model(at)).reshape(len(x), -1)
        if not tape.overwritten:
            break
    for name, function in tape.opaque.items():
        raise NotImplementedError(f"{name} enters {function}, for which there is no rule")
    if any(len(call.input) != len(x) for call in tape.calls):
        raise NotImplementedError("what enters a call has no leading axis of examples")
    like = [x.new_zeros(()).expand(call.shape) for call in tape.calls]
    deltas = batched_gradients([out], tape.outputs, [units], len(units), like)
    return PiecewiseProducts(problem, space, at, units, replay, tuple(tape.calls), tuple(deltas))


def batched_gradients(
    values: Sequence[Tensor],
    at: Sequence[Tensor] | Sequence[GradientEdge],
    cotangents: Sequence[Tensor],
    count: int,
    like: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of `values` at places `like` tensors for `count` cotangents, (count, *own) each; the graph stays."""
    if not any(value.requires_grad for value in values):
        return [t.new_zeros(count, *t.shape) for t in like]

    def along(own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(values, at, own, retain_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(like, found, strict=True))

    if count == 1:  # vmap around few and small calls takes longer than these
        return [g.detach()[None] for g in along(tuple(c[0] for c in cotangents))]
    return [*vmap(along)(tuple(cotangents))]


def bias_gradients(call: TappedCall, delta: Tensor) -> Tensor:
    """Gradients of a bias from sensitivities (o, e, *out), example by example: (o, e, entries)."""
    alone = delta.flatten(0, 1)[:, None]
    return call.rule.bias_gradient(call.rule.left(alone)).reshape(*delta.shape[:2], -1)


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
