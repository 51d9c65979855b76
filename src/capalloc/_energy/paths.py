"""Path energy at chosen places of a program: from the inputs up, from the outputs down, and damped at gates on the way.

A path's energy is (path energy from the inputs to a place) x (adjoint of the outputs there); their product, summed over
a place that every path crosses at most once, is the energy of the paths that cross it (docs/theory.md, section 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from capalloc._energy.program import Program
from capalloc._energy.sweep import pull
from capalloc._energy.usage import accumulate

Energies = dict[int, Tensor]  # by slot


def from_inputs(program: Program, start: Tensor, keep: Collection[int]) -> Energies:
    """Give the energies, on the program's own scale, of paths that start at the inputs with energies `start`."""
    zero = torch.zeros_like(program.values[program.constant])
    return replay(program, {program.input: start, program.constant: zero}, keep)


def replay(
    program: Program, leaves: Mapping[int, Tensor], keep: Collection[int], powers: Mapping[int, Tensor] | None = None
) -> Energies:
    """Run the steps again that other leaves change, and give what they make of the slots `keep`.

    `powers` are those of the arguments that some slots are made of, 1 for all others.
    """
    known, powers = dict(leaves), powers or {}
    uses = Counter(slot for step in program.steps for slot in step.args)
    for step in program.steps:
        if any(slot in known for slot in step.args):
            args = [known.get(slot, program.values[slot]) for slot in step.args]
            known[step.out] = step.run([arg ** powers[step.out] for arg in args] if step.out in powers else args)
        for slot in step.args:
            uses[slot] -= 1
            if not uses[slot] and slot not in keep:
                known.pop(slot, None)
    return {slot: known[slot] for slot in keep if slot in known}


def adjoint(
    program: Program, seeds: Mapping[int, Tensor], keep: Collection[int], damping: Mapping[int, float] | None = None
) -> Energies:
    """Give g = dE/de at the slots `keep`, E = <seeds, energies>; every path times `damping` of the slots it crosses."""
    damping = damping or {}
    waiting = dict(seeds)
    found: Energies = {}
    for step in reversed(program.steps):
        g = waiting.pop(step.out, None)
        if g is None:
            continue
        if step.out in keep:
            found[step.out] = g
            if len(found) == len(keep):
                break
        if step.out in damping:
            g = g * damping[step.out]
        if wanted := program.signals(step):
            accumulate(waiting, wanted, pull(program, step, g, wanted))
    return found | {slot: waiting[slot] for slot in keep if slot in waiting}
