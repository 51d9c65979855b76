"""Linear operators as sparse matrices: energies go through the squared entries.

Index convention: the operator takes x to y. A pair (i, j) of equally long axes of x and y is *free* if the operator
acts slice by slice along them and on every slice alike (examples; the channels of an interpolation). On the axes
left over, flattened, it is a sparse matrix M (outs, ins): y = M x, for every slice of the free axes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matrix:
    """Sparse entries, rows in order; all entries of one place are one."""

    rows: Tensor  # (entries,)
    cols: Tensor
    weights: Tensor
    shape: tuple[int, int]

    @cached_property
    def squared(self) -> tuple[Tensor, Tensor]:
        """Give M^2 entry by entry and its transpose."""
        return self._compressed(self.weights.square()), self._compressed(self.weights.square(), transposed=True)

    def times(self, x: Tensor) -> Tensor:
        """Give M x for x (ins, slices)."""
        return self._compressed(self.weights) @ x

    def _compressed(self, weights: Tensor, *, transposed: bool = False) -> Tensor:
        entries = torch.stack([self.cols, self.rows] if transposed else [self.rows, self.cols])
        shape = self.shape[::-1] if transposed else self.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compressed rows are called "beta"
            return torch.sparse_coo_tensor(entries, weights, shape).coalesce().to_sparse_csr()


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An operator: identity on pairs of free axes, a matrix on the others."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    free: tuple[tuple[int, int], ...]
    matrix: Matrix

    @property
    def empty(self) -> bool:
        return not len(self.matrix.rows)

    @cached_property
    def moves(self) -> bool:
        """Tell whether every output is one input or nothing."""
        rows, weights = self.matrix.rows, self.matrix.weights
        return len(rows.unique()) == len(rows) and bool((weights == 1).all())

    @cached_property
    def covers(self) -> bool:
        """Tell whether every output has an input."""
        return len(self.matrix.rows.unique()) == self.matrix.shape[0]

    def energies(self, e: Tensor) -> Tensor:
        """Send path energies through the operator: M^2 entry by entry."""
        product: Tensor = _Product.apply(columns(e, self._ins), self.matrix, False)
        return spread(product, self.out_shape, self._outs)

    def adjoint(self, g: Tensor) -> Tensor:
        """Send cotangents of the energies back."""
        product: Tensor = _Product.apply(columns(g, self._outs), self.matrix, True)
        return spread(product, self.in_shape, self._ins)

    def values(self, x: Tensor) -> Tensor:
        """Apply the operator itself."""
        return spread(self.matrix.times(columns(x, self._ins)), self.out_shape, self._outs)

    @property
    def _ins(self) -> list[int]:
        return [i for i, _ in self.free]

    @property
    def _outs(self) -> list[int]:
        return [j for _, j in self.free]


def columns(x: Tensor, free: Sequence[int]) -> Tensor:
    """Reshape a tensor to (entries of the other axes, slices of the free ones)."""
    core = [k for k in range(x.ndim) if k not in free]
    return x.permute([*core, *free]).reshape(math.prod(x.shape[k] for k in core), -1)


def spread(columns: Tensor, shape: Sequence[int], free: Sequence[int]) -> Tensor:
    """Undo `columns`, to a tensor of a shape."""
    order = [k for k in range(len(shape)) if k not in free] + list(free)
    return columns.reshape([shape[k] for k in order]).permute([order.index(k) for k in range(len(order))])


class _Product(torch.autograd.Function):
    """M^2 x or its transpose, for all derivatives and for `vmap`."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, matrix: Matrix, transposed: bool) -> Tensor:
        squared = matrix.squared[transposed].to(x.device, x.dtype)
        return squared @ x.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.matrix, ctx.transposed = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(grads[0], ctx.matrix, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Product.apply(tangents[0], ctx.matrix, ctx.transposed)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, matrix: Matrix, transposed: bool) -> Any:
        assert in_dims[0] is not None
        x = x.movedim(in_dims[0], -1)
        flat = _Product.apply(x.flatten(1), matrix, transposed)
        return flat.reshape(-1, *x.shape[1:]), x.ndim - 1
