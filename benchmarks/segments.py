"""Linear segments kept whole, beside the Markov rule and the measured map, on networks that have some."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

import capalloc
from benchmarks import nulls
from benchmarks.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # the networks are those of the tests
import architectures
import segmented
from zoo import gaussian, seeded_module

EXAMPLES, PROBES = 60, 8
SEEDS = (0, *nulls.OTHER_SEEDS)
SMALL = ("gated bottleneck", "ungated residual stream", "two heads")
LARGER = ("GPT", "BERT", "Swin", "ViT", "MLP-Mixer", "ConvNeXt", "WaveNet")


def run() -> Table:
    rows = []
    for name in SMALL:
        make, shape, params, _ = segmented.CASES[name]
        models = [seeded_module(make, seed=seed).eval() for seed in SEEDS]
        rows.append((name, *compared(models, 4 * gaussian(*shape)[:EXAMPLES], params)))
    for name in LARGER:
        models = [architectures.ARCHITECTURES[name].build(seed) for seed in SEEDS]
        x = 3 * gaussian(EXAMPLES, *architectures.ARCHITECTURES[name].shape)
        found = capalloc.propagate(models[0], x[:8], table=False, solver="markov").by_parameter
        used = [str(n) for n in found.parameter.values if found.sel(parameter=n) > 0]
        rows.append((name, *compared(models, x, used)))
    return Table(
        "Linear segments",
        f"Totals and maps with the parameters that only steer gates held fixed; Gaussian inputs, {PROBES} draws "
        f"of signs for each of {EXAMPLES} examples. Total variation of the segments' map to the measured one, with the "
        f"constant input counted, and of inputs alone. Then the Markov rule: {nulls.ABOUT}",
        (
            "network",
            "parameters",
            "measured",
            "segments",
            "Markov",
            "TV segments",
            "of inputs",
            *nulls.HEADER,
            "bias measured",
            "segments",
            "Markov",
        ),
        rows,
    )


def compared(models: list[torch.nn.Module], x: torch.Tensor, params: list[str] | None) -> tuple[str, ...]:
    model, *others = models
    rule = partial(capalloc.propagate, inputs=x, metric="variance", params=params, table=False, solver="markov")
    measured = capalloc.measure(model, x, metric="variance", params=params)
    segments = capalloc.propagate(model, x, solver=capalloc.solvers.Segments(PROBES), metric="variance", params=params)
    markov = rule(model)
    found = (measured, segments, markov)
    return (
        str(measured.attrs["num_params"]),
        *(f"{a.total:.0f}" for a in found),
        f"{nulls.whole(measured, segments):.3f}",
        f"{nulls.inner(measured, segments):.3f}",
        *nulls.agreement(measured, markov, model, others, rule),
        *(f"{a.bias:.0f}" for a in found),
    )
