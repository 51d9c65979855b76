"""Elementwise activations: frozen gates."""

from __future__ import annotations

import torch

from capalloc._energy.gates import gaussian_squared_slope, squared_slope
from capalloc._energy.program import Energy
from capalloc._energy.rules.registry import Call, rule
from capalloc._graph.operators import ACTIVATIONS

aten = torch.ops.aten


@rule(*ACTIVATIONS, decouples=True)
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
