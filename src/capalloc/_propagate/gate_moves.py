"""Parameters that move the outputs by gates, beside what they carry."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from capalloc._derivatives.verify import plain_gradients
from capalloc._energy.batches import Batches
from capalloc._model.problem import Problem

#: Size of a gradient that is rounding, as that of a bias of attention's keys is, in roundings of the tensor's largest.
ROUNDINGS_OF_LARGEST = 100


def moved_by_gates(problem: Problem, batches: Batches, names: Collection[str]) -> dict[str, Tensor]:
    """Tell which entries move the outputs of some example, of those parameters that carry and steer gates too.

    An entry that no path uses is in use where its gradient is not 0 but for rounding. Without a gradient all are.
    """
    asked = batches.carriers.also_steering & {*names}
    moved = {name: torch.zeros_like(problem.params[name], dtype=torch.bool) for name in asked}
    for batch, _ in problem.padded_batches(batches.graph.batch_size) if asked else ():
        try:
            gradients = plain_gradients(problem, batch)[1]
        except RuntimeError:  # an operator without a derivative
            return {name: torch.ones_like(seen) for name, seen in moved.items()}
        for name, seen in moved.items():
            size = gradients[name].abs()
            seen |= size > ROUNDINGS_OF_LARGEST * torch.finfo(size.dtype).eps * size.amax()
        if all(bool(seen.all()) for seen in moved.values()):
            break
    return moved
