"""Calls that are affine in their parameters, and how each turns sensitivities into parameter constraints.

Index convention: `a` and `b` count cotangents and inputs (outputs and directions of the theory); a call's
own axes follow, led by its positions. out = weight (.) input + bias, so the parameter gradient is bilinear
in (cotangent of out, input), and its derivative along an input direction is two such products (docs/theory.md,
section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: (cotangents (a, *out), inputs (b, *in)) -> weight gradients (a, b, *weight)
Bilinear = Callable[[Tensor, Tensor], Tensor]


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
    return Call(
        input,
        weight,
        bias,
        lambda d, h: torch.einsum("apo,bpi->aboi", _rows(d, d.shape[-1]), _rows(h, h.shape[-1])),
        lambda d: _rows(d, d.shape[-1]).sum(1),
    )


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
        grad = torch.einsum("aegop,begipk->abgoik", d, h.flatten(5))
        return grad.flatten(2, 3).unflatten(-1, kernel)

    return Call(input, weight, bias, weight_gradient, lambda d: d.flatten(3).sum((1, 3)))


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
    return Call(
        F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps),
        weight,
        bias,
        lambda d, h: torch.einsum("aecp,becp->abc", _positions(d), _positions(h)),
        lambda d: _positions(d).sum((1, 3)),
    )


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
