"""The output Jacobian of a batch, parameter by parameter, as sums over positions of outer products.

J_(eo) = d f_o(x_e) / d theta is, at a call that is affine in theta, the product of the sensitivity of output o to the
call's output and of the call's input (docs/theory.md, section 2: the g_o of a row of constraints). One backward pass
an output gives every call's sensitivities; no row of J need be formed where the factors are smaller than it.

Index convention: e examples, o outputs, t positions; a parameter's block of J has columns (left, right).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from capalloc._derivatives.affine import OuterProducts
from capalloc._derivatives.autograd import differentiable
from capalloc._derivatives.tape import Site, TappedModel
from capalloc._linalg.symmetric import blocks_of
from capalloc._model.problem import Problem

#: Bytes of sensitivities that are gathered before they are multiplied by what entered: a core's cache holds them.
SENSITIVITY_BYTES = 2**21


@dataclass(frozen=True)
class Part:
    """J's columns of one parameter: sum over t of left (x) right, or left alone."""

    left: Tensor  # (e, o, t, left)
    right: Tensor | None = None  # (e, t, right)

    @property
    def rows(self) -> Tensor:
        """The columns themselves: (e, o, params)."""
        if self.right is None:
            return self.left[:, :, 0]
        e, o, t, width = self.left.shape
        left = self.left.transpose(2, 3).reshape(e, o * width, t)
        return (left @ self.right).reshape(e, o, -1)


@dataclass(frozen=True)
class TappedParts:
    """Parts from the sensitivities at tapped calls and at opaque parameters."""

    tapped: TappedModel

    def __call__(
        self, x: Tensor, factored: Collection[str] = (), weights: Tensor | None = None
    ) -> Iterator[tuple[slice, dict[str, Part]]]:
        """Parts of the examples `x`, some outputs at a time, those of `factored` as factors and the rest as rows.

        With `weights`, (e, o), of one output: the weighted sum of all.
        """
        values = tuple(_per_example(t, len(x)) for t in self.tapped.values())
        zeros = tuple(_per_example(t, len(x)) for t in self.tapped.zeros())
        with torch.enable_grad():
            out, *entered = vmap(self.run, randomness="different")(x, values, zeros)
            out = out if weights is None else (weights * out).sum(1, keepdim=True)
        inputs = [site_input(s, h.detach()) for s, h in zip(self.tapped.sites, entered, strict=True)]
        entered.clear()
        leaves = (*values, *zeros)
        size = max(1, SENSITIVITY_BYTES // (1 + sum(t.numel() * t.itemsize for t in leaves)))
        for start, stop in blocks_of(out.shape[1], size):
            grads = stacked_gradients(out, leaves, range(start, stop))
            yield slice(start, stop), self.parts(grads, inputs, factored)

    def parts(self, grads: list[Tensor], inputs: list[Tensor], factored: Collection[str]) -> dict[str, Part]:
        """Parts from gradients to opaque parameters and sites, and from what entered the sites."""
        opaque = self.tapped.opaque
        parts = {name: as_rows(g) for name, g in zip(opaque, grads, strict=False)}
        for s, delta, h in zip(self.tapped.sites, grads[len(opaque) :], inputs, strict=True):
            for name, part in site_parts(s, delta, h, factored):
                parts[name] = as_rows(parts[name].rows + part.rows) if name in parts else part
        return parts

    def run(self, x: Tensor, values: tuple[Tensor, ...], zeros: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs, (outputs,), then what entered each site, of one example."""
        out, entered = self.tapped(x, values, zeros)
        return (out, *entered)


def _per_example(t: Tensor, count: int) -> Tensor:
    """A leaf of its own for every example, without memory of its own."""
    return t.expand(count, *t.shape).requires_grad_()


def as_rows(gradients: Tensor) -> Part:
    """Columns of a parameter from its gradients, (e, o, *parameter)."""
    return Part(gradients.flatten(2)[:, :, None])


def stacked_gradients(out: Tensor, leaves: tuple[Tensor, ...], chosen: range) -> list[Tensor]:
    """Gradients of the chosen outputs of each example to the example's own leaves: (e, o, *leaf) each."""
    if not out.requires_grad:
        return [t.new_zeros(t.shape[0], len(chosen), *t.shape[1:]) for t in leaves]
    grads: list[tuple[Tensor, ...]] = []
    for o in chosen:
        unit = torch.zeros_like(out)
        unit[:, o] = 1.0
        last = o + 1 == out.shape[1]
        grads.append(
            torch.autograd.grad(out, leaves, unit, retain_graph=not last, allow_unused=True, materialize_grads=True)
        )
    return [torch.stack(rows, 1) if len(rows) > 1 else rows[0][:, None] for rows in zip(*grads, strict=True)]


def site_input(s: Site, h: Tensor) -> Tensor:
    """What a site's parameter gradients read of what entered it, (e, *in): a factor (e, t, right) if there is one."""
    if isinstance(s.weight_gradient, OuterProducts):
        return s.weight_gradient.right(h) if s.weight is not None else h.new_empty(0)
    return h


def site_parts(s: Site, delta: Tensor, h: Tensor, factored: Collection[str]) -> Iterator[tuple[str, Part]]:
    """Parts of a site's weight and bias from the sensitivities (e, o, *out) and `site_input`."""
    rule, count = s.weight_gradient, delta.shape[:2]
    if s.weight is not None and isinstance(rule, OuterProducts):
        part = Part(rule.left(delta.flatten(0, 1)).unflatten(0, count), h)
        yield s.weight, part if s.weight in factored else as_rows(part.rows)
    elif s.weight is not None:
        yield s.weight, as_rows(vmap(rule)(delta, h[:, None])[:, :, 0])
    if s.bias is not None:
        yield s.bias, as_rows(s.bias_gradient(delta.flatten(0, 1)).unflatten(0, count))


@dataclass(frozen=True)
class PlainParts:
    """Parts by plain autograd, an example and an output at a time: slow, and right for any model."""

    problem: Problem

    def __call__(self, x: Tensor, factored: Collection[str] = ()) -> Iterator[tuple[slice, dict[str, Part]]]:
        """Parts of the examples `x` and all outputs, all as rows."""
        with torch.enable_grad(), differentiable(self.problem):
            rows = [self.example(one[None]) for one in x]
        columns = [torch.stack(part) for part in zip(*rows, strict=True)]
        parts = {name: as_rows(part) for name, part in zip(self.problem.params, columns, strict=True)}
        yield slice(None), parts

    def example(self, x: Tensor) -> list[Tensor]:
        """One example's rows: for every parameter, (o, entries)."""
        params = list(self.problem.params.values())
        out = self.problem(x)[0]
        if not out.requires_grad:
            return [p.new_zeros(len(out), p.numel()) for p in params]
        rows = [
            torch.autograd.grad(f, params, retain_graph=True, allow_unused=True, materialize_grads=True) for f in out
        ]
        return [torch.stack(parts).flatten(1) for parts in zip(*rows, strict=True)]
