"""Maxima and minima: over windows, over whole axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._energy.maps import Function
from capalloc._energy.program import Energy
from capalloc._energy.ranges import least_exponent
from capalloc._energy.rules.average_pooling import pooled
from capalloc._energy.rules.registration import Call, rule
from capalloc._operators.calls import Operation, per_axis
from capalloc._operators.records import named, of_kind

aten = torch.ops.aten
WINDOWED = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    aten.max_pool1d_with_indices.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)
#: Places in an axis, or a word on all of it.
WHERE = named("argmax argmin any any.dim any.dims all all.dim all.dims count_nonzero count_nonzero.dim_IntList")
#: Over whole axes; those that put an axis in order; those over all that comes before.
REDUCING = [
    *named("amax amin max.dim min.dim kthvalue median.dim nanmedian.dim mode quantile.scalar nanquantile.scalar"),
    *of_kind("statistic"),
    *WHERE,
]
ORDERING = named("sort sort.stable topk")
RUNNING = named("cummax cummin")


def windows_won(operation: Operation) -> Tensor:
    """Read one gate for each output and each input in its window: 1 for the input that won."""
    winner, ndim = _winner(operation), _ndim(operation)
    sizes = operation["self"].shape[-ndim:]
    if operation["output_size"] is None:
        settings = zip(*_settings(operation), strict=True)
        windows = [
            [[o * s - p + d * t for t in range(k)] for o in range(n)]
            for n, (k, s, p, d) in zip(winner.shape[-ndim:], settings, strict=True)
        ]
    else:  # output j pools the inputs from floor(j n / m) to ceil((j + 1) n / m)
        windows = [
            [list(range(o * n // m, -(-(o + 1) * n // m))) for o in range(m)]
            for n, m in zip(sizes, winner.shape[-ndim:], strict=True)
        ]
    outputs, entries = [], []
    for o, window in enumerate(itertools.product(*windows)):
        for place in itertools.product(*window):
            if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
                outputs.append(o)
                entries.append(sum(p * math.prod(sizes[k + 1 :]) for k, p in enumerate(place)))
    chosen = winner.flatten(-ndim)[..., torch.tensor(outputs, device=winner.device)]
    return (chosen == torch.tensor(entries, device=winner.device)).to(torch.float32)


def axes_won(operation: Operation) -> Tensor:
    """Read 1 for the entries along the axes that won, in a last axis of the result's."""
    x, top = operation["self"], _first(operation.result)
    dims = _dims(operation["dim"], x.ndim)
    won = (x == (top if operation["keepdim"] else _kept(top, dims))).to(x.dtype)
    won = won.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
    return _kept(won, dims) if operation["keepdim"] else won


@rule(*WINDOWED, gates=windows_won)
def maximum(call: Call) -> Energy | tuple[Energy, None]:
    """A gate that lets one of k through: the one that won on the example, each with weight 1/k without data."""
    operation = call.operation
    if call.gates == "data":
        return _with_indices(call, _take(operation))
    return _with_indices(call, _mean(operation))


@rule(aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default)
def fractional_maximum(call: Call) -> Energy | tuple[Energy, None]:
    """Windows of random sizes, drawn anew for every batch, and the gate of `maximum`."""
    if call.gates != "data":
        raise call.unsupported("fractional max pooling needs gates='data'")
    return _with_indices(call, _take(call.operation))


@rule(aten.amax.default, aten.amin.default, gates=axes_won)
def extreme(call: Call) -> Energy:
    """The largest or smallest of k entries: `maximum` over whole axes; entries that tie share evenly."""
    value = call["self"]
    dims = _dims(call["dim"], value.ndim)
    winners = (value == (call.result if call["keepdim"] else _kept(call.result, dims))).double()
    return _select(call, winners, dims)


@rule(aten.max.dim, aten.min.dim, gates=axes_won)
def extreme_with_index(call: Call) -> tuple[Energy, None]:
    """The same over one axis, with the winner as a second result."""
    index = call.result[1] if call["keepdim"] else call.result[1].unsqueeze(call["dim"])
    winners = torch.zeros_like(call["self"], dtype=torch.double).scatter(call["dim"], index, 1.0)
    return _select(call, winners, _dims(call["dim"], winners.ndim)), None


def _select(call: Call, winners: Tensor, dims: tuple[int, ...]) -> Energy:
    """Let each group's winners through; without data, where all are, each with 1/k of the energy."""
    x, keepdim, data = call.signal("self"), call["keepdim"], call.gates == "data"
    assert x.labels is not None
    winners = winners if data else torch.ones_like(winners)
    number = winners.sum(dims, keepdim=True)
    gates = (winners / (number.square() if data else number)).to(call.program.dtype)
    labels = call.program.channels.merge(x.labels, x.shape, dims, forced=True)
    labels = labels if keepdim else labels.squeeze(dims)
    run = Function(lambda e: (e * gates).sum(dims, keepdim=keepdim), least_exponent(gates))
    return call.program.step(run, [x], labels)


def window_sums(operation: Operation) -> Callable[[Tensor], Tensor] | None:
    """Give a weighted sum of what each entry of a maximum or a spread is taken over; None where that is not known."""
    op, dim = operation.op, operation["dim"]
    if op in WINDOWED:
        return _mean(operation)
    if op in REDUCING:
        return lambda x: x.sum(_dims(dim, x.ndim), keepdim=bool(operation["keepdim"]))
    if op in ORDERING:
        return lambda x: x.sum(dim, keepdim=True).expand(_first(operation.result).shape)
    return (lambda x: x.cumsum(dim)) if op in RUNNING else None


def _mean(operation: Operation) -> Callable[[Tensor], Tensor]:
    ndim, output_size = _ndim(operation), operation["output_size"]
    if output_size is not None:
        adaptive = getattr(F, f"adaptive_avg_pool{ndim}d")
        return lambda e: adaptive(e, output_size)
    size, stride, padding, dilation = _settings(operation)
    if any(d != 1 for d in dilation):
        return lambda e: _dilated_mean(e, operation)
    mean, ceil = getattr(F, f"avg_pool{ndim}d"), bool(operation["ceil_mode"])
    return lambda e: mean(e, size, stride, padding, ceil, False)


def _with_indices(call: Call, fn: Callable[[Tensor], Tensor]) -> Energy | tuple[Energy, None]:
    energy = pooled(call, fn)
    return energy if isinstance(call.result, Tensor) else (energy, None)


def _ndim(operation: Operation) -> int:
    return len(operation["output_size"] or operation["kernel_size"])


def _settings(operation: Operation) -> list[list[int]]:
    """Kernel size, stride, padding and dilation by axis."""
    size = per_axis(operation["kernel_size"], _ndim(operation))
    return [size, *(per_axis(operation[name], len(size), size) for name in ("stride", "padding", "dilation"))]


def _winner(operation: Operation) -> Tensor:
    """Number, among the inputs of a channel, of the one that won in each window."""
    if not isinstance(operation.result, Tensor):
        indices: Tensor = operation.result[1]
        return indices
    size, stride, padding, dilation = _settings(operation)
    pool = getattr(F, f"max_pool{len(size)}d")
    _, winner = pool(
        operation["self"], size, stride, padding, dilation, ceil_mode=bool(operation["ceil_mode"]), return_indices=True
    )
    return winner  # type: ignore[no-any-return]


def _take(operation: Operation) -> Callable[[Tensor], Tensor]:
    winner, ndim = _winner(operation), _ndim(operation)
    return lambda e: e.flatten(-ndim).gather(-1, winner.flatten(-ndim)).reshape(winner.shape)


def _dilated_mean(e: Tensor, operation: Operation) -> Tensor:
    """The mean of the entries in each window whose entries lie apart; what pads it does not count."""
    winner, ndim, settings = _winner(operation), _ndim(operation), list(zip(*_settings(operation), strict=True))
    outs = winner.shape[-ndim:]
    reach = [d * (k - 1) + s * (n - 1) + 1 for n, (k, s, _, d) in zip(outs, settings, strict=True)]
    room = [(p, max(0, r - p - n)) for r, n, (_, _, p, _) in zip(reach, e.shape[-ndim:], settings, strict=True)]
    padding = [side for pair in reversed(room) for side in pair]
    padded, counted = F.pad(e, padding), F.pad(torch.ones_like(e[:1, :1]), padding)
    total, number = torch.zeros_like(winner, dtype=e.dtype), torch.zeros_like(winner[:1, :1], dtype=e.dtype)
    for taps in itertools.product(*(range(k) for k, *_ in settings)):
        starts = zip(taps, outs, settings, strict=True)
        where: tuple[Any, ...] = (..., *(slice(d * t, d * t + s * (n - 1) + 1, s) for t, n, (_, s, _, d) in starts))
        total, number = total + padded[where], number + counted[where]
    return total / number


def _first(result: Any) -> Tensor:
    top: Tensor = result if isinstance(result, Tensor) else result[0]
    return top


def _dims(dims: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes that are reduced, all where none is named, in order."""
    named = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(d % ndim for d in named or range(ndim)))


def _kept(result: Tensor, dims: Sequence[int]) -> Tensor:
    for d in dims:
        result = result.unsqueeze(d)
    return result
