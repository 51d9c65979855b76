"""Checks of a model on a few examples (do they see each other, do random draws repeat?) and of the size of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._model.problem import Problem, seeded


def check_examples(problem: Problem, x: Tensor, seed: int = 0) -> tuple[int, bool]:
    """Examples must not see each other, and draws must repeat; returns the number of outputs, and if it draws."""
    first, again, other = (run(problem, x, seed + k) for k in (0, 0, 1))
    if not agree(first, again):
        raise ValueError(
            "two passes over the same examples with the same seed give different outputs; "
            "let the model draw its random numbers from torch's default generator, and keep no state between calls"
        )
    draws = not agree(first, other)
    if len(x) > 1 and not draws and not agree(first[:1], run(problem, x[:1], seed)):
        raise ValueError(
            "examples interact: the outputs for one example change when another is in the batch; "
            "use a model that treats each example alone (batch statistics: track running ones)"
        )
    return first.shape[1], draws


def check_batch_size(batch_size: int | str) -> None:
    """Refuse what is neither "auto" nor a number of examples."""
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f'batch_size must be "auto" or an integer >= 1, got {batch_size!r}')


def run(problem: Problem, x: Tensor, seed: int) -> Tensor:
    """The outputs, with the model's own random draws from a seed."""
    with seeded(seed, x.device):
        return problem(x)


def agree(a: Tensor, b: Tensor, scale: Tensor | None = None) -> bool:
    """Equal up to rounding: to the square root of the dtype's, far above it and far below any mistake.

    It is relative to `scale`, by default the largest number of both.
    """
    if a.shape != b.shape:
        return False
    if scale is None:
        scale = torch.cat([a.abs().flatten(), b.abs().flatten()]).max()
    return bool(((a - b).abs() <= torch.finfo(a.dtype).eps ** 0.5 * scale).all())
