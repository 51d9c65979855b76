"""Block-diagonal approximations of G from a sample of the constraints: a preconditioner, and an inverse root."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from capalloc._derivatives.products import BatchProducts
from capalloc._linalg.inverse_root import InverseRoot
from capalloc._linalg.kronecker import Kronecker, kronecker
from capalloc._measure.examples import Examples
from capalloc._model.problem import random_signs

#: Random constraints that the preconditioner is made from, on at most so many examples.
SAMPLES, SAMPLED_EXAMPLES = 128, 64
#: The constant's rows take no more than this share of the time that is left: half of them leave a map as near.
CONSTANT_TIME = 0.25
#: From so many parameters on, fewer: each sample costs more than it brings.
MOST_PARAMS, FEW_SAMPLES = 2_000_000, 32
#: Constraints of the constant input in it, and numbers in these, at most.
ROWS, MOST_NUMBERS = 1024, 2**24


@dataclass(frozen=True)
class Preconditioner:
    """(blocks + rows'rows + ridge)^-1: blocks of G, and constraints of the constant input across all of them."""

    blocks: Kronecker
    rows: Tensor

    def at(self, ridge: float) -> InverseRoot:
        """Return its root."""
        return InverseRoot(self.blocks, ridge=ridge).with_rows(self.rows)


def precondition(examples: Examples) -> Preconditioner:
    """Return the preconditioner that random constraints of single examples make, and those of the constant input."""
    numbers = min(MOST_NUMBERS, examples.longest)
    most = min(ROWS, numbers // examples.num_params) if examples.operator.space.intercept else 0
    return Preconditioner(
        kronecker(shapes_of(examples), partial(samples, examples)), scaled_constant_rows(examples, most)
    )


def samples(examples: Examples, stream: int) -> Iterator[Iterable[Tensor]]:
    """Yield C'xi of single examples, whose second moment is G, tensor by tensor."""
    chosen = spread(examples, SAMPLED_EXAMPLES)
    wanted = SAMPLES if examples.num_params < MOST_PARAMS else FEW_SAMPLES
    each = max(1, wanted // len(chosen))
    size, vectors = examples.apart(each, examples.num_constrained)
    for batch in replace(examples, x=examples.x[chosen.to(examples.x.device)], batch_size=size)():
        for part in torch.arange(each).split(vectors):
            yield batch.each(batch.normal_rows(len(part), 3, stream, int(part[0])))


@dataclass(frozen=True)
class Sample:
    """The constraints that blocks and the constant are known from."""

    examples: int  # that random constraints are taken from
    each: int  # such constraints of an example
    longest: int  # axis whose basis may be another than its own
    constant: int = 0  # constraints of the constant input, at most


def inverse_root(examples: Examples, sample: Sample, left: float = math.inf) -> InverseRoot:
    """Return the root that random constraints of single examples and outputs make, and those of the constant input.

    The bases and the variances in them come from different samples: directions that no sample saw would else have none.
    The constant's constraints are alike from example to example, across all tensors: what blocks miss most. They are as
    many as the seconds `left` allow, at the speed of the others.
    """
    began = time.perf_counter()
    chosen = spread(examples, sample.examples)
    blocks = kronecker(shapes_of(examples), partial(samples_of_outputs, examples, chosen, sample.each), sample.longest)
    root, most = InverseRoot(blocks), min(sample.constant, examples.longest // examples.num_params)
    if most and left < math.inf:
        taken, others = time.perf_counter() - began, 2 * len(chosen) * sample.each
        most = min(most, max(1, int(CONSTANT_TIME * (left - taken) / taken * others)))
    if not most:
        return root
    rows = scaled_constant_rows(examples, most)
    return root.with_rows(rows, len(rows) / (len(examples.x) * examples.num_outputs))


def spread(examples: Examples, most: int) -> Tensor:
    """Return the places of examples evenly spread over the data, `most` or all."""
    count = len(examples.x)
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def samples_of_outputs(examples: Examples, chosen: Tensor, each: int, stream: int) -> Iterator[Iterable[Tensor]]:
    """Yield random constraints of one random combination of each example's outputs, tensor by tensor: few for all."""
    size, vectors = examples.apart(each, 1)
    for places in chosen.split(size):
        bound = one_combination(examples, places, signs(examples, places, 7, stream, 1, examples.num_outputs))
        for part in signs(examples, places, 8, stream, each, 1, examples.num_slots).split(vectors):
            yield (piece.flatten(0, 1) for piece in bound.each_by_tensor(part))


def shapes_of(examples: Examples) -> list[tuple[int, ...]]:
    """Return the shapes of the parameter tensors."""
    return [tuple(p.shape) for p in examples.operator.problem.params.values()]


def scaled_constant_rows(examples: Examples, count: int) -> Tensor:
    """Return `constant_rows`, at most so many, (m, params), scaled so that rows'rows is the constant's part of G."""
    rows = torch.cat([*constant_rows(examples, count)]) if count else examples.x.new_zeros(0, examples.num_params)
    if examples.scale is not None:
        rows *= examples.scale.to(rows)
    return rows.div_(math.sqrt(max(len(rows), 1)))


def constant_rows(examples: Examples, count: int) -> Iterator[Tensor]:
    """Yield constraints of the constant input, (e, params), each of an example and a combination of its outputs.

    The combinations of an example are orthogonal, so that as many as it has outputs say what all say. They are others
    than the examples' own: beside their own, the constant would seem to hold no more than they constrain, while all
    outputs may constrain far more.
    """
    outputs = examples.num_outputs
    combinations = min(max(math.ceil(math.sqrt(count) / 2), math.ceil(count / len(examples.x))), outputs)
    chosen = spread(examples, count // combinations)
    size, _ = examples.apart(1, 1)
    for places in chosen.split(size):
        row = examples.x.new_zeros(1, 1, len(places), examples.num_slots)
        row[..., -1] = 1
        random = (examples.generator(7, 2, k) for k in places.tolist())
        drawn = [torch.randn(outputs, combinations, generator=one, dtype=torch.float64) for one in random]
        for units in torch.linalg.qr(torch.stack(drawn)).Q.permute(2, 0, 1) * math.sqrt(outputs):
            yield one_combination(examples, places, units[None]).each(row)[0]


def one_combination(examples: Examples, places: Tensor, units: Tensor) -> BatchProducts:
    """Return products with the constraints of one combination of the outputs of some examples, (1, e, outputs)."""
    replay, units = partial(examples.replay, int(places[0])), units.to(examples.x)
    return examples.operator.at(examples.x[places.to(examples.x.device)], units, replay)


def signs(examples: Examples, places: Tensor, number: int, stream: int, *shape: int) -> Tensor:
    """Return random signs, each example's own, (..., e, last)."""
    drawn = [random_signs(shape, examples.x, examples.generator(number, stream, k)) for k in places.tolist()]
    return torch.stack(drawn, -2)
