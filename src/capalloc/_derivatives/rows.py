"""Rows of constraints by one forward sweep of directions and one backward sweep of outputs.

With g_o = d f_o / d theta and D_v the derivative along the input direction v, a row of constraints is
(D_v + alpha) g_o: a unit vector v with alpha = 0 for an input, v = -x with alpha = 1 for the constant input, whose
constraint is d/dtheta (f_o - grad_x f_o . x) (docs/theory.md, section 2). At a tapped call g_o = delta_o (x) h, so
D_v g_o = delta_o (x) D_v h + D_v delta_o (x) h. The last term is zero where gates do not move with the input: there the
product of two factors at each call takes a third to a seventh of the time of differentiating the gradients themselves,
which is as fast elsewhere.

Index convention: e examples, o outputs, d directions. Results are (e, o, d, *parameter).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from capalloc._derivatives.tape import Tape, TappedModel, outputs_with
from capalloc._model.input_metric import Directions
from capalloc._model.problem import Problem

TensorTuple = tuple[Tensor, ...]
#: tensors at an input x, all of them times a number s
Sweep = Callable[[Tensor, Tensor], TensorTuple]
#: (sweep, (x, s), (v, alpha)) -> what the sweep returns, and its derivative: (D_v + alpha) of each tensor at s = 1
Push = Callable[[Sweep, TensorTuple, TensorTuple], tuple[TensorTuple, TensorTuple]]
#: opens a context that replays the same random draws, once for each run of the model over a batch
Replay = Callable[[], AbstractContextManager[None]]
#: rows of constraints of the examples along directions: name -> (e, o, d, *parameter)
RowMaker = Callable[[Tensor, Directions, Replay], dict[str, Tensor]]

#: the stubs promise three results, which hold with has_aux only
any_jvp: Callable[..., Any] = jvp
any_vjp: Callable[..., Any] = vjp


def push_forward(sweep: Sweep, at: TensorTuple, along: TensorTuple) -> tuple[TensorTuple, TensorTuple]:
    """Forward mode."""
    out, moved = any_jvp(sweep, at, along)
    return out, moved


def push_reverse(sweep: Sweep, at: TensorTuple, along: TensorTuple) -> tuple[TensorTuple, TensorTuple]:
    """Reverse over reverse: u -> <u, D sweep> is linear in u."""
    out, pull = any_vjp(sweep, *at)
    _, pull_again = any_vjp(pull, tuple(torch.zeros_like(t) for t in out))
    return out, pull_again(along)[0]


def sweep_all(push: Push, sweep: Sweep, directions: Directions, x: Tensor) -> TensorTuple:
    """(D_v + alpha) of what a sweep returns at one example, for every direction: (d, ...) each."""
    moved: TensorTuple = vmap(lambda *along: push(sweep, (x, x.new_ones(())), along)[1], randomness="same")(
        directions.at(x), directions.alpha
    )
    return moved


@dataclass(frozen=True)
class GradientRows:
    """Rows as derivatives of the gradients of every output."""

    problem: Problem
    push: Push

    def __call__(self, x: Tensor, directions: Directions, replay: Replay) -> dict[str, Tensor]:
        """Constraints of the examples `x` along `directions`."""
        with replay(), Tape():
            rows = vmap(partial(sweep_all, self.push, self._gradients, directions), randomness="different")(x)
        return {name: row.transpose(1, 2) for name, row in zip(self.problem.params, rows, strict=True)}

    def _gradients(self, x: Tensor, s: Tensor) -> TensorTuple:
        """Those of every output, (o, *parameter)."""
        names = tuple(self.problem.params)
        values = tuple(p.detach() for p in self.problem.params.values())
        out, back = any_vjp(
            lambda *moving: outputs_with(self.problem, dict(zip(names, moving, strict=True)), x[None])[0], *values
        )
        gradients: TensorTuple = vmap(back)(s * torch.eye(len(out), dtype=out.dtype, device=out.device))
        return gradients


@dataclass(frozen=True)
class FactoredRows:
    """Rows as products of two factors at each call, of models all of whose parameters are tapped at their calls.

    Examples with gates that move with the input are left to another way.
    """

    tapped: TappedModel
    push: Push
    otherwise: RowMaker

    def __call__(self, x: Tensor, directions: Directions, replay: Replay) -> dict[str, Tensor]:
        """Constraints of the examples `x` along `directions`."""
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        one, zero = x.new_ones(()), x.new_zeros(())
        with replay():
            deltas, moved = vmap(
                lambda x, v: self.push(self._sensitivities, (x, one), (v, zero)), randomness="different"
            )(x, v)
        # one random direction tells if sensitivities move, as they move linearly in it
        if any(bool((t != 0).any()) for t in moved):
            return self.otherwise(x, directions, replay)
        with replay():
            entered = vmap(partial(sweep_all, self.push, self._entered, directions), randomness="different")(x)
        rows: dict[str, Tensor] = vmap(partial(self._combine, directions.alpha))(deltas, entered)
        return rows

    def _sensitivities(self, x: Tensor, s: Tensor) -> TensorTuple:
        """Those of every output to the calls, (o, *out)."""
        out, back, _ = any_vjp(partial(self.tapped.run, x, ()), self.tapped.zeros(), has_aux=True)
        (deltas,) = vmap(back)(s * torch.eye(len(out), dtype=out.dtype, device=out.device))
        return tuple(deltas)

    def _entered(self, x: Tensor, s: Tensor) -> TensorTuple:
        """The inputs of the calls."""
        return tuple(s * h for h in self.tapped.run(x, (), self.tapped.zeros())[1])

    def _combine(self, alpha: Tensor, deltas: TensorTuple, entered: TensorTuple) -> dict[str, Tensor]:
        """One example's rows: delta (x) (D_v + alpha) h for weights, alpha delta for biases."""
        rows: dict[str, Tensor] = {}
        for call, delta, h in zip(self.tapped.calls, deltas, entered, strict=True):
            left = call.rule.left(delta)
            if call.weight is not None:
                add_use(rows, call.weight, call.rule.weight_gradient(left, call.rule.right(h)))
            if call.bias is not None:
                add_use(rows, call.bias, call.rule.bias_gradient(left)[:, None] * alpha[:, None])
        return rows


def add_use(total: dict[str, Tensor], name: str, term: Tensor) -> None:
    """Uses of one parameter sum."""
    total[name] = total[name] + term.reshape(total[name].shape) if name in total else term
