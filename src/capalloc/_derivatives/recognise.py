"""Calls of torch that are affine in a parameter: what reads their arguments, and the rule of each.

Calls are written out in elementary operations, because fused normalisations have wrong second derivatives under batched
transforms (the weight of a layer norm in torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capalloc._derivatives.affine import AffineCall, ConvolutionRule, MatrixRule, ScaleRule

Recogniser = Callable[..., AffineCall | None]
#: torch function -> what reads its arguments; None from it means "not affine"
RECOGNISERS: dict[Any, Recogniser] = {}


def recognises(*functions: Any) -> Callable[[Recogniser], Recogniser]:
    """Make the decorated function read the arguments of `functions`."""

    def register(recogniser: Recogniser) -> Recogniser:
        RECOGNISERS.update(dict.fromkeys(functions, recogniser))
        return recogniser

    return register


def recognise(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AffineCall | None:
    """The call with its rules, or None if none covers it."""
    recogniser = RECOGNISERS.get(function)
    if recogniser is None:
        return None
    try:
        bound = _signature(recogniser).bind(*args, **kwargs)
    except TypeError:  # an overload the rule does not know, such as out=
        return None
    return recogniser(*bound.args, **bound.kwargs)


@recognises(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> AffineCall | None:
    """out = input weight' + bias, over any leading axes."""
    return AffineCall(MatrixRule(), input, weight, bias) if weight.ndim == 2 else None


@recognises(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(input: Tensor, other: Tensor) -> AffineCall | None:
    """out = input weight, for a matrix on the right."""
    return AffineCall(MatrixRule(transposed=True), input, other, None) if other.ndim == 2 <= input.ndim else None


@recognises(torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> AffineCall | None:
    """Cross-correlation with any stride, padding, dilation and groups."""
    if input.ndim != weight.ndim:
        return None  # an unbatched input
    shape, dims = tuple(weight.shape), weight.ndim - 2
    stride, dilation = _per_dim(stride, dims), _per_dim(dilation, dims)
    if padding == "same":
        totals = [step * (k - 1) for k, step in zip(shape[2:], dilation, strict=True)]
        input = F.pad(input, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
    padding = _per_dim(0 if isinstance(padding, str) else padding, dims)
    rule = ConvolutionRule(shape, tuple(input.shape[1:]), stride, padding, dilation, groups)
    return AffineCall(rule, input, weight, bias)


@recognises(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> AffineCall | None:
    """Scale and shift of the input normalised by frozen statistics; with those of the batch examples interact."""
    if training or running_mean is None or running_var is None:
        return None
    rule = _per_channel(input)
    scale = (running_var + eps).rsqrt()
    return AffineCall(rule, rule.output(rule.output(input, None, -running_mean), scale, None), weight, bias)


@recognises(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> AffineCall:
    """Scale and shift of the normalised input, one weight per element of its last axes."""
    normalised = _normalised(input, tuple(range(-len(normalized_shape), 0)), eps)
    return AffineCall(ScaleRule(tuple(normalized_shape)), normalised, weight, bias)


@recognises(F.group_norm)
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> AffineCall:
    """Scale and shift of the input normalised by groups of channels."""
    grouped = _normalised(input.reshape(len(input), num_groups, -1), (-1,), eps)
    return AffineCall(_per_channel(input), grouped.reshape(input.shape), weight, bias)


@recognises(F.instance_norm)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> AffineCall | None:
    """Scale and shift of the input normalised channel by channel."""
    if running_mean is not None:
        return None
    return AffineCall(_per_channel(input), _normalised(input, tuple(range(2, input.ndim)), eps), weight, bias)


@recognises(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def scale(input: Any, other: Any) -> AffineCall | None:
    """out = input * weight, with broadcasting."""
    operands = _parameter_last(input, other)
    return None if operands is None else AffineCall(ScaleRule(tuple(operands[1].shape)), *operands, None)


@recognises(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def shift(input: Any, other: Any) -> AffineCall | None:
    """out = input + bias, with broadcasting."""
    operands = _parameter_last(input, other)
    return None if operands is None else AffineCall(ScaleRule(tuple(operands[1].shape)), operands[0], None, operands[1])


@recognises(Tensor.expand, torch.broadcast_to, Tensor.broadcast_to)
def spread(input: Any, *size: Any) -> AffineCall | None:
    """out = bias at every place: a token of a vision transformer, for all examples."""
    if not isinstance(input, nn.Parameter):
        return None
    shape = input.detach().expand(*size).shape
    return AffineCall(ScaleRule(tuple(input.shape)), input.new_zeros(()).expand(shape), None, input)


_signature = cache(signature)  # reading one takes longer than a small call


def _parameter_last(a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """The two operands of a commutative call, as large as the output, with the one parameter second; else None."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None
    if isinstance(a, nn.Parameter) == isinstance(b, nn.Parameter):
        return None
    h, weight = (b, a) if isinstance(a, nn.Parameter) else (a, b)
    return h.expand(torch.broadcast_shapes(h.shape, weight.shape)), weight


def _per_channel(input: Tensor) -> ScaleRule:
    """One weight for each channel, the axis after the examples."""
    return ScaleRule((input.shape[1],), input.ndim - 2)


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _per_dim(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * (dims if len(value) == 1 else 1)
