"""Normalisation layers with frozen statistics: affine, with a constant path that differs from place to place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from capalloc._energy.program import Energy
from capalloc._energy.rules.parametric import scale
from capalloc._energy.rules.registry import Call, rule

aten = torch.ops.aten


Statistics = tuple[Tensor | None, Tensor, Sequence[int]]  # mean, standard deviation, shape of gamma and beta


def _layer(given: Mapping[str, Any]) -> Statistics:
    """Of each position."""
    x, shape = given["input"], given["normalized_shape"]
    return *_moments(x, tuple(range(x.ndim - len(shape), x.ndim)), given["eps"]), shape


def _group(given: Mapping[str, Any]) -> Statistics:
    """Of each example's groups of channels."""
    x = given["input"]
    groups = x.reshape(len(x), given["num_groups"], -1)
    mean, std = (s.expand(groups.shape).reshape(x.shape) for s in _moments(groups, (2,), given["eps"]))
    return mean, std, _channel_shape(x)


def _instance(given: Mapping[str, Any]) -> Statistics:
    """Of each example's channels, or the running ones."""
    x = given["input"]
    shape = _channel_shape(x)
    if given["use_input_stats"]:
        return *_moments(x, tuple(range(2, x.ndim)), given["eps"]), shape
    mean, std = given["running_mean"], (given["running_var"] + given["eps"]).sqrt()
    return mean.to(x.dtype).reshape(shape), std.to(x.dtype).reshape(shape), shape


def _root_mean_square(given: Mapping[str, Any]) -> Statistics:
    """Of each position, about zero."""
    x, shape = given["input"], given["normalized_shape"]
    dims = tuple(range(x.ndim - len(shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if given["eps"] is None else given["eps"]
    return None, (x.square().mean(dims, keepdim=True) + eps).sqrt(), shape


#: Normalisation layers: operator -> its statistics, from its arguments.
NORMS: dict[Any, Callable[[Mapping[str, Any]], Statistics]] = {
    aten.layer_norm.default: _layer,
    aten.group_norm.default: _group,
    aten.instance_norm.default: _instance,
    aten.rms_norm.default: _root_mean_square,
}


@rule(*NORMS)
def norm(call: Call) -> Energy:
    """The statistics that an example is normalised by are constants."""
    given = {name: call[name] for name in call.args}
    if given.get("eps", 0) is None:
        given["eps"] = torch.finfo(given["input"].dtype).eps  # of the model's precision, not of the energies'
    return _affine(call, *NORMS[call.op](given | {"input": given["input"].to(call.program.dtype)}))


def normalise(op: Any, given: Mapping[str, Any], at: Mapping[str, Any]) -> Tensor:
    """The normalisation of `given` by the statistics of the arguments `at`."""
    mean, std, shape = NORMS[op](at)
    y: Tensor = given["input"] / std if mean is None else (given["input"] - mean) / std
    if given["weight"] is not None:
        y = y * given["weight"].reshape(shape)
    return y if given.get("bias") is None else y + given["bias"].reshape(shape)


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


def _moments(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return mean, (variance + eps).sqrt()


def _channel_shape(x: Tensor) -> list[int]:
    return [-1, *[1] * (x.ndim - 2)]
