"""The matrix of a linear operator that is known by its action alone.

How it is found: two combs of impulses, one of heights 1 and one with each impulse as high as its index, give every
output's weight and the index it came from, if only one impulse of the comb reaches it. Combs are made sparser until
that is so; what is found must then reproduce the operator on random inputs, so a wrong guess cannot pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from capalloc._energy.linear_map import LinearMap, Matrix

LinearFunction = Callable[[Tensor], Tensor]
#: Combs, or unit vectors, tried for one operator: a matrix without structure may have this many rows or columns.
PROBE_LIMIT = 4096
#: Relative size below which a response to an impulse is rounding.
IMPULSE_ROUNDING = 1e-12
PERIODS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)


class OperatorError(ValueError):
    """An operator has no matrix, or none that can be found."""


def find(
    function: LinearFunction,
    ins: Sequence[int],
    outs: Sequence[int],
    generator: torch.Generator,
    limit: int = PROBE_LIMIT,
) -> LinearMap:
    """Find the matrix of a linear operator.

    Args:
        function: the operator, in float64.
        ins: shape of its argument.
        outs: shape of its result.
        generator: draws the inputs that it is tried on.
        limit: impulses of a comb, at most; a matrix without structure takes one a row or a column.

    Raises:
        OperatorError: the operator is not linear, or its matrix is large and without structure.

    """
    ins, outs = tuple(ins), tuple(outs)
    core, free = _free_axes(function, ins, outs, generator)
    core_ins = tuple(1 if k in dict(free) else n for k, n in enumerate(ins))
    core_outs = tuple(1 if k in dict(free).values() else n for k, n in enumerate(outs))
    if not _is_linear(core, core_ins, generator):
        raise OperatorError("the operator is not linear in what depends on the inputs")
    matrix = _matrix(core, core_ins, core_outs, generator, limit)
    if matrix is None:
        raise OperatorError(
            "the operator is linear, but no comb of impulses tells the entries of its matrix apart, and the matrix "
            f"has more than {limit} rows and columns"
        )
    found = LinearMap(ins, outs, tuple(free), matrix)
    x = _random(ins, generator)
    if not _same(found.values(x), function(x)):
        raise OperatorError("the operator is not linear in what depends on the inputs")
    return found


def _is_linear(function: LinearFunction, shape: Sequence[int], generator: torch.Generator) -> bool:
    """Try f(0) = 0 and f(a x + y) = a f(x) + f(y), on random x and y and at very different scales."""
    x, y = (_random(shape, generator) for _ in range(2))
    if bool((function(torch.zeros_like(x)) != 0).any()):
        return False
    return all(_same(function(a * x + y), a * function(x) + function(y)) for a in (-0.7, 1e4, -1e-3))


def _free_axes(
    function: LinearFunction, ins: tuple[int, ...], outs: tuple[int, ...], generator: torch.Generator
) -> tuple[LinearFunction, list[tuple[int, int]]]:
    """Find the operator on one slice, and the pairs of free axes."""
    free: list[tuple[int, int]] = []
    for i, length in enumerate(ins):
        left = [j for j in range(len(outs)) if outs[j] == length > 1 and j not in dict(free).values()]
        for j in sorted(left, key=lambda j: j != i):
            one = tuple(1 if k == i or k in dict(free) else n for k, n in enumerate(ins))
            reduced = _sliced(function, one, i, j, length, generator)
            if reduced is not None:
                function = reduced
                free.append((i, j))
                break
    return function, free


def _sliced(
    function: LinearFunction, one: tuple[int, ...], i: int, j: int, length: int, generator: torch.Generator
) -> LinearFunction | None:
    """Give the operator on one slice of axes i and j, None if these are not free: f(c (x) x) = c (x) f(x)."""
    x, heights = _random(one, generator), _random((length,), generator)
    y = function(x * heights.reshape(-1, *[1] * (len(one) - 1 - i)))
    part = y.narrow(j, 0, 1) / heights[0]
    if not _same(y, part * heights.reshape(-1, *[1] * (y.ndim - 1 - j))):
        return None
    try:  # most operators take an axis of length 1; those that name its length in an argument do not
        short = function(x)
        if short.shape == part.shape and _same(short, part):
            return function
    except (RuntimeError, IndexError, ValueError):
        pass
    rest = [length - 1 if k == i else n for k, n in enumerate(one)]
    return lambda x: function(torch.cat([x, x.new_zeros(rest)], i)).narrow(j, 0, 1)


def _matrix(
    function: LinearFunction, ins: tuple[int, ...], outs: tuple[int, ...], generator: torch.Generator, limit: int
) -> Matrix | None:
    def adjoint(y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(ins, dtype=y.dtype, requires_grad=True)
            result = function(x)
            if not result.requires_grad:
                return torch.zeros_like(x)
            return torch.autograd.grad(result, x, y, allow_unused=True, materialize_grads=True)[0]

    size = (math.prod(outs), math.prod(ins))
    x = _random(ins, generator)
    expected = function(x).reshape(-1)
    for transposed, periods in _plans(function, adjoint, ins, outs, limit):
        found = _probe(adjoint if transposed else function, outs if transposed else ins, periods)
        if found is None:
            continue
        reached, impulses, weights = found
        matrix = Matrix(*((impulses, reached) if transposed else (reached, impulses)), weights, size)
        if _same(matrix.times(x.reshape(-1, 1))[:, 0], expected):
            return matrix
    return None


def _plans(
    function: LinearFunction, adjoint: LinearFunction, ins: tuple[int, ...], outs: tuple[int, ...], limit: int
) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """Combs to try, few impulses apart first: on the operator, or (True) on its adjoint."""
    yield False, (1,) * len(ins)
    yield True, (1,) * len(outs)
    sides = [(False, ins, _line_periods(function, ins)), (True, outs, _line_periods(adjoint, outs))]
    sides.sort(key=lambda side: math.prod(side[2]))
    for factor in (1, 2, 4):
        for transposed, shape, periods in sides:
            wider = tuple(min(n, p * factor) for n, p in zip(shape, periods, strict=True))
            if math.prod(wider) <= limit:
                yield transposed, wider
    transposed, shape = min([(False, ins), (True, outs)], key=lambda side: math.prod(side[1]))
    if math.prod(shape) <= limit:
        yield transposed, shape


def _line_periods(function: LinearFunction, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Find how far apart impulses on one line along each axis must be so that no output sees two."""
    return tuple(_line_period(function, shape, k) for k in range(len(shape)))


def _line_period(function: LinearFunction, shape: tuple[int, ...], axis: int) -> int:
    length = shape[axis]
    where = tuple(slice(None) if k == axis else n // 2 for k, n in enumerate(shape))

    def on_line(v: Tensor) -> Tensor:
        x = torch.zeros(shape, dtype=v.dtype)
        x[where] = v
        return function(x)

    for period in PERIODS:
        if period >= length:
            break
        if _probe(on_line, (length,), (period,)) is not None:
            return period
    return length


def _probe(
    function: LinearFunction, shape: tuple[int, ...], periods: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(outputs, impulses that reached them, weights) by combs of these periods, None where one output saw two."""
    found = []
    index = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(shape)
    for starts in itertools.product(*map(range, periods)):
        comb = torch.zeros(shape, dtype=torch.float64)
        comb[tuple(slice(s, None, p) for s, p in zip(starts, periods, strict=True))] = 1
        weight, labelled = function(comb).reshape(-1), function(comb * index).reshape(-1)
        present = (weight.abs() > IMPULSE_ROUNDING) | (labelled.abs() > IMPULSE_ROUNDING * index.numel())
        outputs = present.nonzero()[:, 0]
        weight, origin = weight[outputs], labelled[outputs] / weight[outputs]
        column = origin.round()
        if not bool(((origin - column).abs() < 1e-5).all() & (column >= 1).all() & (column <= index.numel()).all()):
            return None
        if not bool((comb.reshape(-1)[column.long() - 1] == 1).all()):
            return None
        found.append((outputs, column.long() - 1, _rounded(weight)))
    outputs, impulses, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
    return outputs, impulses, weights


def _rounded(weights: Tensor) -> Tensor:
    """Make weights 1 that are so but for rounding, so that data movement is seen as such."""
    return torch.where((weights - 1).abs() < IMPULSE_ROUNDING, 1.0, weights)


def _random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def _same(a: Tensor, b: Tensor) -> bool:
    scale = float(torch.maximum(a.abs(), b.abs()).max()) if a.numel() else 0.0
    tolerance = 1e-10 if a.dtype == torch.float64 else 1e-5
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * max(scale, 1e-300)).all())
