"""Support of the paths to one output position, whatever the weights: a sweep through a program.

Index convention: an output is (examples, *output axes), an input (examples, *input axes).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from capalloc._energy.program import Program, Step
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
    waiting = {program.output: at_position(position, program.values[program.output])}
    for step in reversed(program.steps):
        arrived = waiting.pop(step.out, None)
        wanted = [s for s in dict.fromkeys(step.args) if program.is_signal[s] and s != program.constant]
        if arrived is None or not wanted:
            continue
        plain = replace(step, factors=(1.0,) * len(step.args), scale=1.0)
        for slot, back in zip(wanted, pull(program, plain, arrived, wanted, _ones(program, step)), strict=True):
            if back is not None:
                before = waiting.get(slot)
                waiting[slot] = ((back if before is None else back + before) > 0).to(back.dtype)
    reached = waiting.get(program.input)
    if reached is None:
        return torch.zeros(program.values[program.input].shape[1:], dtype=torch.bool)
    return (reached > 0).any(0).cpu()


def _ones(program: Program, step: Step) -> dict[int, Tensor]:
    """Set every free weight to 1; a fixed one, such as a filter with holes, keeps its zeros."""
    ones = {}
    for slot in step.args:
        if not program.is_signal[slot]:
            value = program.values[slot]
            ones[slot] = torch.ones_like(value) if program.free[slot] else (value > 0).to(value.dtype)
    return ones
