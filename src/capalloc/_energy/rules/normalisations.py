"""Normalisation layers with frozen statistics: affine, with a constant path that differs from place to place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from capalloc._energy.maps import Reshaped
from capalloc._energy.program import Energy
from capalloc._energy.rules.dense_and_convolution import scale
from capalloc._energy.rules.registration import Call, rule
from capalloc._operators.calls import Operation, invoke

aten = torch.ops.aten
Statistics = tuple[Tensor | None, Tensor, Sequence[int]]  # mean, standard deviation, shape of gamma and beta


def _of_position(given: Mapping[str, Any]) -> Statistics:
    x, shape = given["input"], given["normalized_shape"]
    return *_moments(x, tuple(range(x.ndim - len(shape), x.ndim)), given["eps"]), shape


def _of_group(given: Mapping[str, Any]) -> Statistics:
    x = given["input"]
    groups = x.reshape(len(x), given["num_groups"], -1)
    mean, std = (s.expand(groups.shape).reshape(x.shape) for s in _moments(groups, (2,), given["eps"]))
    return mean, std, _channel_shape(x)


def _of_channel(given: Mapping[str, Any]) -> Statistics:
    """Statistics of each example's channels, or of the batch's, or the running ones."""
    x = given["input"]
    shape = _channel_shape(x)
    if given.get("use_input_stats") or given.get("training"):
        batch = (0,) if given.get("training") else ()
        return *_moments(x, (*batch, *range(2, x.ndim)), given["eps"]), shape
    mean, std = given["running_mean"], (given["running_var"] + given["eps"]).sqrt()
    return mean.to(x.dtype).reshape(shape), std.to(x.dtype).reshape(shape), shape


def _root_mean_square(given: Mapping[str, Any]) -> Statistics:
    x, shape = given["input"], given["normalized_shape"]
    dims = tuple(range(x.ndim - len(shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if given["eps"] is None else given["eps"]
    return None, (x.square().mean(dims, keepdim=True) + eps).sqrt(), shape


def inverse_deviation(operation: Operation) -> Tensor:
    """Read 1 / std, entry by entry."""
    _, std, _ = STATISTICS[operation.op](operation.args)
    return std.reciprocal().expand(operation["input"].shape)


STATISTICS: dict[Any, Callable[[Mapping[str, Any]], Statistics]] = {
    aten.layer_norm.default: _of_position,
    aten.group_norm.default: _of_group,
    aten.instance_norm.default: _of_channel,
    aten.rms_norm.default: _root_mean_square,
    aten.batch_norm.default: _of_channel,
    aten._native_batch_norm_legit_no_training.default: _of_channel,
}


@rule(*STATISTICS, gates=inverse_deviation)
def norm(call: Call) -> Energy | tuple[Energy, None, None]:
    """(x - mean) / std * gamma + beta, with the statistics that an example is normalised by as constants.

    The mean's path and beta's start at the constant and meet without a gate between them: they are one path, of
    weight beta - mean * gamma / std, and its parameter is beta. Where that weight is another one at every position
    the parameter's leaf is 1, and the squared weight follows it.
    """
    program, given = call.program, dict(call.operation.args)
    if given.get("training"):
        raise call.unsupported("statistics of the batch let examples interact")
    if given["eps"] is None:
        given["eps"] = torch.finfo(given["input"].dtype).eps  # of the model's precision, not of the energies'
    mean, std, shape = STATISTICS[call.op](given | {"input": given["input"].to(program.dtype)})
    gamma, beta = (call.weight(name) if name in call.args else None for name in ("weight", "bias"))
    out, within = call.signal("input"), std.square().reciprocal()
    offset = None if mean is None else -mean / std
    # Statistics of channels are part of the map of gamma; a first layer that is taken whole has them before it.
    at_once = gamma is not None and beta is not None and within.ndim == len(shape) and program.mix is None
    if not at_once:
        out = program.gate(out, within)
    if offset is not None and beta is None:
        out, offset = program.add(out, program.fixed(offset)), None
    if gamma is not None:
        out = scale(call, out, program.move(Reshaped(tuple(shape)), gamma), within if at_once else None)
        offset = None if offset is None else offset * call["weight"].reshape(shape)
    if beta is not None:
        value = call["bias"].to(program.dtype).reshape(shape) + (0 if offset is None else offset)
        alike = value.numel() == call["bias"].numel()
        leaf = program.revalue(beta, value.reshape(beta.shape) if alike else torch.ones_like(call["bias"]))
        start = program.begin(program.move(Reshaped(tuple(shape)), leaf))
        out = program.add(out, start if alike else program.gate(start, value.double().square()))
    return out if isinstance(call.result, Tensor) else (out, None, None)


def normalise(op: Any, given: Mapping[str, Any], at: Mapping[str, Any]) -> Tensor:
    """Normalise `given` by the statistics of the arguments `at`."""
    if op not in STATISTICS:  # a user's own, whose statistics are not known
        return invoke(op, given)  # type: ignore[no-any-return]
    mean, std, shape = STATISTICS[op](at)
    y: Tensor = given["input"] / std if mean is None else (given["input"] - mean) / std
    if given["weight"] is not None:
        y = y * given["weight"].reshape(shape)
    return y if given.get("bias") is None else y + given["bias"].reshape(shape)


def _moments(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return mean, (variance + eps).sqrt()


def _channel_shape(x: Tensor) -> list[int]:
    return [-1, *[1] * (x.ndim - 2)]
