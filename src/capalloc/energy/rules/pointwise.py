"""Elementwise activations: frozen gates."""

from __future__ import annotations

import torch

from capalloc.energy.gates import gaussian_squared_slope, squared_slope
from capalloc.energy.program import Energy
from capalloc.energy.rules.registry import Call, rule

aten = torch.ops.aten


@rule(
    aten.relu.default,
    aten.leaky_relu.default,
    aten.abs.default,
    aten.gelu.default,
    aten.tanh.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.elu.default,
    aten.celu.default,
    aten.selu.default,
    aten.softplus.default,
    aten.mish.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.relu6.default,
    aten.log_sigmoid.default,
    aten.erf.default,
    aten.sin.default,
    aten.cos.default,
    aten.exp.default,
    aten.log.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.square.default,
    aten.clamp.default,
    aten.pow.Tensor_Scalar,
    decouples=True,
)
def activation(call: Call) -> Energy:
    """Multiply by phi'(z)^2: on the examples, on a unit Gaussian, or 1."""
    name = next(iter(call.args))
    x, phi = call.signal(name), call.replaced(name)
    if call.gates == "unit":
        return x
    if call.gates == "gaussian":
        return call.program.gate(x, gaussian_squared_slope(phi))
    if call.op is aten.relu.default:
        return call.program.gate(x, call.result > 0)
    return call.program.gate(x, squared_slope(phi, call[name]))
