"""The mixed derivative by one forward sweep of directions and one backward sweep of outputs per layer.

With g_o = d f_o / d theta and D_v the derivative along the input direction v, a row of constraints is
(D_v + alpha) g_o: a unit vector v with alpha = 0 for an input, v = -x with alpha = 1 for the constant input, whose
constraint is d/dtheta (f_o - grad_x f_o . x) (docs/theory.md, section 2). At a tapped call g_o = delta_o (x) h, so
D_v g_o = delta_o (x) D_v h + D_v delta_o (x) h; the last term is zero for piecewise-linear models.

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

from capalloc._derivatives.metric import Directions
from capalloc._derivatives.tape import Site, TappedModel

Tensors = tuple[Tensor, ...]
Sweep = Callable[[Tensor], Tensors]
#: (sweep, point, direction) -> directional derivative of each tensor that the sweep returns
Push = Callable[[Sweep, Tensor, Tensor], Tensors]
#: opens a context that replays the same random draws, once for each run of the model over a batch
Replay = Callable[[], AbstractContextManager[None]]


#: its stub promises three results, which hold with has_aux only
_vjp: Callable[..., Any] = vjp


def push_forward(sweep: Sweep, x: Tensor, v: Tensor) -> Tensors:
    """Directional derivative by forward mode."""
    tangents: Tensors = jvp(sweep, (x,), (v,))[1]
    return tangents


def push_reverse(sweep: Sweep, x: Tensor, v: Tensor) -> Tensors:
    """Directional derivative by reverse over reverse: u -> <u, D sweep> is linear in u."""
    out, pull = _vjp(sweep, x)
    _, pull_again = _vjp(lambda u: pull(u)[0], tuple(torch.zeros_like(t) for t in out))
    tangents: Tensors = pull_again(v)[0]
    return tangents


@dataclass(frozen=True)
class StructuredJacobian:
    """Rows of constraints of a batch, as products per layer where a call has a rule."""

    tapped: TappedModel
    push: Push

    def __call__(self, x: Tensor, directions: Directions, replay: Replay) -> dict[str, Tensor]:
        """Constraints of the examples `x` along `directions`: name -> (e, o, d, *parameter)."""
        with replay():
            still = vmap(self.pull, randomness="different")(x)
        curved = self.is_curved(x, replay)
        sweep = self.pull if curved else self.enter
        along = partial(self.along, sweep, directions)
        with replay():
            moved = vmap(along, randomness="different")(x)
        combine = partial(self.combine, directions.alpha, curved)
        rows: dict[str, Tensor] = vmap(combine)(still, moved)
        return rows

    def pull(self, x: Tensor) -> Tensors:
        """Sensitivities of every output to opaque parameters and sites, (o, ...), then what entered the sites."""
        tapped = self.tapped
        out, back, entered = _vjp(partial(tapped, x), tapped.values(), tapped.zeros(), has_aux=True)
        units = torch.eye(len(out), dtype=out.dtype, device=out.device)
        to_opaque, to_sites = vmap(back)(units)
        return (*to_opaque, *to_sites, *entered)

    def enter(self, x: Tensor) -> Tensors:
        """What entered the sites."""
        return self.tapped(x, self.tapped.values(), self.tapped.zeros())[1]

    def along(self, sweep: Sweep, directions: Directions, x: Tensor) -> Tensors:
        """Derivatives of a sweep along every direction: (d, ...) each."""
        moved: Tensors = vmap(partial(self.push, sweep, x), randomness="same")(directions.at(x))
        return moved

    def is_curved(self, x: Tensor, replay: Replay) -> bool:
        """Whether sensitivities move with the input: one random direction tells, as they move linearly in it."""
        first, last = len(self.tapped.opaque), len(self.tapped.opaque) + len(self.tapped.sites)
        if first:
            return True  # an opaque parameter has no other way to its constraints
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        push = partial(self.push, self.pull)
        with replay():
            moved = vmap(lambda x, v: push(x, v)[first:last], randomness="different")(x, v)
        return any(bool((t != 0).any()) for t in moved)

    def combine(self, alpha: Tensor, curved: bool, still: Tensors, moved: Tensors) -> dict[str, Tensor]:
        """One example's rows from sensitivities and inputs at x (`still`) and their derivatives (`moved`)."""
        opaque, sites = self.tapped.opaque, self.tapped.sites
        rows: dict[str, Tensor] = {}
        count = len(opaque)
        for name, g, dg in zip(opaque, still, moved, strict=False):
            rows[name] = dg.transpose(0, 1) + outer(g, alpha)
        deltas, entered = still[count : count + len(sites)], still[count + len(sites) :]
        moved_deltas = moved[count : count + len(sites)] if curved else (None,) * len(sites)
        moved_entered = moved[-len(sites) :] if sites else ()
        for s, delta, h, d_delta, dh in zip(sites, deltas, entered, moved_deltas, moved_entered, strict=True):
            if s.weight is not None:
                add(rows, s.weight, weight_rows(s, alpha, delta, h, d_delta, dh))
            if s.bias is not None:
                add(rows, s.bias, bias_rows(s, alpha, delta, d_delta))
        return rows


def weight_rows(s: Site, alpha: Tensor, delta: Tensor, h: Tensor, d_delta: Tensor | None, dh: Tensor) -> Tensor:
    """(D_v + alpha) (delta (x) h) for every output and direction: (o, d, *weight)."""
    rows = s.weight_gradient(delta, dh + outer(h[None], alpha)[0])
    if d_delta is not None:
        turned = s.weight_gradient(d_delta.flatten(0, 1), h[None])[:, 0]
        rows = rows + turned.unflatten(0, d_delta.shape[:2]).transpose(0, 1)
    return rows


def bias_rows(s: Site, alpha: Tensor, delta: Tensor, d_delta: Tensor | None) -> Tensor:
    """(D_v + alpha) delta, summed over positions: (o, d, *bias)."""
    rows = outer(s.bias_gradient(delta), alpha)
    if d_delta is not None:
        turned = s.bias_gradient(d_delta.flatten(0, 1))
        rows = rows + turned.unflatten(0, d_delta.shape[:2]).transpose(0, 1)
    return rows


def outer(t: Tensor, alpha: Tensor) -> Tensor:
    """(o, ...) and (d,) to (o, d, ...)."""
    return t[:, None] * alpha.reshape(-1, *(1,) * (t.ndim - 1))


def add(rows: dict[str, Tensor], name: str, term: Tensor) -> None:
    """Uses of one parameter sum."""
    rows[name] = rows[name] + term if name in rows else term
