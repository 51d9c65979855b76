"""Block-diagonal approximations of G from a sample of the constraints: a preconditioner, and an inverse root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from capalloc._linalg.inverse_root import InverseRoot
from capalloc._linalg.kronecker import Kronecker, kronecker
from capalloc._measure.examples import Examples
from capalloc._model.problem import random_signs

#: Random constraints that the preconditioner is made from, on at most so many examples.
SAMPLES, SAMPLED_EXAMPLES = 128, 64
#: From so many parameters on, fewer: each sample costs more than it brings.
MOST_PARAMS, FEW_SAMPLES = 2_000_000, 32


def precondition(examples: Examples) -> Kronecker:
    """Return the preconditioner that random constraints of single examples make."""
    shapes = [tuple(p.shape) for p in examples.operator.problem.params.values()]
    return kronecker(shapes, partial(samples, examples))


def samples(examples: Examples, stream: int) -> Iterator[Tensor]:
    """Yield C'xi of single examples, whose second moment is G."""
    chosen = spread(examples, SAMPLED_EXAMPLES)
    wanted = SAMPLES if examples.num_params < MOST_PARAMS else FEW_SAMPLES
    each = max(1, wanted // len(chosen))
    size, vectors = examples.apart(each, examples.rows_per_example // examples.num_slots)
    for batch in replace(examples, x=examples.x[chosen.to(examples.x.device)], batch_size=size)():
        for part in torch.arange(each).split(vectors):
            yield batch.each(batch.normal_rows(len(part), 3, stream, int(part[0]))).flatten(0, 1)


def inverse_root(examples: Examples, most_examples: int, each: int, longest: int) -> InverseRoot:
    """Return the root that random constraints of single examples and outputs make, `each` for every example used.

    The bases and the variances in them come from different samples: directions that no sample saw would else have none.
    """
    shapes = [tuple(p.shape) for p in examples.operator.problem.params.values()]
    chosen = spread(examples, most_examples)
    return InverseRoot(kronecker(shapes, partial(samples_of_outputs, examples, chosen, each), longest))


def spread(examples: Examples, most: int) -> Tensor:
    """Return the places of examples evenly spread over the data, `most` or all."""
    count = len(examples.x)
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def samples_of_outputs(examples: Examples, chosen: Tensor, each: int, stream: int) -> Iterator[Tensor]:
    """Yield random constraints of one random combination of each example's outputs: cheaper than of all."""

    def signs(number: int, places: list[int], *shape: int) -> Tensor:
        drawn = [random_signs(shape, examples.x, examples.generator(number, stream, k)) for k in places]
        return torch.stack(drawn, -2)

    size, vectors = examples.apart(each, 1)
    for places in chosen.split(size):
        x, own = examples.x[places.to(examples.x.device)], places.tolist()
        units = signs(7, own, 1, examples.num_outputs)
        bound = examples.operator.at(x, units, partial(examples.replay, own[0]))
        for part in signs(8, own, each, 1, examples.num_slots).split(vectors):
            yield bound.each(part).flatten(0, 1)
