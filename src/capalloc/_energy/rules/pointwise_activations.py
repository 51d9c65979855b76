"""Elementwise activations: frozen gates, as `rule(operator, slope=...)` has them."""

from __future__ import annotations

import torch

from capalloc._energy.program import Energy
from capalloc._energy.rules.registration import Call, activation, rule
from capalloc._operators.records import of_kind

aten = torch.ops.aten

rule(aten.relu.default, slope=lambda z: z > 0)


@rule(aten.relu.default, override=True)
def relu(call: Call) -> Energy:
    if call.gates != "data":
        return activation(call)
    return call.program.open_where(call.signal("self"), call["self"])


rule(*(op for op in of_kind("activation") if op != aten.relu.default), slope="autograd")
