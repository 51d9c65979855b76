"""Linear maps with weights: dense layers, convolutions, products with a parameter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc.energy.program import Energy
from capalloc.energy.rules.registry import Call, rule

aten = torch.ops.aten
CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)


@rule(aten.linear.default)
def linear(call: Call) -> Energy:
    """y = x W' + b: energies through the squared entries."""
    x, weight = call.signal("input"), call.weight("weight")
    assert weight is not None
    out = last_axis_product(call, x, weight)
    return add_bias(call, out, channel_axis=-1)


@rule(*CONVOLUTIONS)
def convolution(call: Call) -> Energy:
    """Convolution with squared weights; a channel is the unit that rescales, at all positions alike."""
    program, x, weight = call.program, call.signal("input"), call.weight("weight")
    assert weight is not None
    assert x.labels is not None
    groups, ndim = call["groups"], len(weight.shape)
    labels = program.channels.merge(x.labels, x.shape, (0, *range(2, ndim)), forced=True).reshape(groups, -1)
    per_group = weight.shape[0] // groups
    read = labels.repeat_interleave(per_group, dim=0).reshape(weight.shape[0], -1, *[1] * (ndim - 2))
    channels = program.channels.fresh((weight.shape[0],))
    written = channels.reshape(-1, *[1] * (ndim - 1))
    out_labels = channels.reshape(1, -1, *[1] * (ndim - 2))
    out = program.weigh(call.replaced("input", "weight", bias=None), x, weight, read, written, out_labels)
    return add_bias(call, out, channel_axis=1)


@rule(aten.matmul.default, aten.mm.default)
def matmul(call: Call) -> Energy:
    """x @ W for a two-dimensional weight W."""
    names = [a for a in ("self", "other", "mat2") if a in call.args]
    x, weight = call.signal(names[0]), call.weight(names[1])
    assert weight is not None
    if len(weight.shape) != 2:
        raise call.unsupported("only products with a two-dimensional weight on the right are known")
    transposed = call.program.move(torch.t, weight)
    return last_axis_product(call, x, transposed)


def last_axis_product(call: Call, x: Energy, weight: Energy) -> Energy:
    """x (..., inputs) times weight (outputs, inputs): each entry of the last axis is a channel."""
    assert x.labels is not None
    channels = call.program.channels
    dims = tuple(range(len(x.shape) - 1))
    read = channels.merge(x.labels, x.shape, dims, forced=True).reshape(1, -1)
    written = channels.fresh((weight.shape[0],))
    return call.program.weigh(F.linear, x, weight, read, written.reshape(-1, 1), written)


def add_bias(call: Call, out: Energy, channel_axis: int) -> Energy:
    """Add the paths that start at the constant input with the argument "bias", one per channel."""
    bias = call.weight("bias")
    if bias is None:
        return out
    shape = [1] * len(out.shape)
    shape[channel_axis] = -1
    return call.program.add(out, call.program.begin(call.program.move(lambda b: b.reshape(shape), bias)))


def scale(call: Call, x: Energy, weight: Energy) -> Energy:
    """x * w, entry by entry; entries of x that share a weight rescale together."""
    assert x.labels is not None
    program = call.program
    shape = torch.broadcast_shapes(x.shape, weight.shape)
    aligned = (1,) * (len(shape) - len(weight.shape)) + weight.shape
    shared = tuple(k for k, (n, w) in enumerate(zip(shape, aligned, strict=True)) if w == 1 and n != 1)
    read = program.channels.merge(x.labels, shape, shared, forced=True)
    written = program.channels.fresh(aligned)
    weight = program.move(lambda w: w.reshape(aligned), weight)
    return program.weigh(torch.mul, x, weight, read, written, written)


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm(call: Call) -> tuple[Energy, None, None]:
    """Frozen statistics: y = (x - mean) / std * gamma + beta is affine.

    The mean's path and beta's path start at the constant and meet without a gate between them: they are one
    path, of weight beta - mean * gamma / std, and its parameter is beta.
    """
    program, x = call.program, call.signal("input")
    shape = [1, -1, *[1] * (len(x.shape) - 2)]
    mean, std = call["running_mean"], (call["running_var"] + call["eps"]).sqrt()
    out = program.gate(x, (1 / std.to(program.dtype)).square().reshape(shape))
    offset = -mean / std
    gamma, beta = call.weight("weight"), call.weight("bias")
    if gamma is not None:
        out = scale(call, out, program.move(lambda w: w.reshape(shape), gamma))
        offset = offset * call["weight"]
    if beta is not None:
        value = offset + call["bias"]
        bias = program.revalue(beta, value)
        return program.add(out, program.begin(program.move(lambda b: b.reshape(shape), bias))), None, None
    if bool((offset != 0).any()):
        return program.add(out, program.fixed(offset.reshape(shape))), None, None
    return out, None, None


@rule(aten.mul.Tensor)
def multiply(call: Call) -> Energy:
    """A product with a parameter weighs; a product with a constant is a fixed gate."""
    a, b = call.energy("self"), call.energy("other")
    if a is not None and b is not None:
        if a.is_signal and b.is_signal:
            raise call.unsupported("both factors depend on the inputs, and which one is the gate is not known")
        if not a.is_signal and not b.is_signal:
            return call.program.step(torch.mul, [a, b], None)
        return scale(call, a, b) if a.is_signal else scale(call, b, a)
    energy, constant = (a, call["other"]) if a is not None else (b, call["self"])
    assert energy is not None
    return times_constant(call, energy, constant)


@rule(aten.div.Tensor)
def divide(call: Call) -> Energy:
    """Division by a constant."""
    energy = call.energy("self")
    if call.energy("other") is not None or energy is None:
        raise call.unsupported("only division by a constant is known")
    other = call["other"]
    return times_constant(call, energy, 1 / (other.to(call.program.dtype) if isinstance(other, Tensor) else other))


def times_constant(call: Call, energy: Energy, constant: Tensor | float) -> Energy:
    """Energy times the square of a constant."""
    value = constant.to(call.program.dtype) if isinstance(constant, Tensor) else torch.tensor(float(constant))
    return call.program.gate(energy, value.square())
