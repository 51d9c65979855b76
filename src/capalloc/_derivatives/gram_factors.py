"""The output Jacobian of a batch, parameter by parameter, as sums over positions of outer products.

J_(eo) = d f_o(x_e) / d theta is, at a call that is affine in theta, the product of the sensitivity of output o to the
call's output and of the call's input (docs/theory.md, section 2: the g_o of a row of constraints). One backward pass
an output gives every call's sensitivities; no row of J need be formed where the factors are smaller than it.

Index convention: e examples, o outputs, t positions; a parameter's block of J has columns (left, right).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.func import vmap

from capalloc._derivatives.autograd import differentiable, gradients_of
from capalloc._derivatives.tape import TappedCall, TappedModel
from capalloc._linalg.symmetric import blocks_of
from capalloc._model.problem import Problem

#: Bytes of sensitivities that are gathered before they are multiplied by what entered: a core's cache holds them.
SENSITIVITY_BYTES = 2**21

#: Examples whose squares a product adds up one after the other: with more the rounding grows.
ADDED_IN_TURN = 16


@dataclass(frozen=True)
class Part:
    """J's columns of one parameter: sum over t of left (x) right, or left alone."""

    left: Tensor  # (e, o, t, left)
    right: Tensor | None = None  # (e, t, right)

    @property
    def rows(self) -> Tensor:
        """The columns themselves, of a part that is not factored: (e, o, params)."""
        assert self.right is None
        return self.left[:, :, 0]

    def sum_of_squares(self, dtype: torch.dtype) -> Tensor:
        """The squares of the columns of a part of one position, over examples and outputs: (params,)."""
        squares = self.left[:, :, 0].square()  # (e, o, left)
        if self.right is None:
            return squares.sum((0, 1), dtype=dtype)
        of_examples = squares.sum(1, dtype=dtype).split(ADDED_IN_TURN)
        products = map(torch.mm, (a.T for a in of_examples), self.right[:, 0].to(dtype).square().split(ADDED_IN_TURN))
        return reduce(torch.add, products).flatten()


@dataclass(frozen=True)
class TappedParts:
    """Parts from the sensitivities at tapped calls and at opaque parameters."""

    tapped: TappedModel
    sensitivity_bytes: int = SENSITIVITY_BYTES

    def __call__(
        self, x: Tensor, factored: Collection[str] = (), weights: Tensor | None = None
    ) -> Iterator[tuple[slice, dict[str, Part]]]:
        """Parts of the examples `x`, some outputs at a time, those of `factored` as factors and the rest as rows.

        With `weights`, (e, o), of one output: the weighted sum of all.
        """
        values = tuple(_per_example(t, len(x)) for t in self.tapped.values())
        zeros = tuple(_per_example(t, len(x)) for t in self.tapped.zeros())
        with torch.enable_grad():
            out, entered = vmap(self.tapped.run, randomness="different")(x, values, zeros)
            out = out if weights is None else (weights * out).sum(1, keepdim=True)
        calls = self.tapped.calls
        inputs = [
            h.new_empty(0) if call.weight is None else call.rule.right(h.detach())
            for call, h in zip(calls, entered, strict=True)
        ]
        del entered
        leaves = (*values, *zeros)
        size = max(1, self.sensitivity_bytes // (1 + sum(t.numel() * t.itemsize for t in leaves)))
        for start, stop in blocks_of(out.shape[1], size):
            grads = stacked_gradients(out, leaves, range(start, stop))
            yield slice(start, stop), self.parts(grads, inputs, factored)

    def parts(self, grads: list[Tensor], inputs: list[Tensor], factored: Collection[str]) -> dict[str, Part]:
        """Parts from gradients to opaque parameters and calls, and from the factors of what entered the calls."""
        opaque = self.tapped.opaque
        parts = {name: as_rows(g) for name, g in zip(opaque, grads, strict=False)}
        for call, delta, h in zip(self.tapped.calls, grads[len(opaque) :], inputs, strict=True):
            for name, part in call_parts(call, delta, h, factored):
                parts[name] = as_rows(parts[name].rows + part.rows) if name in parts else part
        return parts


@dataclass(frozen=True)
class PlainParts:
    """Parts by plain autograd, an example and an output at a time: slow, and right for any model."""

    problem: Problem

    def __call__(
        self, x: Tensor, factored: Collection[str] = (), weights: Tensor | None = None
    ) -> Iterator[tuple[slice, dict[str, Part]]]:
        """Parts of the examples `x` and all outputs, or their sum with `weights`, (e, o), all as rows."""
        rows = []
        with torch.enable_grad(), differentiable(self.problem):
            for k, one in enumerate(x):
                out = self.problem(one[None])[0]
                rows.append(gradients_of(self.problem, out if weights is None else (weights[k] @ out)[None]))
        columns = [torch.stack(part) for part in zip(*rows, strict=True)]
        yield slice(None), {name: as_rows(part) for name, part in zip(self.problem.params, columns, strict=True)}


def as_rows(gradients: Tensor) -> Part:
    """Columns of a parameter from its gradients, (e, o, *parameter)."""
    return Part(gradients.reshape(*gradients.shape[:2], 1, -1))  # a parameter of no axes is one column


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


def call_parts(call: TappedCall, delta: Tensor, right: Tensor, factored: Collection[str]) -> Iterator[tuple[str, Part]]:
    """Parts of a call's weight and bias from the sensitivities (e, o, *out) and the factor of its input."""
    left = call.rule.left(delta.flatten(0, 1)).unflatten(0, delta.shape[:2])
    if call.weight is not None and call.weight in factored:
        yield call.weight, Part(left[:, :, 0], right[:, 0])
    elif call.weight is not None:
        yield call.weight, as_rows(call.rule.weight_gradient(left, right[:, None])[:, :, 0])
    if call.bias is not None:
        yield call.bias, as_rows(call.rule.bias_gradient(left))


def _per_example(t: Tensor, count: int) -> Tensor:
    """A leaf of its own for every example, without memory of its own."""
    return t.expand(count, *t.shape).requires_grad_()


@dataclass(frozen=True)
class Form:
    """The form in which a parameter's columns are kept: as factors, with their sizes, or as rows."""

    positions: int
    left: int
    right: int

    @property
    def columns(self) -> int:
        """Entries of the parameter."""
        return self.left * self.right


def possible_forms(tapped: TappedModel) -> dict[str, Form]:
    """Parameters whose one use is a sum of outer products, with the sizes of their factors."""
    uses = [name for call in tapped.calls for name in (call.weight, call.bias) if name is not None]
    forms = {}
    for call in tapped.calls:
        if call.weight is not None and uses.count(call.weight) == 1 and call.rule.is_outer:
            left, *right = tapped.problem.params[call.weight].shape
            forms[call.weight] = Form(math.prod(call.shape) // left, left, math.prod(right))
    return forms


@dataclass(frozen=True)
class Columns:
    """J's columns of some examples: factors of the parameters in `forms`, the others side by side in `rows`."""

    rows: Tensor  # (e, o, columns)
    places: Mapping[str, slice]  # of the parameters among the rows' columns
    factored: Mapping[str, Part]

    def fill(self, start: int, outputs: slice, parts: Mapping[str, Part]) -> None:
        """Keep the parts of some outputs of the examples from `start` on."""
        for name, part in parts.items():
            examples = slice(start, start + len(part.left))
            if name in self.places:
                self.rows[examples, outputs, self.places[name]] = part.rows
                continue
            kept = self.factored[name]
            kept.left[examples, outputs] = part.left
            if kept.right is not None and part.right is not None:
                kept.right[examples] = part.right


def empty_columns(problem: Problem, forms: Mapping[str, Form], examples: int, outputs: int) -> Columns:
    """Room for the parts of some examples."""
    like, places, factored, start = problem.probe, {}, {}, 0
    for name, p in problem.params.items():
        form = forms.get(name)
        if form is None:
            places[name] = slice(start, start + p.numel())
            start += p.numel()
        else:
            left = like.new_empty(examples, outputs, form.positions, form.left)
            factored[name] = Part(left, like.new_empty(examples, form.positions, form.right))
    return Columns(like.new_empty(examples, outputs, start), places, factored)
