"""Scaling and shattering of the models people use: time beside one training pass."""

from __future__ import annotations

import torch

import capalloc
from benchmarks.models import MODELS
from benchmarks.propagate import exported, forward_backward, image, seconds
from benchmarks.table import Table, median_seconds

PIXELS, EXAMPLES = 128, 2


def run() -> Table:
    return Table(
        "Depth",
        f"One image of {PIXELS} x {PIXELS}: `scaling` on the exported program, median of 5, beside a training pass. "
        f"`shattering` of {EXAMPLES} examples, their neighbours and one line on the module, exports included, once.",
        ("model", "pass", "scaling", "ratio", "T", "shattering", "correlation of gradients: measured", "predicted"),
        [row(name) for name in ("ResNet-18", "ResNet-50", "ConvNeXt-T")],
    )


def row(name: str) -> tuple[str, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    x = image(PIXELS)
    program = exported(model, x)
    passed, walked = seconds(lambda: forward_backward(model, x)), seconds(lambda: capalloc.scaling(program, x))
    both = torch.cat([x, x.flip(3)])
    compared, found = median_seconds(
        lambda: capalloc.shattering(model, both, num_examples=EXAMPLES, num_lines=1, num_probes=2), 1
    )
    return (
        name,
        f"{passed:.2f} s",
        f"{walked:.2f} s",
        f"{walked / passed:.1f}",
        f"{capalloc.scaling(program, x).T:.2f}",
        f"{compared:.1f} s",
        f"{float(found.data['measured_independent'][0]):.3f}",
        f"{found.correlation:.3f}",
    )
