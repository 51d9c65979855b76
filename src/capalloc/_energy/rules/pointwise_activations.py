"""Elementwise activations: frozen gates, as `rule(operator, slope=...)` has them."""

from __future__ import annotations

import torch

from capalloc._energy.rules.registration import rule
from capalloc._operators.records import of_kind

aten = torch.ops.aten

rule(aten.relu.default, slope=lambda z: z > 0)
rule(*(op for op in of_kind("activation") if op != aten.relu.default), slope="autograd")
