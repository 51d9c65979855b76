"""Energy maps and their adjoints: what a step of the energy network computes.

A map is linear in its signals together and, where it has a weight, in that weight; `pull` is its exact adjoint.
Convolutions and dense layers give theirs directly, without computing the step again; any other function is pulled
back by autograd, at zeros where it has no weight, since a linear map's adjoint is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Pulled = list[Tensor]
#: Functions that multiply entries of their arguments by nothing else.
PRODUCTS = (torch.mul, torch.matmul)


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
class Sum:
    """Addition of two energies, broadcast."""

    least: ClassVar[float] = 0
    by_entry: ClassVar[bool] = True

    def __call__(self, *args: Tensor) -> Tensor:
        return args[0] + args[1]

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        return [cotangent.sum_to_size(args[k].shape) for k in wanted]


@dataclass(frozen=True)
class Product:
    """A signal times a weight, entry by entry, broadcast."""

    least: ClassVar[float] = 0

    def __call__(self, *args: Tensor) -> Tensor:
        return args[0] * args[1]

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        return [(cotangent * args[1 - k]).sum_to_size(args[k].shape) for k in wanted]


@dataclass(frozen=True)
class DenseMap:
    """x (..., inputs) times a weight (outputs, inputs)."""

    least: ClassVar[float] = 0

    def __call__(self, *args: Tensor) -> Tensor:
        return F.linear(*args)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        x, weight = args
        pulled = {0: lambda: cotangent @ weight, 1: lambda: cotangent.flatten(0, -2).mT @ x.flatten(0, -2)}
        return [pulled[k]() for k in wanted]


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
        return torch.ops.aten.convolution(*args, None, *self._settings)  # type: ignore[no-any-return]

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        # The kernels need nothing of a signal that is not wanted but its shape.
        mask = [0 in wanted, 1 in wanted, False]
        both = torch.ops.aten.convolution_backward(cotangent, *args, None, *self._settings, mask)
        return [both[k] for k in wanted]

    @property
    def _settings(self) -> tuple[Any, ...]:
        output_padding = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self.transposed, output_padding, self.groups


@dataclass(frozen=True, eq=False)
class Shared:
    """Squares of a weight, whose energy the parameters that make it share."""

    squares: Tensor
    shares: tuple[Tensor, ...]  # (entries of the weight, entries of the parameter), or (entries, 1): one by one

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
