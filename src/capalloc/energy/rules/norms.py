"""Normalisation layers with frozen statistics: affine, with a constant path that differs from place to place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capalloc.energy.program import Energy
from capalloc.energy.rules.parametric import scale
from capalloc.energy.rules.registry import Call, rule

aten = torch.ops.aten


@rule(aten.layer_norm.default)
def layer_norm(call: Call) -> Energy:
    """The mean and standard deviation of each position are constants."""
    shape = call["normalized_shape"]
    x = _value(call)
    dims = tuple(range(x.ndim - len(shape), x.ndim))
    return _affine(call, *_statistics(x, dims, call["eps"]), shape)


@rule(aten.group_norm.default)
def group_norm(call: Call) -> Energy:
    """The mean and standard deviation of each example's groups of channels are constants."""
    x = _value(call)
    groups = x.reshape(len(x), call["num_groups"], -1)
    mean, std = (s.expand(groups.shape).reshape(x.shape) for s in _statistics(groups, (2,), call["eps"]))
    return _affine(call, mean, std, _channel_shape(x))


@rule(aten.instance_norm.default)
def instance_norm(call: Call) -> Energy:
    """The mean and standard deviation of each example's channels, or the running ones, are constants."""
    x = _value(call, frozen=not call["use_input_stats"])
    shape = _channel_shape(x)
    if call["use_input_stats"]:
        mean, std = _statistics(x, tuple(range(2, x.ndim)), call["eps"])
    else:
        mean, std = call["running_mean"], (call["running_var"] + call["eps"]).sqrt()
        mean, std = (s.to(x.dtype).reshape(shape) for s in (mean, std))
    return _affine(call, mean, std, shape)


@rule(aten.rms_norm.default)
def rms_norm(call: Call) -> Energy:
    """The root mean square of each position is a constant."""
    shape = call["normalized_shape"]
    x = _value(call)
    dims = tuple(range(x.ndim - len(shape), x.ndim))
    eps = torch.finfo(call["input"].dtype).eps if call["eps"] is None else call["eps"]
    return _affine(call, None, (x.square().mean(dims, keepdim=True) + eps).sqrt(), shape)


def _affine(call: Call, mean: Tensor | None, std: Tensor, shape: Sequence[int]) -> Energy:
    """(x - mean) / std * gamma + beta, with gamma and beta of the given shape.

    The mean's path and beta's start at the constant and meet without a gate between them: they are one path, of
    weight beta - mean * gamma / std, and its parameter is beta. That weight is another one at every position, so
    the parameter's leaf is 1 and the squared weight is what follows it.
    """
    program = call.program
    gamma, beta = (call.weight(name) if name in call.args else None for name in ("weight", "bias"))
    out = program.gate(call.signal("input"), std.square().reciprocal())
    offset = None if mean is None else -mean / std
    if offset is not None and beta is None:
        out, offset = program.add(out, program.fixed(offset)), None
    if gamma is not None:
        out = scale(call, out, program.move(lambda w: w.reshape(shape), gamma))
        offset = None if offset is None else offset * call["weight"].reshape(shape)
    if beta is None:
        return out
    value = call["bias"].to(program.dtype).reshape(shape) + (0 if offset is None else offset)
    one = program.move(lambda b: b.reshape(shape), program.revalue(beta, torch.ones_like(call["bias"])))
    return program.add(out, program.gate(program.begin(one), value.square()))


def _value(call: Call, frozen: bool = False) -> Tensor:
    if call.gates != "data" and not frozen:
        raise call.unsupported("the statistics that it normalises by depend on the inputs, which needs gates='data'")
    x: Tensor = call["input"]
    return x.to(call.program.dtype)


def _statistics(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return mean, (variance + eps).sqrt()


def _channel_shape(x: Tensor) -> list[int]:
    return [-1, *[1] * (x.ndim - 2)]
