"""Data movement: every output entry is one input entry, or nothing."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.nn import functional as F

from capalloc._energy.program import Energy
from capalloc._energy.rules.any_linear_operator import linear_operator
from capalloc._energy.rules.registration import Call, Traced, rule

aten = torch.ops.aten


@rule(aten.view.default, aten._unsafe_view.default)
def view(call: Call) -> Energy:
    """Another shape; energies need not lie in memory as the values do, copies of which were skipped."""
    energy = call.energy("self")
    assert energy is not None
    return call.program.move(lambda e: e.reshape(call["size"]), energy)


@rule(
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.moveaxis.int,
    aten.moveaxis.intlist,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.mT.default,
    aten.numpy_T.default,
    aten.ravel.default,
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


@rule(aten.index.Tensor, aten.gather.default, aten.index_select.default)
def pick(call: Call) -> Any:
    """Entries by their places: one that is picked twice is one unit to what reads it, which labels do not tell."""
    read: Traced = call.args["self"]
    places = torch.arange(read.value.numel(), device=read.value.device).reshape(read.value.shape)
    picked = call.replaced("self")(places)
    if read.energy is not None and read.energy.is_signal and len(picked.unique()) < picked.numel():
        call.program.channels.exact = False
    return move(call) if call.op is aten.index.Tensor else linear_operator(call)


@rule(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default)
def cast(call: Call) -> Energy | None:
    return call.energy("self")


@rule(aten.pad.default)
def pad(call: Call) -> Any:
    """Reflected, replicated and circular padding move data; padding by a constant other than 0 starts paths there."""
    if call.args.get("mode", "constant") == "constant" and call["value"]:
        return linear_operator(call)
    return call.program.move(call.replaced("self"), call.signal("self"))


@rule(aten.cat.default, aten.stack.default)
def join(call: Call) -> Energy:
    """Several tensors side by side."""
    run = call.replaced("tensors")
    if _is_weight(call):
        read = call.args["tensors"]
        parts = [call.program.squares(t.value) if t.energy is None else t.energy for t in read]
        return call.program.move(lambda *parts: run(list(parts)), *parts)
    terms = [call.program.move(lambda e, s=item.shape: e.expand(s), term) for item, term in _parts(call)]
    return call.program.move(lambda *parts: run(list(parts)), *terms)


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
def split(call: Call) -> tuple[Energy, ...]:
    """One tensor in several pieces."""
    energy, run = call.energy("self"), call.replaced("self")
    assert energy is not None
    return tuple(call.program.move(lambda e, k=k: run(e)[k], energy) for k in range(len(call.result)))


@rule(aten.embedding.default)
def embedding(call: Call) -> Energy:
    """Rows of a parameter, such as positions: each output entry is one of its entries."""
    energy = call.energy("weight")
    assert energy is not None
    return call.program.move(lambda w: F.embedding(call["indices"], w), energy)


@rule(aten.dropout.default)
def no_dropout(call: Call) -> Energy | None:
    """Dropout in evaluation mode; with a mask of its own it is exported as `native_dropout`."""
    assert not call["train"]
    return call.energy("input")


@rule(aten.native_dropout.default)
def dropout(call: Call) -> tuple[Energy | None, None]:
    """Nothing is dropped in evaluation mode; a model that drops all the same gates by its mask."""
    energy = call.energy("input")
    if energy is None or not call["train"]:
        return energy, None
    kept = call.result[1] / (1 - call["p"])
    return call.program.gate(energy, kept.double().square()), None


@rule(operator.getitem)
def getitem(call: Call) -> Energy | None:
    energies, k = call.args["0"].energy, call.args["1"]
    chosen: Energy | None = energies[k]
    return chosen


def _parts(call: Call) -> list[tuple[torch.Tensor, Energy]]:
    return list(zip(call["tensors"], call.signals("tensors"), strict=True))


def _is_weight(call: Call) -> bool:
    """Tell whether parameters are put side by side with nothing but zeros: still a weight."""
    energies = [item.energy for item in call.args["tensors"]]
    if any(e is not None and e.is_signal for e in energies):
        return False
    return not any(bool(item.value.any()) for item, e in zip(call.args["tensors"], energies, strict=True) if e is None)
