"""Linear segments kept whole, beside the Markov rule and the measured map, on networks that have some."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import capalloc
from benchmarks.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # the networks are those of the tests
import architectures
import segmented
from zoo import gaussian, seeded_module

EXAMPLES, PROBES = 60, 8
SMALL = ("gated bottleneck", "ungated residual stream", "two heads")
LARGER = ("GPT", "BERT", "Swin", "ViT", "MLP-Mixer", "ConvNeXt", "WaveNet")


def run() -> Table:
    rows = []
    for name in SMALL:
        make, shape, params, _ = segmented.CASES[name]
        rows.append((name, *compared(seeded_module(make).eval(), 4 * gaussian(*shape)[:EXAMPLES], params)))
    for name in LARGER:
        model = architectures.ARCHITECTURES[name].build()
        x = 3 * gaussian(EXAMPLES, *architectures.ARCHITECTURES[name].shape)
        found = capalloc.propagate(model, x[:8], table=False).by_parameter
        rows.append((name, *compared(model, x, [str(n) for n in found.parameter.values if found.sel(parameter=n) > 0])))
    return Table(
        "Linear segments",
        f"Totals and maps with the parameters that only steer gates held fixed; Gaussian inputs, {PROBES} draws "
        f"of signs for each of {EXAMPLES} examples. TV: total variation to the measured map.",
        (
            "network",
            "parameters",
            "measured",
            "segments",
            "Markov",
            "TV segments",
            "TV Markov",
            "bias measured",
            "segments",
            "Markov",
        ),
        rows,
    )


def compared(model: torch.nn.Module, x: torch.Tensor, params: list[str] | None) -> tuple[str, ...]:
    measured = capalloc.measure(model, x, params=params)
    segments = capalloc.propagate(model, x, solver=capalloc.solvers.Segments(PROBES), params=params)
    markov = capalloc.propagate(model, x, params=params, table=False)
    found = (measured, segments, markov)
    return (
        str(measured.attrs["num_params"]),
        *(f"{a.total:.0f}" for a in found),
        *(f"{capalloc.total_variation(measured, a):.3f}" for a in found[1:]),
        *(f"{a.bias:.0f}" for a in found),
    )
