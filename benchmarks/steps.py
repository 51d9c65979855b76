"""Blocks and steps beside the exact answer: distance by number of steps, the constant counted.

The constraints of 36 small networks are held as a matrix, so that steps are matrix products; everything else is what
`capalloc.propagate(solver="block")` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.architectures import EPOCHS, NETWORKS, SEED, built, trained
from benchmarks.table import Table
from capalloc._derivatives import Constraints, choose_jacobian, exact_derivatives
from capalloc._linalg.saturation import BlockMoments
from capalloc._measure.examples import Examples, plan_examples
from capalloc._measure.precondition import inverse_root
from capalloc._measure.refine import Refinement, refine
from capalloc._measure.task import Task, make_task
from capalloc._propagate.by_constraints import scaled
from capalloc._propagate.effort import SAMPLE, TOLD_SHARE, distance, missing, probe_vectors, probes_for
from capalloc._settings import Block
from capalloc.app.demo import load_digits

#: Examples, at most: the matrix of a U-Net then takes a gigabyte.
EXAMPLES = 40
STEPS, TOLD = (0, 2, 3, 4, 6, 8, 12, 16), (4, 8, 16)


@dataclass(frozen=True)
class MatrixSums:
    """Products with all constraints as one matrix, in the place of `ExampleSums`."""

    examples: Examples
    C: Tensor  # (slots, outputs, examples, params)

    def noise(self, number: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(count, math.prod(self.C.shape[:3]), generator=generator).double() @ self.C.flatten(0, 2)

    def gram(self, w: Tensor) -> Tensor:
        return w @ self.C.flatten(0, 2).T @ self.C.flatten(0, 2)

    def read(self, w: Tensor) -> tuple[Tensor, BlockMoments]:
        rows = (w @ self.C.flatten(0, 2).T).view(len(w), *self.C.shape[:3])
        return rows.square().sum((2, 3)), BlockMoments.of(rows.permute(0, 2, 3, 1), self.examples.num_outputs)


def run() -> Table:
    rows = [row for name in NETWORKS for row in of_network(name)]
    said = [f"said at {k}" for k in TOLD]
    return Table(
        "Blocks and steps: distance to the exact answer by effort",
        f"Networks and weights of the architectures' table, up to {EXAMPLES} test images, all outputs, metric "
        '"variance". Total variation, the constant counted; "said" adds what is missing and the noise of the probes; '
        "the total after 8 steps is relative to the rank.",
        ("network", "weights", "parameters", "probes", "constant", *map(str, STEPS), *said, "noise", "total"),
        rows,
    )


def of_network(name: str) -> Iterator[tuple[str, ...]]:
    digits = load_digits(SEED)
    module, lesson = NETWORKS[name]
    x = lesson.inputs(digits.train_images)
    y = lesson.targets(digits.train_images, digits.train_labels)
    test = lesson.inputs(digits.test_images).double()
    for stage, epochs in (("initial", 0), ("trained", EPOCHS)):
        model = trained(built(module, lesson, SEED), x, y, lesson, epochs, SEED).double()
        yield name, stage, *by_effort(model, test)


def by_effort(model: nn.Module, test: Tensor) -> tuple[str, ...]:
    params = sum(p.numel() for p in model.parameters())
    few = test[: min(EXAMPLES, -(-2 * params // model(test[:1]).numel()))]
    with exact_derivatives():
        task = make_task(model, few, metric="variance")
        C = constraint_matrix(task)
        probes = probes_for(task.size)
        examples, _ = plan_examples(task, Block(num_probes=probes))
        root = inverse_root(replace(examples, vectors=SAMPLE.each), SAMPLE)
        found = refine(MatrixSums(examples, C), root, probe_vectors(examples, *range(probes)), STEPS, lambda _: False)
    exact, rank = leverage(C)
    slots = {reading.steps: reading.slots for reading in found.readings}
    mean = {reading.steps: reading.held(rank) for reading in found.readings}
    noise = TOLD_SHARE * float(scaled(slots[8], 1.0)[1].sum())
    told = [missing(Refinement(found.readings[: n + 1], found.unused)) + noise for n in map(STEPS.index, TOLD)]
    return (
        str(params),
        str(probes),
        f"{float(exact[-1] / exact.sum()):.2f}",
        *(f"{distance(mean[k], exact):.3f}" for k in STEPS),
        *(f"{value:.3f}" for value in told),
        f"{noise:.3f}",
        f"{found.readings[STEPS.index(8)].least_total / rank:.2f}",
    )


def constraint_matrix(task: Task) -> Tensor:
    """Constraints, (slots, outputs, examples, params)."""
    choice = choose_jacobian(task.problem, task.x[:2], partial(task.replay, 0))
    n = task.space.num_inputs
    made = Constraints(task.problem, choice.jacobian, task.space, task.x, 4, n, task.replay, len(task.x))
    parts = []
    for index, x in enumerate(task.x.split(4)):
        rows = made.rows(choice.jacobian(x, next(task.space.chunks(n)), partial(task.replay, index)))
        parts.append(rows.permute(2, 0, 1, 3))
    return torch.cat(parts, 2)


def leverage(C: Tensor) -> tuple[Tensor, int]:
    """Exact capacity of every slot, and the rank, from the eigenvalues of C'C."""
    flat = C.flatten(0, 2)
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    kept = values > values[-1] * 1e-11
    inverse = vectors[:, kept] / values[kept].sqrt()
    return torch.stack([(rows.flatten(0, 1) @ inverse).square().sum() for rows in C]), int(kept.sum())
