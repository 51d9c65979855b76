"""Averages and sums, over windows and over axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._energy.maps import Function
from capalloc._energy.program import Energy
from capalloc._energy.rules.registration import Call, rule
from capalloc._operators.calls import per_axis

aten = torch.ops.aten


@rule(aten.mean.dim, aten.sum.dim_IntList)
def reduce(call: Call) -> Energy:
    """A mean over k entries has weights 1/k, a sum has weights 1; entries pooled rescale together."""
    x, run = call.signal("self"), call.replaced("self")
    dims = call.args.get("dim") or list(range(len(x.shape)))
    weight = 1.0 / math.prod(x.shape[d] for d in dims) if call.op == aten.mean.dim else 1.0
    assert x.labels is not None
    labels = call.program.channels.merge(x.labels, x.shape, tuple(dims))
    if not call.args.get("keepdim"):
        labels = labels.squeeze(tuple(d % len(x.shape) for d in dims))
    return call.program.step(Function(lambda e: run(e) * weight, 2 * math.log2(weight)), [x], labels)


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def average(call: Call) -> Energy:
    """Average pooling is a convolution with weights 1/k, so energies take 1/k^2."""
    run = call.replaced("self")
    ones = torch.ones_like(call["self"][:1, :1], dtype=call.program.dtype)
    more = [1] * (4 - ones.ndim)  # one axis more for sequences, whose pooling takes no divisor
    whole = run(ones)
    # Each output has one weight 1/k for all it pools: (sum of weights) / (number pooled).
    size, stride, padding = (
        per_axis(call[name], ones.ndim - 2, call["kernel_size"]) for name in ("kernel_size", "stride", "padding")
    )
    number = (F.avg_pool3d if ones.ndim == 5 else F.avg_pool2d)(
        ones.reshape(1, 1, *more, *ones.shape[2:]),
        more + size,
        more + stride,
        [0] * len(more) + padding,
        ceil_mode=bool(call["ceil_mode"]),
        divisor_override=1,
    ).reshape(whole.shape)
    return pooled(call, lambda e: run(e) * (whole / number))


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_average(call: Call) -> Energy:
    """Output j pools the inputs from floor(j n / m) to ceil((j + 1) n / m)."""
    x, run, sizes = call.signal("self"), call.replaced("self"), list(call["output_size"])
    weight = torch.ones((), dtype=call.program.dtype)
    for k, m in enumerate(sizes):
        n = x.shape[len(x.shape) - len(sizes) + k]
        number = torch.tensor([-((-(j + 1) * n) // m) - (j * n) // m for j in range(m)], dtype=weight.dtype)
        weight = weight / number.reshape(-1, *[1] * (len(sizes) - 1 - k))
    return pooled(call, lambda e: run(e) * weight)


def pooled(call: Call, fn: Callable[[Tensor], Tensor]) -> Energy:
    """Energies through windows along the axes after examples and channels, whose units rescale together."""
    x = call.signal("self")
    assert x.labels is not None
    labels = call.program.channels.merge(x.labels, x.shape, range(2, len(x.shape)), forced=True)
    least = -2 * math.log2(max(1, math.prod(x.shape[2:])))  # of squared shares of at most the whole map
    return call.program.step(Function(fn, least), [x], labels)
