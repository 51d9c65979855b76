"""One registered reader per operator: the gates it applied to a batch (docs/theory.md, sections 3 and 4).

A reader is given the operator's arguments by name, as values, and its result; it returns gates with the examples
axis where the result has it, one entry for each gate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._decoupling.activations import slope
from capalloc._energy.rules import RULES, pointwise
from capalloc._graph.calls import invoke

aten = torch.ops.aten
#: Kinds of gates, as the column "kind" of a `Decoupling` names them.
KINDS = ("activation", "pooling", "attention", "softmax", "normalisation", "selection")
#: Pre-activations over which the largest slope of an activation is sought.
RANGE = 5.0


@dataclass(frozen=True)
class Operation:
    """An operator, what it was called with and what it returned."""

    op: Any
    args: dict[str, Any]
    result: Any

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def first(self) -> str:
        """Name of the argument that carries the signal."""
        return next(iter(self.args))

    def of(self, value: Tensor) -> Any:
        """The operator on another signal."""
        return invoke(self.op, self.args | {self.first: value})


@dataclass(frozen=True)
class Reader:
    """How gates of one kind are read, and the largest value they can have: None where there is no bound."""

    kind: str
    gates: Callable[[Operation], Tensor]
    largest: Callable[[Operation], float | None] = field(default=lambda _: 1.0)


READERS: dict[Any, Reader] = {}
Read = Callable[[Operation], Tensor]


def reader(
    kind: str, *ops: Any, largest: Callable[[Operation], float | None] = lambda _: 1.0
) -> Callable[[Read], Read]:
    """Register the decorated function as the reader of these operators."""

    def register(function: Read) -> Read:
        READERS.update({op: Reader(kind, function, largest) for op in ops})
        return function

    return register


def reader_of(op: Any) -> Reader | None:
    """The reader of an operator; whatever propagates by the rule of activations is one."""
    if op not in READERS and RULES.get(op) is pointwise.activation:
        return READERS[aten.relu.default]
    return READERS.get(op)


def steepest(operation: Operation) -> float | None:
    """The largest slope between -5 and 5; None where it has a pole there."""
    z = RANGE * torch.arange(-500, 501, dtype=torch.float64) / 500  # with 0, where poles are
    top = float(slope(operation.of, z).abs().max())
    return top if math.isfinite(top) else None


@reader("activation", aten.relu.default, largest=steepest)
def activation(operation: Operation) -> Tensor:
    """a = phi'(z)."""
    return slope(operation.of, operation[operation.first])


@reader("activation", aten.prelu.default, largest=lambda o: max(1.0, float(o["weight"].abs().max())))
def prelu(operation: Operation) -> Tensor:
    """The slopes are learned, one per channel or one for all."""
    return slope(operation.of, operation["self"])


@reader("pooling", aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pool(operation: Operation) -> Tensor:
    """One gate for each output and each input in its window: 1 for the input that won."""
    x, ndim = operation["self"], len(operation["kernel_size"])
    size, stride, padding, dilation = (
        _full(operation[k], ndim, operation["kernel_size"]) for k in ("kernel_size", "stride", "padding", "dilation")
    )
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[ndim]
    _, winner = pool(x, size, stride, padding, dilation, ceil_mode=operation["ceil_mode"], return_indices=True)
    windows = [
        [[o * s - p + d * t for t in range(k)] for o in range(n)]
        for n, k, s, p, d in zip(winner.shape[-ndim:], size, stride, padding, dilation, strict=True)
    ]
    return _won(winner, windows, tuple(x.shape[-ndim:]))


@reader(
    "pooling",
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)
def adaptive_max_pool(operation: Operation) -> Tensor:
    """Output j pools the inputs from floor(j n / m) to ceil((j + 1) n / m)."""
    winner, ndim = operation.result[1], len(operation["output_size"])
    sizes = tuple(operation["self"].shape[-ndim:])
    windows = [
        [list(range(o * n // m, -(-(o + 1) * n // m))) for o in range(m)]
        for n, m in zip(sizes, winner.shape[-ndim:], strict=True)
    ]
    return _won(winner, windows, sizes)


@reader("pooling", aten.amax.default, aten.max.dim)
def largest_along(operation: Operation) -> Tensor:
    """A maximum over whole axes: 1 for the entry that won."""
    x, dims, result = operation["self"], operation["dim"], operation.result
    dims = [dims] if isinstance(dims, int) else list(dims)
    top = result[0] if isinstance(result, (tuple, list)) else result
    if not operation["keepdim"]:
        for dim in sorted(d % x.ndim for d in dims):
            top = top.unsqueeze(dim)
    won: Tensor = x == top
    return won.to(x.dtype)


@reader("attention", aten.scaled_dot_product_attention.default)
def attention(operation: Operation) -> Tensor:
    """The attention weights, one gate for each (head, query, key)."""
    query, key, mask = operation["query"], operation["key"], operation["attn_mask"]
    if operation["enable_gqa"]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scale = operation["scale"] if operation["scale"] is not None else query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1) * scale
    if operation["is_causal"]:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights: Tensor = scores.softmax(-1)
    return weights


@reader("softmax", aten.softmax.int, aten._softmax.default)
def softmax(operation: Operation) -> Tensor:
    """The weights themselves; `sites` calls it attention where they go on to multiply values."""
    weights: Tensor = operation.result
    return weights


@reader("normalisation", aten.layer_norm.default, largest=lambda _: None)
def layer_norm(operation: Operation) -> Tensor:
    """1 / std of the example's own features."""
    x = operation["input"]
    dims = tuple(range(-len(operation["normalized_shape"]), 0))
    return _per_std(x, x.var(dims, correction=0, keepdim=True), operation["eps"])


@reader("normalisation", aten.rms_norm.default, largest=lambda _: None)
def rms_norm(operation: Operation) -> Tensor:
    """1 / root mean square of the example's own features."""
    x = operation["input"]
    dims = tuple(range(-len(operation["normalized_shape"]), 0))
    eps = operation["eps"] if operation["eps"] is not None else torch.finfo(x.dtype).eps
    return _per_std(x, x.square().mean(dims, keepdim=True), eps)


@reader("normalisation", aten.group_norm.default, largest=lambda _: None)
def group_norm(operation: Operation) -> Tensor:
    """1 / std of the example's own groups of channels."""
    x, groups = operation["input"], operation["num_groups"]
    grouped = x.reshape(len(x), groups, -1)
    var = grouped.var(-1, correction=0, keepdim=True)
    return _per_std(grouped, var, operation["eps"]).reshape(x.shape)


@reader("normalisation", aten.instance_norm.default, largest=lambda _: None)
def instance_norm(operation: Operation) -> Tensor:
    """1 / std of the example's own channels, or of the running statistics where they are kept."""
    x = operation["input"]
    if operation["use_input_stats"]:
        return _per_std(x, x.var(tuple(range(2, x.ndim)), correction=0, keepdim=True), operation["eps"])
    return _per_std(x, _by_channel(operation["running_var"], x), operation["eps"])


@reader("normalisation", aten._native_batch_norm_legit_no_training.default, largest=lambda _: None)
def batch_norm(operation: Operation) -> Tensor:
    """1 / running std: the same for all examples, so it decouples nothing."""
    x = operation["input"]
    return _per_std(x, _by_channel(operation["running_var"], x), operation["eps"])


@reader("selection", aten.where.self)
def selection(operation: Operation) -> Tensor:
    """1 where the first of the two is let through."""
    condition: Tensor = operation["condition"]
    return condition.to(operation.result.dtype).expand(operation.result.shape)


@reader("selection", aten.glu.default)
def gated_linear_unit(operation: Operation) -> Tensor:
    """The sigmoid half multiplies the other one."""
    gates: Tensor = operation["self"].chunk(2, operation["dim"])[1].sigmoid()
    return gates


def _won(winner: Tensor, windows: list[list[list[int]]], sizes: tuple[int, ...]) -> Tensor:
    """Gates (..., outputs x window entries that exist) of a pooling whose windows are given axis by axis."""
    ndim = len(sizes)
    outputs, entries = [], []
    for o, window in enumerate(itertools.product(*windows)):
        for place in itertools.product(*window):
            if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
                outputs.append(o)
                entries.append(sum(p * math.prod(sizes[k + 1 :]) for k, p in enumerate(place)))
    chosen = winner.flatten(-ndim)[..., torch.tensor(outputs, device=winner.device)]
    return (chosen == torch.tensor(entries, device=winner.device)).to(torch.float32)


def _per_std(x: Tensor, var: Tensor, eps: float) -> Tensor:
    return (var + eps).rsqrt().expand(x.shape)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _full(value: int | list[int] | None, ndim: int, kernel: list[int]) -> list[int]:
    if value is None or value == []:
        return list(kernel)
    return [value] * ndim if isinstance(value, int) else list(value) * (ndim // len(value))
