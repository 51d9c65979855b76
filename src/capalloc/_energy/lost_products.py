"""Zeros of a float32 walk that float64 would not have: a walk that asks which factors are zero, and no more, tells.

Numbers are 0 or 1 after every step here, so that no product is too small however deep the network is.
"""

from __future__ import annotations

from torch import Tensor

from capalloc._energy.maps import Gate, Shared
from capalloc._energy.program import Program
from capalloc._energy.sweep import through
from capalloc._energy.usage import LEAST_FLOAT32, Cotangents, FirstAdjoint


def loses(program: Program, seed: Tensor, flow: FirstAdjoint) -> bool:
    """Tell whether a parameter or a channel has next to no energy although no factor of one of its paths is zero."""
    slots = {*program.params.values(), *(e.weight for e in program.edges)} & flow.at_slots.keys()
    if all(
        bool((x >= LEAST_FLOAT32).all()) for x in (*(flow.at_slots[slot] for slot in slots), *flow.through.values())
    ):
        return False
    seen, edges = _seen(program), {edge.step: edge for edge in program.edges}
    waiting: Cotangents = {program.output: _marked(seed)}
    for k in reversed(range(len(program.steps))):
        step = program.steps[k]
        arrived = waiting.pop(step.out, None)
        if arrived is None:
            continue
        if step.out in slots and _differ(flow.at_slots[step.out], arrived):
            return True
        values = {slot: seen[slot].to(program.dtype) for slot in (*step.args, step.out)}
        wanted = [slot for slot in dict.fromkeys(step.args) if slot not in {program.input, program.constant}]
        pulled = [_marked(x) for x in step.plain.pull(arrived, values, wanted, {})]
        if k in edges:
            marked = through(values, step.out, edges[k], arrived, pulled[wanted.index(edges[k].weight)])
            if _differ(flow.through[k], marked):
                return True
        for slot, back in zip(wanted, pulled, strict=True):
            waiting[slot] = _marked(waiting[slot] + back) if slot in waiting else back
    return any(_differ(flow.at_slots[slot], waiting[slot]) for slot in slots & waiting.keys())


def _seen(program: Program) -> dict[int, Tensor]:
    """Tell where the energies of slots are other than zero, of signals that no sweep reads for as long as steps do."""
    last = {slot: k for k, step in enumerate(program.steps) for slot in (step.out, *step.args)}
    made = {step.out for step in program.steps}
    seen = {slot: value > 0 for slot, value in enumerate(program.values) if slot not in made}
    for k, step in enumerate(program.steps):
        of_zeros = isinstance(step.map, (Gate, Shared)) and not program.is_signal[step.out]  # whose zeros are put there
        found = step.map(*(seen[slot].to(program.dtype) for slot in step.args)) > 0
        seen[step.out] = program.values[step.out] > 0 if of_zeros else found
        for slot in (step.out, *step.args):
            if last[slot] == k and program.is_signal[slot] and slot not in program.needed:
                seen[slot] = seen[slot].new_zeros(()).expand(seen[slot].shape)
    return seen


def _marked(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _differ(energy: Tensor, marked: Tensor) -> bool:
    """Tell whether some energy is as good as zero where the marks say that it is not."""
    return bool(((energy < LEAST_FLOAT32) & (marked > 0)).any())
