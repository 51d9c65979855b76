"""Parameters used in several places: every use asks a rescaling for the same factor."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc.energy.program import Edge, Program


def relate_uses(program: Program) -> None:
    """Balance the channels around all uses of each shared parameter."""
    for slot in program.params.values():
        positions = _positions(program, slot)
        uses = [edge for edge in program.edges if edge.weight in positions]
        for edge in uses[1:]:
            first, again = (_by_leaf(program, slot, e, positions[e.weight]) for e in (uses[0], edge))
            if first is None or again is None:
                program.channels.exact = False
            else:
                program.channels.balance(first[0], first[1], again[0], again[1])


def _positions(program: Program, leaf: int) -> dict[int, Tensor | None]:
    """Slots made of the leaf alone -> which leaf entry stands where, None where that is not known."""
    values = program.values[leaf]
    found: dict[int, Tensor | None] = {leaf: torch.arange(values.numel(), dtype=torch.float64).reshape(values.shape)}
    for step in program.steps:
        if program.is_signal[step.out] or not any(slot in found for slot in step.args):
            continue
        entries = found.get(step.args[0]) if len(step.args) == 1 else None
        moved = None
        if entries is not None:
            if step.moves:
                moved = step.map(entries)
            elif program.values[step.out].shape == entries.shape:
                moved = entries  # scaled in place
        found[step.out] = moved
    return found


def _by_leaf(program: Program, leaf: int, edge: Edge, entries: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """(written, read) labels of one use, for every entry of the leaf; 0 where this use has none."""
    if entries is None:
        return None
    size = program.values[leaf].numel()
    where = entries.reshape(-1).long()
    sides = []
    for labels in (edge.written, edge.read):
        side = torch.zeros(size, dtype=torch.long)
        side[where] = labels.expand(entries.shape).reshape(-1)
        sides.append(side)
    return sides[0], sides[1]
