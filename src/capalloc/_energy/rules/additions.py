"""Additions: residual sums, biases, constants; selections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from capalloc._energy.program import Energy
from capalloc._energy.rules.dense_and_convolution import times_constant
from capalloc._energy.rules.registration import Call, Traced, rule, spread_over
from capalloc._operators.calls import Operation
from capalloc._operators.records import STEP_FUNCTIONS, named

aten = torch.ops.aten


@rule(aten.add.Tensor, aten.sub.Tensor)
def add(call: Call) -> Energy:
    """Energies add; channels of the two terms rescale together. A signal and itself are one path."""
    left, right = call.args["self"], call.args["other"]
    alpha = float(call["alpha"])
    if _is_zero(left) or _is_zero(right):
        kept = right if _is_zero(left) else left
        energy = call.as_signal(kept)
        return spread_over(
            call, times_constant(call, energy, alpha) if kept is right and alpha != 1 else energy, call.result
        )
    if (alone := _one_signal(left, right)) is not None:
        return times_constant(call, alone, 1 - alpha if call.op is aten.sub.Tensor else 1 + alpha)
    first, second = call.as_signal(left), call.as_signal(right)
    return call.program.add(first, second if alpha == 1 else times_constant(call, second, alpha))


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def subtract_from(call: Call) -> Energy:
    """c - alpha z."""
    energy = call.signal("self")
    alpha = float(call["alpha"])
    if (alone := _one_signal(call.args["self"], call.args["other"])) is not None:
        return times_constant(call, alone, 1 - alpha)
    scaled = energy if alpha == 1 else times_constant(call, energy, alpha)
    other = call.args["other"]
    whole = scaled if _is_zero(other) else call.program.add(scaled, call.as_signal(other))
    return spread_over(call, whole, call.result)


@rule(aten.neg.default, aten.clone.default, aten.contiguous.default, aten.alias.default)
def unchanged(call: Call) -> Energy | None:
    """Energies do not see a sign or a copy."""
    return call.energy("self")


@rule(aten.detach.default, *named(STEP_FUNCTIONS))
def blocked(call: Call) -> None:
    """No gradient passes, so no path does."""


def chosen_first(operation: Operation) -> Tensor:
    """Read 1 where the first of the two is let through."""
    condition: Tensor = operation["condition"]
    return condition.to(operation.result.dtype).expand(operation.result.shape)


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, gates=chosen_first)
def where(call: Call) -> Energy:
    """Each entry lets one of two through: a gate that the condition steers."""
    chosen = call["condition"]
    left, right = call.signal("self"), call.signal("other")
    # What both have in common is linear, and parameters of either may make up for it.
    call.program.bent |= call.energy("self") is not None and call.energy("other") is not None
    first, second = chosen > 0, chosen < 1  # of an open choice, as fields have it, both go through
    return call.program.add(call.program.gate(left, first), call.program.gate(right, second))


def _one_signal(left: Any, right: Any) -> Energy | None:
    """Give the signal that is added to itself; None where two tensors, or two tensors of parameters, are added."""
    first, second = (a.energy if isinstance(a, Traced) else None for a in (left, right))
    same = first is not None and second is not None and first.is_signal and first.slot == second.slot
    return first if same and torch.equal(left.value, right.value) else None  # z - tanh(z) is none, with gates of 1


def _is_zero(argument: Any) -> bool:
    if isinstance(argument, Traced):
        if argument.energy is not None:
            return False
        argument = argument.value
    return not bool(argument.any()) if isinstance(argument, Tensor) else argument == 0
