"""Products with the constraints of piecewise-linear networks, call by call: about four convolutions for each layer.

Where gates do not move with the input, sensitivities delta_o of the outputs to what leaves a call do not either, and
with h what enters it a row is delta_o (x) (D_v + alpha) h (docs/theory.md, section 2). So C' r is one sweep of
input directions forward and a product of two factors at every call, C w its transpose: dW' delta_o at every call,
and one sweep backward. The sensitivities are made once for a batch and serve any number of vectors.

Index convention: k vectors, o outputs, e examples. Rows are (k, o, e, s), parameter vectors (k, params); factors at a
call are (k, o, e, *own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from capalloc._derivatives.metric import InputMetric
from capalloc._derivatives.rows import Replay, add_use, any_jvp, any_vjp
from capalloc._derivatives.tape import Tape, TappedCall, names_of
from capalloc._model.problem import Problem


@dataclass(frozen=True)
class PiecewiseProducts:
    """Products with the constraints of one batch, its sensitivities at hand."""

    problem: Problem
    space: InputMetric
    x: Tensor
    replay: Replay
    calls: tuple[TappedCall, ...]  # with their inputs h
    deltas: tuple[Tensor, ...]  # sensitivities to every call's output: (o, e, *out)
    pull: Callable[..., tuple[Tensor, ...]]  # cotangents of every h -> of x

    def apply(self, w: Tensor) -> Tensor:
        """C w: (k, params) to (k, o, e, s)."""
        params = self.problem.params
        split = zip(params.items(), w.split([p.numel() for p in params.values()], 1), strict=True)
        parts = {name: part.unflatten(1, p.shape or (1,)) for (name, p), part in split}
        num_outputs = len(self.deltas[0])
        value: Tensor = w.new_zeros(len(w), num_outputs, len(self.x))
        back = []
        for call, delta in zip(self.calls, self.deltas, strict=True):
            if call.weight is None:
                back.append(call.input.new_zeros(()).expand(len(w), num_outputs, *call.input.shape))
            else:
                back.append(call.rule.to_input(parts[call.weight], delta))
                value = value + (back[-1] * call.input).flatten(3).sum(3)
            if call.bias is not None:
                value = value + torch.einsum("oec,kc->koe", bias_gradients(call, delta), parts[call.bias].flatten(1))
        slope = vmap(vmap(lambda c: self.pull(c)[0]))(tuple(back))
        return self.space.rows(slope, value, self.x)

    def adjoint(self, r: Tensor) -> Tensor:
        """C' r: (k, o, e, s) to (k, params)."""
        v, constant = self.space.directions(r, self.x)
        with self.replay():
            moved = vmap(vmap(lambda v: any_jvp(partial(enter, self.problem), (self.x,), (v,))[1]))(v)
        total: dict[str, Tensor] = {}
        for call, delta, dh in zip(self.calls, self.deltas, moved, strict=True):
            if call.weight is not None:
                weights = constant.reshape(*constant.shape, *(1,) * (dh.ndim - 3))
                along = torch.addcmul(dh, call.input, weights)
                add_use(total, call.weight, call.rule.to_weight(along, delta))
            if call.bias is not None:
                add_use(total, call.bias, torch.einsum("oec,koe->kc", bias_gradients(call, delta), constant))
        params = self.problem.params
        parts = [total.get(name, r.new_zeros(len(r), p.numel())).flatten(1) for name, p in params.items()]
        return torch.cat(parts, 1)


def piecewise_products(
    problem: Problem, space: InputMetric, x: Tensor, units: Tensor, replay: Replay
) -> PiecewiseProducts:
    """Products for a model whose gates do not move with the input, all of its parameters in calls with a rule.

    Raises:
        NotImplementedError: a parameter enters another call, or one whose leading axis is not the examples.

    """
    with replay():
        tape = recorded(problem, x)[1]
    for name, function in tape.opaque.items():
        raise NotImplementedError(f"{name} enters {function}, for which there is no rule")
    if any(len(call.input) != len(x) for call in tape.calls):
        raise NotImplementedError("what enters a call has no leading axis of examples")
    with replay():
        back = any_vjp(lambda *z: recorded(problem, x, z)[0], *(x.new_zeros(call.shape) for call in tape.calls))[1]
    with replay():
        pull = any_vjp(partial(enter, problem), x)[1]
    return PiecewiseProducts(problem, space, x, replay, tuple(tape.calls), vmap(back)(units), pull)


def recorded(problem: Problem, x: Tensor, zeros: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tape]:
    """Outputs (e, outputs) and the calls of a run."""
    with Tape(names_of(problem), zeros) as tape:
        returned = problem.model(x)
    return problem.select(returned).reshape(len(x), -1), tape


def enter(problem: Problem, x: Tensor) -> tuple[Tensor, ...]:
    """What enters every call."""
    return tuple(call.input for call in recorded(problem, x)[1].calls)


def bias_gradients(call: TappedCall, delta: Tensor) -> Tensor:
    """Gradients of a bias from sensitivities (o, e, *out), example by example: (o, e, entries)."""
    alone = delta.flatten(0, 1)[:, None]
    return call.rule.bias_gradient(call.rule.left(alone)).reshape(*delta.shape[:2], -1)
