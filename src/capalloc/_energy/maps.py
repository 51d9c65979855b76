"""Energy maps and their adjoints: what a step of the energy network computes.

A map is linear in its signals together and, where it has a weight, in that weight; `pull` is its exact adjoint.
Convolutions and dense layers give theirs directly, without computing the step again; any other function is pulled
back by autograd, at zeros where it has no weight, since a linear map's adjoint is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._operators.records import quick_dilation

Pulled = list[Tensor]
#: Functions that multiply entries of their arguments by nothing else.
PRODUCTS = (torch.mul, torch.matmul)
#: Places of a map up to which torch's own gradient of a convolution's weight takes several times a matrix product.
FEW_PLACES = 64


class EnergyMap(Protocol):
    """A step's map: call it for the energies, `pull` for the cotangents of the wanted arguments.

    One that knows it has `least`, the exponent of the least nonzero factor that it holds itself, and `by_entry` where
    every entry of a signal goes to one of the result.
    """

    def __call__(self, *args: Tensor) -> Tensor: ...

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        """Give cotangents of the arguments at the positions `wanted`."""


@dataclass(frozen=True)
class Function:
    """Any differentiable function, pulled back by autograd."""

    function: Callable[..., Tensor]
    least: float | None = None

    def __call__(self, *args: Tensor) -> Tensor:
        return self.function(*args)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        known = list(args)

        def forward(*values: Tensor) -> Tensor:
            for position, value in zip(wanted, values, strict=True):
                known[position] = value
            return self.function(*known)

        out, back, *_ = torch.func.vjp(forward, *(args[k] for k in wanted))
        return list(back(cotangent.expand(out.shape)))


@dataclass(frozen=True)
class Gate:
    """Multiplication by squared gates."""

    squared: Tensor | float
    least: float | None = None
    by_entry: ClassVar[bool] = True

    def __call__(self, *args: Tensor) -> Tensor:
        return args[0] * self.squared

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        return [(cotangent * self.squared).sum_to_size(args[0].shape)]


@dataclass(frozen=True)
class OpenWhere(Gate):
    """The gates of ReLU: open where `squared`, which here holds the pre-activations, is positive; shaped alike."""

    least: float = 0

    def __call__(self, *args: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(args[0], self.squared, 0)  # type: ignore[no-any-return]

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        return [self(cotangent)]


@dataclass(frozen=True)
class Reshaped:
    """The same entries in another shape."""

    shape: tuple[int, ...]
    least: ClassVar[float] = 0

    def __call__(self, *args: Tensor) -> Tensor:
        return args[0].reshape(self.shape)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        return [cotangent.expand(self(args[0]).shape).reshape(args[0].shape)]


@dataclass(frozen=True)
class Sum:
    """Addition of two energies, broadcast."""

    least: ClassVar[float] = 0
    by_entry: ClassVar[bool] = True

    def __call__(self, *args: Tensor) -> Tensor:
        return args[0] + args[1]

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        shapes = [args[k].shape for k in wanted]
        return [cotangent if shape == cotangent.shape else cotangent.sum_to_size(shape) for shape in shapes]


@dataclass(frozen=True)
class Product:
    """A signal times a weight, entry by entry, broadcast, and times what is `held`, shaped as the weight."""

    held: Tensor | None = None
    least: float | None = 0

    def __call__(self, *args: Tensor) -> Tensor:
        return args[0] * self._held(args[1])

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        pulled = {
            0: lambda: (cotangent * self._held(args[1])).sum_to_size(args[0].shape),
            1: lambda: self._held(_sum_of_products(cotangent, args[0], args[1].shape)),
        }
        return [pulled[k]() for k in wanted]

    def _held(self, weight: Tensor) -> Tensor:
        return weight if self.held is None else weight * self.held


def _sum_of_products(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(a * b).sum_to_size(shape), without the product where the last axes are summed and the two are alike."""
    kept = max((axis + 1 for axis, n in enumerate(shape) if n > 1), default=0) - len(shape)
    if kept == 0 or a.shape != b.shape or a.ndim <= -kept:
        return (a * b).sum_to_size(shape)
    found: Tensor = torch.linalg.vecdot(a.flatten(kept), b.flatten(kept))
    return found.reshape(*found.shape, *[1] * -kept).sum_to_size(shape)


@dataclass(frozen=True)
class DenseMap:
    """x (..., inputs) times a weight (outputs, inputs)."""

    least: ClassVar[float] = 0

    def __call__(self, *args: Tensor) -> Tensor:
        return F.linear(*args)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        x, weight = args
        rows = lambda t: t.reshape(-1, t.shape[-1])  # noqa: E731
        pulled = {0: lambda: cotangent @ weight, 1: lambda: rows(cotangent).mT @ rows(x)}
        return [pulled[k]() for k in wanted]

    def spread(self, mask: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Give the entries of x that reach marked outputs where no weight is 0."""
        return mask.amax(-1, keepdim=True).expand(x.shape)


@dataclass(frozen=True)
class ConvolutionMap:
    """A convolution by a weight, transposed or not, as `aten.convolution` has it."""

    least: ClassVar[float] = 0
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __call__(self, *args: Tensor) -> Tensor:
        if any(self.output_padding):  # second derivatives of torch's own do not take it: the same by padding
            nothing = (0,) * len(self.stride)
            whole = torch.ops.aten.convolution(
                *args, None, self.stride, nothing, self.dilation, True, nothing, self.groups
            )
            ends = zip(reversed(self.padding), reversed(self.output_padding), strict=True)
            return F.pad(whole, [side for p, more in ends for side in (-p, more - p)])
        return torch.ops.aten.convolution(*args, None, *self._quick(args[1]))  # type: ignore[no-any-return]

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        if self._samples(args[1]):
            return self._pull_sample(cotangent, args, wanted)
        by_patches = 1 in wanted and self._has_few_places(cotangent, args[1])
        mask = [0 in wanted, 1 in wanted and not by_patches, False]
        # Kernels ask for the shape alone of a signal whose weight is not wanted, but copy one that is no whole tensor.
        signal = args[0] if mask[1] else args[0].new_empty(args[0].shape)
        settings = self._quick(args[1])
        both = list(torch.ops.aten.convolution_backward(cotangent, signal, args[1], None, *settings, mask))
        if by_patches:
            patches = F.unfold(args[0], args[1].shape[2:], self.dilation, self.padding, self.stride)
            both[1] = torch.einsum("nop,nip->oi", cotangent.flatten(2), patches).reshape(args[1].shape)
        return [both[k] for k in wanted]

    def spread(self, mask: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Give the entries of x that reach marked outputs where no weight is 0: one channel stands for a group."""
        one = weight.new_ones(self.groups, 1, *weight.shape[2:])
        marked = mask.unflatten(1, (self.groups, -1)).amax(2)
        (reached,) = self.pull(marked, [x[:, : self.groups], one], [0])
        marks = (reached > 0).to(mask.dtype).unsqueeze(2)
        return marks.expand(-1, -1, x.shape[1] // self.groups, *x.shape[2:]).flatten(1, 2)

    def _samples(self, weight: Tensor) -> bool:
        """Tell whether the convolution reads single places, some of them alone."""
        single = weight.shape[2:].numel() == 1 and not any(self.padding) and not self.transposed
        return single and max(self.stride) > 1

    def _pull_sample(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        """Pull back through those places alone: torch's own goes through all of them."""
        where: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self.stride))
        dense = replace(self, stride=(1,) * len(self.stride))
        pulled = dense.pull(cotangent, [args[0][where].contiguous(), args[1]], wanted)
        for k, found in enumerate(pulled):
            if wanted[k] == 0:
                pulled[k] = found.new_zeros(args[0].shape)
                pulled[k][where] = found
        return pulled

    def _has_few_places(self, cotangent: Tensor, weight: Tensor) -> bool:
        """Tell whether the gradient of the weight is quicker by patches, which holds on small maps."""
        plain = self.groups == 1 and not self.transposed and weight.ndim == 4 and cotangent.ndim == 4
        return plain and weight[0, 0].numel() > 1 and cotangent[0, 0].numel() <= FEW_PLACES

    def _quick(self, weight: Tensor) -> tuple[Any, ...]:
        """Settings of the same convolution for which torch takes its quicker kernel."""
        dilation = self.dilation if self.transposed else quick_dilation(weight, self.dilation)
        output_padding = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, dilation, self.transposed, output_padding, self.groups


@dataclass(frozen=True, eq=False)
class Shared:
    """Squares of a weight, whose energy the parameters that make it share."""

    squares: Tensor
    shares: tuple[Tensor, ...]  # (entries of the weight, entries of the parameter), or (entries, 1): one by one
    possible: Tensor | None = None  # which entries can be other than 0; all where it is None

    def __call__(self, *args: Tensor) -> Tensor:
        parts = (
            s @ a.reshape(-1) if s.shape[1] == a.numel() else s[:, 0] * a.reshape(-1) for s, a in self._pairs(args)
        )
        return torch.stack(list(parts)).sum(0).reshape(self.squares.shape) * self.squares

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        g = (cotangent * self.squares).reshape(-1)
        pairs = list(self._pairs(args))
        found = (g @ s if s.shape[1] == a.numel() else s[:, 0] * g for s, a in (pairs[k] for k in wanted))
        return [grad.reshape(args[k].shape) for grad, k in zip(found, wanted, strict=True)]

    def _pairs(self, args: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        return ((share.to(a), a) for share, a in zip(self.shares, args, strict=True))


def as_map(fn: EnergyMap | Callable[..., Tensor]) -> EnergyMap:
    """Make a plain function a `Function`; leave a map as it is."""
    return fn if hasattr(fn, "pull") else Function(fn, 0 if fn in PRODUCTS else None)
