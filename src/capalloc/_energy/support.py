"""Support of the paths to one output position, whatever the weights: a sweep through a program.

Index convention: an output is (examples, *output axes), an input (examples, *input axes).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from capalloc._energy.maps import Shared
from capalloc._energy.program import Program
from capalloc._energy.program_steps import Step
from capalloc._energy.sweep import pull
from capalloc.results.receptive_field import Index


def at_position(position: Index, like: Tensor) -> Tensor:
    """Mark the output position with 1, all else with 0, shaped as the outputs."""
    mask = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    mask[(slice(None), *(slice(None) if k is None else k for k in position))] = 1
    return mask


def support(program: Program, position: Index) -> Tensor:
    """Find the inputs where a path to the position starts if every free weight is other than zero: boolean.

    Cotangents are 0 or 1 after every step, so that nothing underflows however deep the network is.
    """
    made = _made(program)
    waiting = {program.output: at_position(position, program.values[program.output])}
    for step in reversed(program.steps):
        arrived = waiting.pop(step.out, None)
        wanted = [slot for slot in program.signals(step) if slot != program.constant]
        if arrived is None or not wanted:
            continue
        for slot, back in zip(wanted, _back(program, step, arrived, wanted, made), strict=True):
            if back is not None:
                before = waiting.get(slot)
                waiting[slot] = back if before is None else torch.maximum(back, before)
    reached = waiting.get(program.input)
    if reached is None:
        return torch.zeros(program.values[program.input].shape[1:], dtype=torch.bool)
    return (reached > 0).any(0).cpu()


def _back(program: Program, step: Step, arrived: Tensor, wanted: list[int], made: Mapping[int, Tensor]) -> list[Tensor]:
    """Mark what leads to what has arrived, by each wanted argument."""
    spread = getattr(step.map, "spread", None)
    if spread is not None and all(slot in wanted or (program.free[slot] and slot not in made) for slot in step.args):
        return [spread(arrived, *(program.values[slot] for slot in step.args))]
    pulled = pull(program, step.plain, arrived, wanted, _patterns(program, step, made))
    return [back if back is arrived else (back > 0).to(back.dtype) for back in pulled]


def _patterns(program: Program, step: Step, made: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Give 1 where a weight can be other than zero: anywhere if free, while a fixed filter keeps its holes."""
    found = {}
    for slot in step.args:
        if slot in made:
            found[slot] = made[slot]
        elif not program.is_signal[slot]:
            value = program.values[slot]
            found[slot] = torch.ones_like(value) if program.free[slot] else (value > 0).to(value.dtype)
    return found


def _made(program: Program) -> dict[int, Tensor]:
    """Give the patterns of weights that steps make of others, such as a parameter times a mask."""
    made: dict[int, Tensor] = {}
    for step in program.steps:
        if program.is_signal[step.out]:
            continue
        if isinstance(step.map, Shared):  # whose shares depend on the values of the parameters
            every, possible = torch.ones_like(program.values[step.out]), step.map.possible
            made[step.out] = every if possible is None else every * possible
            continue
        patterns = _patterns(program, step, made)
        made[step.out] = (step.plain.run([patterns[slot] for slot in step.args]) > 0).to(program.dtype)
    return made
