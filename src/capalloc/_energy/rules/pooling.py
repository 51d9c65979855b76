"""Averages, sums over axes, and maxima."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._energy.program import Energy
from capalloc._energy.rules.registry import Call, rule

aten = torch.ops.aten
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@rule(aten.mean.dim, aten.sum.dim_IntList)
def reduce(call: Call) -> Energy:
    """A mean over k entries has weights 1/k, a sum has weights 1; entries pooled rescale together."""
    x = call.signal("self")
    dims = call.args.get("dim") or list(range(len(x.shape)))
    count = math.prod(x.shape[d] for d in dims)
    weight = 1.0 / count if "mean" in str(call.op) else 1.0
    run = call.replaced("self")
    assert x.labels is not None
    labels = call.program.channels.merge(x.labels, x.shape, tuple(dims))
    if not call.args.get("keepdim"):
        labels = labels.squeeze(tuple(d % len(x.shape) for d in dims))
    return call.program.step(lambda e: run(e) * weight, [x], labels)


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def average(call: Call) -> Energy:
    """Average pooling is a convolution with weights 1/k, so energies take 1/k^2."""
    run = call.replaced("self")
    ones = torch.ones_like(call["self"][:1, :1], dtype=call.program.dtype)
    ndim = len(call["kernel_size"])
    whole = run(ones)
    # Each output has one weight 1/k for all it pools: (sum of weights) / (number pooled).
    size, stride, padding = (_full(call[k], ndim, call["kernel_size"]) for k in ("kernel_size", "stride", "padding"))
    number = F.avg_pool3d(
        ones.reshape(*ones.shape[:2], *[1] * (3 - ndim), *ones.shape[2:]),
        [1] * (3 - ndim) + size,
        [1] * (3 - ndim) + stride,
        [0] * (3 - ndim) + padding,
        ceil_mode=bool(call["ceil_mode"]),
        divisor_override=1,
    ).reshape(whole.shape)
    return _pool(call, lambda e: run(e) * (whole / number))


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_average(call: Call) -> Energy:
    """Output j pools the inputs from floor(j n / m) to ceil((j + 1) n / m)."""
    x, run = call.signal("self"), call.replaced("self")
    sizes = list(call["output_size"])
    weight = torch.ones((), dtype=call.program.dtype)
    for k, m in enumerate(sizes):
        n = x.shape[len(x.shape) - len(sizes) + k]
        number = torch.tensor([-((-(j + 1) * n) // m) - (j * n) // m for j in range(m)], dtype=weight.dtype)
        weight = weight / number.reshape(-1, *[1] * (len(sizes) - 1 - k))
    return _pool(call, lambda e: run(e) * weight)


@rule(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, decouples=True)
def maximum(call: Call) -> Energy:
    """The gate of `windows`."""
    return windows(call, call.result)


@rule(
    aten.max_pool1d_with_indices.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    decouples=True,
)
def maximum_with_indices(call: Call) -> tuple[Energy, None]:
    """The same where the winners are a second result."""
    return windows(call, call.result[0]), None


def windows(call: Call, result: Tensor) -> Energy:
    """A gate that lets one of k through: the one that won on the example, each with weight 1/k without data."""
    ndim = len(call["kernel_size"])
    size, stride, padding, dilation = (
        _full(call[k], ndim, call["kernel_size"]) for k in ("kernel_size", "stride", "padding", "dilation")
    )
    ceil = bool(call["ceil_mode"])
    if call.gates == "data":
        _, winner = MAX[ndim](call["self"], size, stride, padding, dilation, ceil_mode=ceil, return_indices=True)
        return _pool(call, _take(winner, ndim), result)
    if any(d != 1 for d in dilation):
        raise call.unsupported("dilated max pooling needs gates='data'")
    if ndim == 1:
        return _pool(call, lambda e: F.avg_pool1d(e, size, stride, padding, ceil, False), result)
    return _pool(call, lambda e: AVERAGE[ndim](e, size, stride, padding, ceil, False), result)


@rule(
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default, decouples=True
)
def adaptive_maximum(call: Call) -> tuple[Energy, None]:
    """The adaptive windows of `adaptive_average`, the gate of `maximum`."""
    sizes = call["output_size"]
    ndim = len(sizes)
    if call.gates == "data":
        return _pool(call, _take(call.result[1], ndim), call.result[0]), None
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[ndim]
    return _pool(call, lambda e: pool(e, sizes), call.result[0]), None


@rule(aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default, decouples=True)
def fractional_maximum(call: Call) -> tuple[Energy, None]:
    """Windows of random sizes, drawn anew for every batch, and the gate of `maximum`."""
    if call.gates != "data":
        raise call.unsupported("fractional max pooling needs gates='data'")
    return _pool(call, _take(call.result[1], len(call["output_size"])), call.result[0]), None


@rule(aten.amax.default, aten.amin.default, decouples=True)
def extreme(call: Call) -> Energy:
    """The largest or smallest of k entries: `maximum` over whole axes; entries that tie share evenly."""
    x, value = call.signal("self"), call["self"]
    dims = call["dim"] or list(range(value.ndim))
    winners = (value == (call.result if call["keepdim"] else _kept(call.result, value.ndim, dims))).double()
    return _select(call, x, winners if call.gates == "data" else torch.ones_like(winners), dims, call["keepdim"])


@rule(aten.max.dim, aten.min.dim, decouples=True)
def extreme_with_index(call: Call) -> tuple[Energy, None]:
    """The same over one axis, with the winner as a second result."""
    x, value, dim = call.signal("self"), call["self"], call["dim"]
    index = call.result[1] if call["keepdim"] else call.result[1].unsqueeze(dim)
    winners = torch.zeros_like(value, dtype=torch.double).scatter(dim, index, 1.0)
    chosen = winners if call.gates == "data" else torch.ones_like(winners)
    return _select(call, x, chosen, [dim], call["keepdim"]), None


def _select(call: Call, x: Energy, winners: Tensor, dims: list[int], keepdim: bool) -> Energy:
    """Let each group's winners through; without data, where all are, each with 1/k of the energy."""
    assert x.labels is not None
    number = winners.sum(dims, keepdim=True)
    gates = winners / (number.square() if call.gates == "data" else number)
    labels = call.program.channels.merge(x.labels, x.shape, dims, forced=True)
    labels = labels if keepdim else labels.squeeze(tuple(d % len(x.shape) for d in dims))
    gates = gates.to(call.program.dtype)
    return call.program.step(lambda e: (e * gates).sum(dims, keepdim=keepdim), [x], labels)


def _kept(result: Tensor, ndim: int, dims: list[int]) -> Tensor:
    for d in sorted(d % ndim for d in dims):
        result = result.unsqueeze(d)
    return result


def _pool(call: Call, fn: object, result: Tensor | None = None) -> Energy:
    x = call.signal("self")
    assert x.labels is not None
    shape = tuple((call.result if result is None else result).shape)
    spatial = tuple(k for k in range(2, len(shape)))
    labels = call.program.channels.merge(x.labels, x.shape, spatial, forced=True)
    return call.program.step(fn, [x], labels)  # type: ignore[arg-type]


def _take(winner: Tensor, ndim: int) -> object:
    def take(e: Tensor) -> Tensor:
        return e.flatten(-ndim).gather(-1, winner.flatten(-ndim)).reshape(winner.shape)

    return take


def _full(value: int | list[int] | None, ndim: int, kernel: list[int]) -> list[int]:
    if value is None or value == []:
        return list(kernel)
    return [value] * ndim if isinstance(value, int) else list(value) * (ndim // len(value))
