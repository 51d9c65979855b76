"""An approximation of G: each parameter tensor's block, diagonal in a Kronecker basis.

The basis of a tensor is, axis by axis, the eigenvectors of the second moment of random constraints over all other
axes; the diagonal is their second moment in that basis. Couplings between tensors are left to the solver.
Reference: T. George et al., Fast approximate natural gradient descent in a Kronecker-factored eigenbasis,
arXiv 1806.03884.

Index convention: samples are (n, params), with mean outer product G; a tensor of samples is (n, *axes). All is in the
samples' precision, for a preconditioner only has to be near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capalloc._linalg.symmetric import eigh

#: A factor no larger than this merges the inputs of a kernel with its offsets; larger kernels keep the axes apart.
MERGED = 640
#: An axis longer than this keeps its own basis: its eigenvectors would cost more than they save.
LONGEST = 2048
#: How many samples the product of the factors counts for beside the sampled diagonal.
PRIOR = 4.0

#: A stream of samples, by number: of each batch the parts of all tensors, (n, size), in order.
Samples = Callable[[int], Iterator[Iterable[Tensor]]]


@dataclass(frozen=True)
class KroneckerBlock:
    """One tensor: a basis for every axis (None: its own) and the diagonal of G in it."""

    shape: tuple[int, ...]
    bases: tuple[Tensor | None, ...]
    diagonal: Tensor


@dataclass(frozen=True)
class Kronecker:
    """The blocks of all tensors, in order."""

    blocks: tuple[KroneckerBlock, ...]


def kronecker(shapes: Sequence[Sequence[int]], samples: Samples, longest: int = LONGEST) -> Kronecker:
    """Build the blocks from two streams of samples, `samples(0)` for the bases and `samples(1)` for the diagonal.

    An axis longer than `longest` keeps its own basis.
    """
    moments = [Moments(merged_axes(shape), longest) for shape in shapes]
    for batch in samples(0):
        for m, part in zip(moments, batch, strict=True):
            m.add(part)
    diagonals = [Diagonal(m.shape, *m.factored()) for m in moments]
    for batch in samples(1):
        for d, part in zip(diagonals, batch, strict=True):
            d.add(part)
    return Kronecker(tuple(d.block() for d in diagonals))


@dataclass
class Moments:
    """Sums over samples of one tensor's second moments, axis by axis."""

    shape: tuple[int, ...]
    longest: int = LONGEST
    sums: list[Tensor] = field(default_factory=list)
    trace: float = 0.0
    count: int = 0

    def add(self, part: Tensor) -> None:
        """Take in samples, (n, size)."""
        tensor = part.reshape(-1, *self.shape)
        squares = tensor.square()  # once: of a long vector, each look takes as long as a layer
        found = [moment(tensor, squares, axis, self.longest) for axis in range(len(self.shape))]
        self.sums = [old + new for old, new in zip(self.sums, found, strict=True)] if self.sums else found
        self.trace += float(squares.sum())
        self.count += len(part)

    def factored(self) -> tuple[tuple[Tensor | None, ...], tuple[Tensor, ...]]:
        """The basis of every axis, and the factors' eigenvalues, whose product has the trace that each of them has."""
        values, bases = zip(*map(eigenbasis, self.sums), strict=True)
        shares = [v / self.trace if self.trace > 0 else v for v in values[1:]]
        return bases, (values[0] / self.count, *shares)


@dataclass
class Diagonal:
    """Sums over samples of one tensor's squares in its basis."""

    shape: tuple[int, ...]
    bases: tuple[Tensor | None, ...]
    values: tuple[Tensor, ...]  # of the factors, whose product is never held beside the squares
    squares: Tensor = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.squares = self.values[0].new_zeros(self.shape)

    def add(self, part: Tensor) -> None:
        """Take in samples, (n, size)."""
        for one in turn(part.reshape(-1, *self.shape), self.bases):
            self.squares.addcmul_(one, one)
        self.count += len(part)

    def block(self) -> KroneckerBlock:
        """Build the block, with the product of the factors as a prior."""
        product = self.values[0]
        for v in self.values[1:]:
            product = product[..., None] * v
        diagonal = self.squares.add_(product, alpha=PRIOR).div_(self.count + PRIOR)
        return KroneckerBlock(self.shape, self.bases, diagonal)


def merged_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """(units, inputs x offsets) where that is small, else (units, inputs, offsets); vectors and scalars as vectors."""
    if len(shape) < 2:
        return (math.prod(shape),)
    rest = math.prod(shape[1:])
    return (shape[0], rest) if rest <= MERGED or len(shape) == 2 else (shape[0], shape[1], math.prod(shape[2:]))


def moment(tensor: Tensor, squares: Tensor, axis: int, longest: int = LONGEST) -> Tensor:
    """Sum over samples and all other axes of products along `axis`; of squares alone where it is long."""
    if tensor.shape[axis + 1] > longest:
        return squares.sum([k for k in range(tensor.ndim) if k != axis + 1])
    flat = tensor.movedim(axis + 1, 0).flatten(1)
    return flat @ flat.T


def eigenbasis(moment: Tensor) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues and vectors; squares alone have no basis but their own."""
    if moment.ndim == 1:
        return moment, None
    values, vectors = eigh(moment.double())
    return values.clamp(min=0).to(moment), vectors.to(moment)


def turn(tensor: Tensor, bases: Sequence[Tensor | None]) -> Tensor:
    """Coordinates in the bases: (k, *axes)."""
    for basis in bases:  # each product moves its axis to the end, so after all of them the order is back
        tensor = tensor.movedim(1, -1) if basis is None else torch.tensordot(tensor, basis, dims=([1], [0]))
    return tensor
