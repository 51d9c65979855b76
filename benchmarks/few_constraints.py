"""Steps from few constraints: the distance to the answer of all examples, by constraints for a parameter."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.architectures import NETWORKS, SEED, built, trained
from benchmarks.steps import EXAMPLES, MatrixSums, constraint_matrix, leverage
from benchmarks.table import Table
from capalloc._derivatives import exact_derivatives
from capalloc._measure.examples import plan_examples
from capalloc._measure.precondition import inverse_root
from capalloc._measure.refine import refine
from capalloc._measure.task import make_task
from capalloc._propagate.effort import SAMPLE, distance, probe_vectors
from capalloc._settings import Block
from capalloc.app.demo import load_digits

CHOSEN = ("ResNet", "pre-activation ResNet", "U-Net, interpolated", "WaveNet")
#: Examples, and random combinations of outputs of each.
SIZES = ((4, 1), (8, 1), (8, 2), (14, 4))
STEPS, PROBES = (0, 1, 2, 3, 4), 64


def run() -> Table:
    rows = [row for name in CHOSEN for row in by_size(name)]
    return Table(
        "Steps from few constraints: distance to the answer of more examples and all outputs",
        f'Initial weights, metric "variance", {PROBES} probes. Total variation, the constant counted, to the exact '
        f"answer of {EXAMPLES} examples (14 of the U-Net) and all outputs, by steps.",
        ("network", "examples", "combinations", "constraints a parameter", *map(str, STEPS)),
        rows,
    )


def by_size(name: str) -> list[tuple[str, ...]]:
    digits = load_digits(SEED)
    module, lesson = NETWORKS[name]
    x, y = lesson.inputs(digits.train_images), lesson.targets(digits.train_images, digits.train_labels)
    model = trained(built(module, lesson, SEED), x, y, lesson, 0, SEED).double()
    params, outputs = sum(p.numel() for p in model.parameters()), model(x[:1].double()).numel()
    test = lesson.inputs(digits.test_images).double()[: min(EXAMPLES, -(-2 * params // outputs))]
    found = []
    with exact_derivatives():
        whole = make_task(model, test, metric="variance")
        C = constraint_matrix(whole)
        exact, rank = leverage(C)
        for examples, combinations in SIZES:
            task = replace(whole, x=whole.x[:examples], size=replace(whole.size, examples=examples))
            made = plan_examples(task, Block(num_probes=PROBES, output_probes=combinations))[0]
            units = made.units(0, made.x).to(C)  # (combinations, examples, outputs)
            few = torch.einsum("qeo,soep->sqep", units, C[:, :, :examples])
            few = few * (len(test) / examples) ** 0.5
            root = inverse_root(replace(made, vectors=SAMPLE.each), SAMPLE)
            z = probe_vectors(made, *range(PROBES))
            readings = refine(MatrixSums(made, few), root, z, STEPS, lambda _: False).readings
            distances = (distance(reading.held(rank), exact) for reading in readings)
            ratio = f"{examples * combinations * task.size.slots / params:.1f}"
            found.append((name, str(examples), str(combinations), ratio, *(f"{d:.3f}" for d in distances)))
    return found
