"""Calls that are affine in a parameter, out = weight (.) input + bias, each with one record of rules.

The gradient of the weight is bilinear in the cotangent d of the output and the input h, and a sum over positions of
outer products of a factor of each (docs/theory.md, section 2):

    gradient[g, l, r] = sum_t left(d)[g, t, l] right(h)[g, t, r].

Rows of constraints, Gram matrices and products with constraints are all made from these factors; `recognise` tells
which calls they are.

Index convention: a and b count cotangents and inputs, k vectors; the call's own axes follow, its leading one included.
Factors are (a, g, t, l) and (b, g, t, r): g groups that do not mix, t positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
        return not self.transposed

    def output(self, h: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
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
        return self.rule.output(self.input, self.weight, self.bias)


def _patches(h: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """The entries that each output position reads: (examples, channels, *positions, *kernel), a view of padded `h`."""
    for dim, (k, s, step) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        h = h.unfold(dim, step * (k - 1) + 1, s)[..., ::step]
    return h
