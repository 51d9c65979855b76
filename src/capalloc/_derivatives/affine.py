"""Calls that are affine in their parameters, and how each turns sensitivities into parameter constraints.

Index convention: `a` and `b` count cotangents and inputs (outputs and directions of the theory); a call's
own axes follow, led by its positions. out = weight (.) input + bias, so the parameter gradient is bilinear
in (cotangent of out, input), and its derivative along an input direction is two such products (docs/theory.md,
section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: (cotangents (a, *out), inputs (b, *in)) -> weight gradients (a, b, *weight)
Bilinear = Callable[[Tensor, Tensor], Tensor]
#: cotangents (a, *out) or inputs (b, *in) -> one factor of the weight gradient, (a or b, t, columns), t for positions
Factor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OuterProducts:
    """A weight gradient that is a sum over positions of outer products, (left, right) in the weight's own order."""

    left: Factor  # of cotangents
    right: Factor  # of inputs
    shape: tuple[int, ...]

    def __call__(self, d: Tensor, h: Tensor) -> Tensor:
        """Weight gradients (a, b, *weight)."""
        grad: Tensor = torch.einsum("atl,btr->ablr", self.left(d), self.right(h)).unflatten(3, self.shape[1:])
        return grad


@dataclass(frozen=True)
class Call:
    """One recognised call: what enters it, its parameters, and the gradient of each."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    weight_gradient: Bilinear
    bias_gradient: Callable[[Tensor], Tensor]


Recognise = Callable[..., Call | None]
RULES: dict[Any, Recognise] = {}


def register(*functions: Any) -> Callable[[Recognise], Recognise]:
    """Make the decorated function read the arguments of `functions`; None from it means "not affine"."""

    def add(rule: Recognise) -> Recognise:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return add


def recognise(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """The call as a `Call`, or None if no rule covers it."""
    rule = RULES.get(function)
    if rule is None:
        return None
    try:
        bound = signature(rule).bind(*args, **kwargs)
    except TypeError:  # an overload the rule does not know, such as out=
        return None
    return rule(*bound.args, **bound.kwargs)


@register(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    """out = input weight' + bias, over any leading axes."""
    if weight.ndim != 2:
        return None
    products = OuterProducts(lambda d: _rows(d, d.shape[-1]), lambda h: _rows(h, h.shape[-1]), tuple(weight.shape))
    return Call(input, weight, bias, products, lambda d: _rows(d, d.shape[-1]).sum(1))


@register(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(input: Tensor, other: Tensor) -> Call | None:
    """out = input weight, for a matrix on the right."""
    if other.ndim != 2 or input.ndim < 2:
        return None
    return Call(
        input,
        other,
        None,
        lambda d, h: torch.einsum("apo,bpi->abio", _rows(d, d.shape[-1]), _rows(h, h.shape[-1])),
        lambda d: d,
    )


@register(torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    """Cross-correlation with any stride, padding, dilation and groups."""
    if input.ndim != weight.ndim:
        return None  # an unbatched input
    dims = weight.ndim - 2
    stride, dilation = _per_dim(stride, dims), _per_dim(dilation, dims)
    kernel = tuple(weight.shape[2:])
    pads = _pads(padding, kernel, dilation)

    def weight_gradient(d: Tensor, h: Tensor) -> Tensor:
        d = d.unflatten(2, (groups, -1)).flatten(4)
        h = patches(F.pad(h.flatten(0, 1), pads), kernel, stride, dilation).unflatten(0, h.shape[:2])
        h = h.unflatten(2, (groups, -1)).flatten(4, 3 + dims)
        # e: example, g: group, p: position, k: offset in the kernel
        grad = torch.einsum("aegop,begipk->abgoik", d, h.flatten(5)).flatten(2, 3)
        return grad.reshape(*grad.shape[:4], *kernel)

    def right(h: Tensor) -> Tensor:
        h = patches(F.pad(h.flatten(0, 1), pads), kernel, stride, dilation).unflatten(0, h.shape[:2])
        # channels and offsets in the kernel before positions: rows of an image are copied whole
        h = h.movedim(tuple(range(3, 3 + dims)), tuple(range(-dims, 0)))
        h = h.reshape(*h.shape[:2], -1, math.prod(h.shape[-dims:]))
        return h.movedim(2, 3).flatten(1, 2)

    products: Bilinear = weight_gradient
    if groups == 1:
        products = OuterProducts(lambda d: d.flatten(3).movedim(2, 3).flatten(1, 2), right, tuple(weight.shape))
    return Call(input, weight, bias, products, lambda d: d.flatten(3).sum((1, 3)))


def patches(h: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """What each output position reads: (examples, channels, *positions, *kernel), a view of padded `h`."""
    for dim, (k, s, step) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        h = h.unfold(dim, step * (k - 1) + 1, s)[..., ::step]
    return h


@register(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call | None:
    """Scale and shift of the input normalised by frozen statistics."""
    if training or running_mean is None:
        return None
    normalised = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
    return _per_channel(normalised, weight, bias)


@register(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call | None:
    """Scale and shift of the normalised input, one weight per element of its last axes."""
    last = math.prod(normalized_shape)

    def unflatten(t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:-1], *normalized_shape)

    return Call(
        F.layer_norm(input, normalized_shape, None, None, eps),
        weight,
        bias,
        lambda d, h: unflatten(torch.einsum("apc,bpc->abc", _rows(d, last), _rows(h, last))),
        lambda d: unflatten(_rows(d, last).sum(1)),
    )


@register(F.group_norm)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call | None:
    """Scale and shift of the input normalised by groups of channels."""
    return _per_channel(F.group_norm(input, num_groups, None, None, eps), weight, bias)


@register(F.instance_norm)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call | None:
    """Scale and shift of the input normalised channel by channel."""
    if running_mean is not None:
        return None
    return _per_channel(F.instance_norm(input, None, None, None, None, True, momentum, eps), weight, bias)


@register(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def scale(input: Any, other: Any) -> Call | None:
    """out = input * weight, with broadcasting."""
    operands = _parameter_last(input, other)
    if operands is None:
        return None
    h, weight = operands
    return Call(h, weight, None, lambda d, h: _sum_to(d[:, None] * h, weight.shape), lambda d: d)


@register(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def shift(input: Any, other: Any) -> Call | None:
    """out = input + bias, with broadcasting."""
    operands = _parameter_last(input, other)
    if operands is None:
        return None
    h, bias = operands
    return Call(h, None, bias, lambda d, h: d, lambda d: _sum_to(d[:, None], bias.shape)[:, 0])


def _per_channel(h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Call:
    """out = weight_c h_c + bias_c for channels c, the axis after the examples."""
    return Call(
        h,
        weight,
        bias,
        lambda d, h: torch.einsum("aecp,becp->abc", _positions(d), _positions(h)),
        lambda d: _positions(d).sum((1, 3)),
    )


def _parameter_last(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """The two operands of a commutative call with the one parameter second; None if there is not one."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None
    if isinstance(a, nn.Parameter) == isinstance(b, nn.Parameter):
        return None
    return (b, a) if isinstance(a, nn.Parameter) else (a, b)


def _sum_to(t: Tensor, shape: torch.Size) -> Tensor:
    """Sum (a, b, *out) over broadcast axes to (a, b, *shape)."""
    extra = t.ndim - 2 - len(shape)
    t = t.sum(tuple(range(2, 2 + extra))) if extra else t
    stretched = [k for k, length in enumerate(shape, start=2) if length == 1 and t.shape[k] != 1]
    return t.sum(stretched, keepdim=True) if stretched else t


def _rows(t: Tensor, last: int) -> Tensor:
    return t.reshape(t.shape[0], -1, last)


def _positions(t: Tensor) -> Tensor:
    return t.reshape(*t.shape[:3], -1)


def _per_dim(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * (dims if len(value) == 1 else 1)


def _pads(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Padding as `F.pad` wants it: last axis first, (left, right) each."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [step * (k - 1) for k, step in zip(kernel, dilation, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [side for pad in reversed(_per_dim(padding, len(kernel))) for side in (pad, pad)]
