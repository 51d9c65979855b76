"""Data movement: every output entry is one input entry, or nothing."""

from __future__ import annotations

import operator

import torch

from capalloc.energy.program import Energy
from capalloc.energy.rules.registry import Call, rule

aten = torch.ops.aten


@rule(
    aten.view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.flip.default,
    aten.roll.default,
)
def move(call: Call) -> Energy:
    """The same movement on energies and on channel labels."""
    energy = call.energy("self")
    assert energy is not None
    return call.program.move(call.replaced("self"), energy)


@rule(aten._to_copy.default)
def cast(call: Call) -> Energy | None:
    """A change of precision."""
    return call.energy("self")


@rule(aten.pad.default)
def pad(call: Call) -> Energy:
    """Reflected, replicated and circular padding move data; constant padding adds paths unless it is 0."""
    if call.args.get("mode", "constant") == "constant" and call["value"]:
        raise call.unsupported("padding by a constant other than 0 is not known")
    return call.program.move(call.replaced("self"), call.signal("self"))


@rule(aten.cat.default, aten.stack.default)
def join(call: Call) -> Energy:
    """Several tensors side by side."""
    run = call.replaced("tensors")
    terms = [call.program.move(lambda e, s=item.shape: e.expand(s), term) for item, term in _parts(call)]
    return call.program.move(lambda *parts: run(list(parts)), *terms)


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
def split(call: Call) -> tuple[Energy, ...]:
    """One tensor in several pieces."""
    energy, run = call.signal("self"), call.replaced("self")
    return tuple(call.program.move(lambda e, k=k: run(e)[k], energy) for k in range(len(call.result)))


@rule(operator.getitem)
def getitem(call: Call) -> Energy | None:
    """One of several results."""
    energies, k = call.args["0"].energy, call.args["1"]
    chosen: Energy | None = energies[k]
    return chosen


def _parts(call: Call) -> list[tuple[torch.Tensor, Energy]]:
    return list(zip(call["tensors"], call.signals("tensors"), strict=True))
