"""Parameters used in several places: every use asks a rescaling for the same factor."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._energy.maps import Shared
from capalloc._energy.program import Program
from capalloc._energy.program_steps import Edge

Entries = Tensor  # which entry of a parameter stands where, counted from 1; 0 for none


def relate_uses(program: Program) -> None:
    """Relate the channels around all uses of each shared parameter."""
    owners = program.owners()
    for name, leaf in program.params.items():
        derived = {slot for slot, names in owners.items() if name in names}
        uses = [edge for edge in program.edges if edge.weight in derived and not edge.again]
        size = program.values[leaf].numel()
        simple = len(uses) == 1 and program.values[uses[0].weight].numel() <= size and len(owners[uses[0].weight]) == 1
        if uses and not simple:
            entries = _entries(program, leaf, derived)
            known = [(edge, place) for edge in uses if (place := entries[edge.weight]) is not None]
            if len(known) < len(uses):
                program.channels.exact = False
            if known:
                _relate(program, known)


def _entries(program: Program, leaf: int, derived: set[int]) -> dict[int, Entries | None]:
    """Places of the leaf's entries in the slots derived from it, None where they are not known."""
    shape = program.values[leaf].shape
    found: dict[int, Entries | None] = {
        leaf: torch.arange(1, shape.numel() + 1, dtype=torch.float64).reshape(shape),
    }
    for step in program.steps:
        if step.out not in derived:
            continue
        shape = program.values[step.out].shape
        known = [found[slot] if slot in found else torch.zeros(program.values[slot].shape) for slot in step.args]
        moved = None
        if all(entries is not None for entries in known):
            if step.moves:
                moved = step.map(*(entries.double() for entries in known if entries is not None))
            elif isinstance(step.map, Shared):
                moved = None
            elif len(step.args) == 1 and known[0] is not None and getattr(step.map, "by_entry", False):
                moved = known[0].expand(shape)  # scaled by constants
        found[step.out] = moved
    return found


def _relate(program: Program, uses: list[tuple[Edge, Entries]]) -> None:
    """Equal uses of a dense map of entries of its own as classes of one map, others entry by entry."""
    first = uses[0][1]
    if _is_distinct(first) and all(torch.equal(first, place) and _is_dense(edge) for edge, place in uses):
        _serve(program, [edge for edge, _ in uses])
        return
    columns: list[list[Tensor]] = [[], [], []]
    for edge, place in uses:
        on = (place > 0) & (program.values[edge.weight] > 0).cpu()
        for read, written in edge.sides:
            for column, values in zip(columns, (place, written, read), strict=True):
                column.append(values.expand(on.shape)[on].long())
    program.channels.uses(*(torch.cat(column) for column in columns))


def _is_distinct(entries: Entries) -> bool:
    """Tell whether no entry of a parameter stands in two places."""
    free = entries[entries > 0]
    return len(free.unique()) == len(free)


def _is_dense(edge: Edge) -> bool:
    """Tell whether the label written depends on the first axis of the weight alone, that read on the second."""
    axis = lambda labels, k: labels.ndim >= 2 and labels.shape[k] == labels.numel()  # noqa: E731
    return axis(edge.written, 0) and axis(edge.read, 1) and edge.written.ndim == edge.read.ndim


def _serve(program: Program, uses: list[Edge]) -> None:
    """Uses of one dense map are like classes of positions."""
    sides = [side for edge in uses for side in edge.sides]
    used = (program.values[uses[0].weight] > 0).cpu()
    used = used.flatten(2).any(2) if used.ndim > 2 else used
    read = torch.stack([r.reshape(1, -1) for r, _ in sides])
    written = torch.stack([w.reshape(1, -1) for _, w in sides])
    read, written = read.expand(-1, 1, used.shape[1]), written.expand(-1, 1, used.shape[0])
    program.channels.serve(written, read, used[None])
