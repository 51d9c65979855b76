"""Combinations of outputs: the distance to the answer of all outputs of the same examples."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.architectures import NETWORKS, SEED, built, trained
from benchmarks.steps import MatrixSums, constraint_matrix, leverage
from benchmarks.table import Table
from capalloc._derivatives import exact_derivatives
from capalloc._measure.examples import plan_examples
from capalloc._measure.precondition import inverse_root
from capalloc._measure.refine import refine
from capalloc._measure.task import make_task
from capalloc._propagate.effort import SAMPLE, distance, probe_vectors
from capalloc._settings import Block
from capalloc.app.demo import load_digits

CHOSEN = ("ResNet", "ViT", "U-Net, interpolated", "super-resolution")
#: Examples, and random combinations of outputs of each.
EXAMPLES, COMBINATIONS = (16, 8, 4), (2, 4, 16)
STEPS, PROBES = (0, 1, 2, 4), 16


def run() -> Table:
    rows = [row for name in CHOSEN for count in EXAMPLES for row in of_examples(name, count)]
    return Table(
        "Combinations of outputs: distance to the answer of all outputs",
        f'Initial weights, metric "variance", {PROBES} probes. Total variation, the constant counted, to the exact '
        "answer of the same examples and all outputs, by steps.",
        ("network", "outputs", "examples", "combinations", "constraints a parameter", "constant", *map(str, STEPS)),
        rows,
    )


def of_examples(name: str, count: int) -> list[tuple[str, ...]]:
    digits = load_digits(SEED)
    module, lesson = NETWORKS[name]
    x, y = lesson.inputs(digits.train_images), lesson.targets(digits.train_images, digits.train_labels)
    model = trained(built(module, lesson, SEED), x, y, lesson, 0, SEED).double()
    found = []
    with exact_derivatives():
        task = make_task(model, lesson.inputs(digits.test_images).double()[:count], metric="variance")
        C = constraint_matrix(task)
        exact, rank = leverage(C)
        for combinations in COMBINATIONS:
            if combinations > task.size.outputs:
                continue
            made = plan_examples(task, Block(num_probes=PROBES, output_probes=combinations))[0]
            units = made.units(0, made.x).to(C)  # (combinations, examples, outputs)
            combined = torch.einsum("qeo,soep->sqep", units, C)
            root = inverse_root(replace(made, vectors=SAMPLE.each), SAMPLE)
            z = probe_vectors(made, *range(PROBES))
            readings = refine(MatrixSums(made, combined), root, z, STEPS, lambda _: False).readings
            of_each = f"{count * combinations * task.size.slots / task.size.params:.1f}"
            sizes = str(task.size.outputs), str(count), str(combinations), of_each, f"{float(exact[-1] / rank):.2f}"
            found.append((name, *sizes, *(f"{distance(reading.held(rank), exact):.3f}" for reading in readings)))
    return found
