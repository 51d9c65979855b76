"""Blocks and steps beside the exact answer: distance by number of steps, the constant counted.

The constraints of 36 small networks are held as a matrix, so that steps are matrix products; everything else is what
`capalloc.propagate(solver="block")` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
STEPS, TOLD = (0, 2, 4, 8, 16), (0, 4, 16)
FEW, STEPS_OF_FEW = (10, 4), (0, 2, 4, 8)


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
    few = [f"{count} examples: {k}" for count in FEW for k in STEPS_OF_FEW]
    return Table(
        "Blocks and steps: distance to the exact answer by effort",
        f"Networks and weights of the architectures' table, up to {EXAMPLES} test images, all outputs, metric "
        '"variance". Total variation, the constant counted; "said" adds what is missing and the noise of the probes; '
        "the total after 8 steps is relative to the rank. Then fewer images, beside their own exact answer.",
        ("network", "weights", "parameters", "probes", "constant", *map(str, STEPS), *said, "noise", "total", *few),
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
        params = sum(p.numel() for p in model.parameters())
        most = min(EXAMPLES, -(-2 * params // model(test[:1]).numel()))
        few = [by_effort(model, test[:count], STEPS_OF_FEW) for count in FEW]
        distances = [f"{d:.3f}" for effort in few for d in effort.distances]
        yield name, stage, *by_effort(model, test[:most], STEPS).row(), *distances


@dataclass(frozen=True)
class ByEffort:
    """An answer after more and more steps, beside the exact one."""

    found: Refinement
    exact: Tensor
    rank: int

    @property
    def distances(self) -> list[float]:
        return [distance(reading.held(self.rank), self.exact) for reading in self.found.readings]

    def row(self) -> tuple[str, ...]:
        readings, steps = self.found.readings, [reading.steps for reading in self.found.readings]
        last = readings[steps.index(8)]
        noise = TOLD_SHARE * float(scaled(last.slots, 1.0)[1].sum())
        told = [missing(Refinement(readings[: n + 1], self.found.unused)) + noise for n in map(steps.index, TOLD)]
        return (
            str(len(self.found.unused)),
            str(len(last.slots)),
            f"{float(self.exact[-1] / self.exact.sum()):.2f}",
            *(f"{value:.3f}" for value in (*self.distances, *told, noise)),
            f"{last.least_total / self.rank:.2f}",
        )


def by_effort(model: nn.Module, x: Tensor, steps: Sequence[int]) -> ByEffort:
    with exact_derivatives():
        task = make_task(model, x, metric="variance")
        C = constraint_matrix(task)
        probes = probes_for(task.size)
        examples, _ = plan_examples(task, Block(num_probes=probes))
        root = inverse_root(replace(examples, vectors=SAMPLE.each), SAMPLE)
        found = refine(MatrixSums(examples, C), root, probe_vectors(examples, *range(probes)), steps, lambda _: False)
    return ByEffort(found, *leverage(C))


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
