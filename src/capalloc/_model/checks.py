"""Checks of a model on an example (do random draws repeat?) and of the size of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._model.agree import agree, check_size
from capalloc._model.problem import Problem, seeded


def check_examples(problem: Problem, x: Tensor, seed: int = 0) -> tuple[int, bool]:
    """Refuse draws that do not repeat and outputs out of range, on the first example.

    Returns the number of outputs, and whether the model draws.
    """
    with seeded(seed, x.device):
        before = _random_state(x.device)
        first = problem(x[:1])
        draws = not torch.equal(before, _random_state(x.device))
    if not agree(first, run(problem, x[:1], seed)):
        raise ValueError(
            "two passes over the same examples with the same seed give different outputs; "
            "let the model draw its random numbers from torch's default generator, and keep no state between calls"
        )
    check_size(first)
    return first.shape[1], draws


def check_batch_size(batch_size: int | str) -> None:
    """Refuse what is neither "auto" nor a number of examples."""
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f'batch_size must be "auto" or an integer >= 1, got {batch_size!r}')


def run(problem: Problem, x: Tensor, seed: int) -> Tensor:
    """The outputs, with the model's own random draws from a seed."""
    with seeded(seed, x.device):
        return problem(x)


def _random_state(device: torch.device) -> Tensor:
    """The state of the generators that a model on a device draws from."""
    own = torch.get_rng_state()
    return own if device.type != "cuda" else torch.cat([own, torch.cuda.get_rng_state(device)])
