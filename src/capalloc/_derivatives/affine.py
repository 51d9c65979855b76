"""Calls that are affine in a parameter, out = weight (.) input + bias, each with one record of rules.

The gradient of the weight is bilinear in the cotangent d of the output and the input h, and a sum over positions of
outer products of a factor of each (docs/theory.md, section 2):

    gradient[g, l, r] = sum_t left(d)[g, t, l] right(h)[g, t, r].

Rows of constraints, Gram matrices and products with constraints are all made from these factors. Calls are written out
here in elementary operations, because fused normalisations have wrong second derivatives under batched transforms (the
weight of a layer norm in torch 2.13).

Index convention: a and b count cotangents and inputs, k vectors; the call's own axes follow, its leading one included.
Factors are (a, g, t, l) and (b, g, t, r): g groups that do not mix, t positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AffineRule(ABC):
    """The bilinear map of a call, without its tensors."""

    @property
    def is_outer(self) -> bool:
        """The weight's entries are (left, right) in this order, in one group."""
        return False

    @property
    def overlap(self) -> int:
        """The size of the input's factor over that of the input."""
        return 1

    @abstractmethod
    def output(self, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The call's output."""

    @abstractmethod
    def left(self, d: Tensor) -> Tensor:
        """Factor of cotangents (a, *out): (a, g, t, l)."""

    def right(self, h: Tensor) -> Tensor:
        """Factor of inputs (b, *in), (b, g, t, r): the same unless the call sums over inputs."""
        return self.left(h)

    @abstractmethod
    def ordered(self, gradient: Tensor) -> Tensor:
        """A gradient (..., g, l, r) in the weight's own shape."""

    @abstractmethod
    def to_input(self, weight: Tensor, d: Tensor) -> Tensor:
        """Gradients of the input for weights (k, *weight) and cotangents (a, *out): (k, a, *in)."""

    def to_weight(self, h: Tensor, d: Tensor) -> Tensor:
        """Gradients of the weight summed over a, for inputs (k, a, *in) and cotangents (a, *out): (k, *weight)."""
        right = self.right(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        return self.ordered(torch.einsum("agtl,kagtr->kglr", self.left(d), right))

    def weight_gradient(self, left: Tensor, right: Tensor) -> Tensor:
        """Gradients of the weight for all pairs of factors: (..., a, b, *weight)."""
        gradient: Tensor = torch.einsum("...agtl,...bgtr->...abglr", left, right)
        return self.ordered(gradient)

    def bias_gradient(self, left: Tensor) -> Tensor:
        """Gradients of the bias, (..., a, entries)."""
        return left.sum(-2).flatten(-2)


@dataclass(frozen=True)
class MatrixRule(AffineRule):
    """out = h weight' + bias over any leading axes, or h weight where the weight is (in, out)."""

    transposed: bool = False

    @property
    def is_outer(self) -> bool:
        """Entries are (out, in)."""
        return not self.transposed

    def output(self, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Matrix product."""
        assert weight is not None
        return h @ weight if self.transposed else F.linear(h, weight, bias)

    def left(self, d: Tensor) -> Tensor:
        """(a, 1, t, out)."""
        return d.reshape(len(d), 1, -1, d.shape[-1])

    def ordered(self, gradient: Tensor) -> Tensor:
        """(..., out, in) or its transpose."""
        gradient = gradient.squeeze(-3)
        return gradient.mT if self.transposed else gradient

    def to_input(self, weight: Tensor, d: Tensor) -> Tensor:
        """Product with the transpose."""
        return torch.einsum("a...o,koi->ka...i", d, weight.mT if self.transposed else weight)


@dataclass(frozen=True)
class ConvolutionRule(AffineRule):
    """Cross-correlation of inputs of shape `size` with a weight of shape `shape`."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def is_outer(self) -> bool:
        """Entries are (out, (in, kernel)) without groups."""
        return self.groups == 1

    @property
    def overlap(self) -> int:
        """Entries of the kernel."""
        return math.prod(self.shape[2:])

    def output(self, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Convolution of one, two or three dimensions."""
        assert weight is not None
        still = [0] * len(self.stride)
        return torch.convolution(h, weight, bias, self.stride, self.padding, self.dilation, False, still, self.groups)

    def left(self, d: Tensor) -> Tensor:
        """(a, groups, examples and positions, out per group)."""
        d = d.reshape(*d.shape[:2], self.groups, -1, math.prod(d.shape[3:]))
        return d.movedim(1, 3).flatten(3).mT

    def right(self, h: Tensor) -> Tensor:
        """The entries that each position reads: (b, groups, examples and positions, in per group and kernel)."""
        dims = len(self.stride)
        pads = [side for pad in reversed(self.padding) for side in (pad, pad)]
        h = _patches(F.pad(h.flatten(0, 1), pads), self.shape[2:], self.stride, self.dilation).unflatten(0, h.shape[:2])
        # channels and offsets in the kernel before positions: rows of an image are copied whole
        h = h.movedim(tuple(range(3, 3 + dims)), tuple(range(-dims, 0)))
        h = h.reshape(*h.shape[:2], self.groups, -1, math.prod(h.shape[-dims:]))
        return h.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def ordered(self, gradient: Tensor) -> Tensor:
        """(..., out, in per group, *kernel)."""
        return gradient.reshape(*gradient.shape[:-3], *self.shape)

    def to_input(self, weight: Tensor, d: Tensor) -> Tensor:
        """Transposed convolution, all vectors' input channels side by side."""
        cotangents, like = d.flatten(0, 1), d.new_empty(())
        if self.groups > 1:
            h = like.expand(len(cotangents), *self.size)
            back = torch.stack([self._back(cotangents, h, one, 0) for one in weight])
        else:
            side = weight.transpose(0, 1).flatten(1, 2)
            h = like.expand(len(cotangents), side.shape[1], *self.size[1:])
            back = self._back(cotangents, h, side, 0)
            back = back.reshape(len(back), len(weight), *self.size).transpose(0, 1)
        return back.reshape(len(weight), *d.shape[:2], *self.size)

    def to_weight(self, h: Tensor, d: Tensor) -> Tensor:
        """The gradient by torch's own kernel, which copies no patches."""
        weight = d.new_empty(()).expand(self.shape)
        return torch.stack([self._back(d.flatten(0, 1), one.flatten(0, 1), weight, 1) for one in h])

    def _back(self, d: Tensor, h: Tensor, weight: Tensor, wanted: int) -> Tensor:
        """Gradient of the input (0) or of the weight (1)."""
        still, mask = [0] * len(self.stride), [wanted == 0, wanted == 1, False]
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            d, h, weight, None, self.stride, self.padding, self.dilation, False, still, self.groups, mask
        )
        return found[wanted]


@dataclass(frozen=True)
class ScaleRule(AffineRule):
    """out = h * weight + bias, entry by entry, a weight of shape `shape` ending `after` axes before the last."""

    shape: tuple[int, ...]
    after: int = 0

    def output(self, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Scale and shift."""
        h = h if weight is None else h * self._aligned(weight)
        return h if bias is None else h + self._aligned(bias)

    def left(self, d: Tensor) -> Tensor:
        """(a, entries of the weight, positions that share one, 1)."""
        aligned = (1,) * (d.ndim - 1 - len(self._own)) + self._own
        own = [k for k, size in enumerate(aligned, start=1) if size != 1]
        shared = [k for k, size in enumerate(aligned, start=1) if size == 1]
        return d.permute(0, *own, *shared).reshape(len(d), math.prod(self.shape), -1, 1)

    def ordered(self, gradient: Tensor) -> Tensor:
        """One entry a group."""
        return gradient.reshape(*gradient.shape[:-3], *self.shape)

    def to_input(self, weight: Tensor, d: Tensor) -> Tensor:
        """Scale."""
        return d * weight.reshape(len(weight), *(1,) * (d.ndim - len(self._own)), *self._own)

    @property
    def _own(self) -> tuple[int, ...]:
        return self.shape + (1,) * self.after

    def _aligned(self, weight: Tensor) -> Tensor:
        return weight.reshape(self._own)


@dataclass(frozen=True)
class AffineCall:
    """One recognised call: what enters it, its parameters, and its rules."""

    rule: AffineRule
    input: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def output(self) -> Tensor:
        """The output."""
        return self.rule.output(self.input, self.weight, self.bias)


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


def _patches(h: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """The entries that each output position reads: (examples, channels, *positions, *kernel), a view of padded `h`."""
    for dim, (k, s, step) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        h = h.unfold(dim, step * (k - 1) + 1, s)[..., ::step]
    return h


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
