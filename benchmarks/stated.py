"""The default answer of networks up to a million parameters: what it says of its own distance, and its seconds."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import nn

import capalloc
from benchmarks.table import Table
from capalloc.architectures.resnet import resnet18

#: Channels of the three convolutions of each plain network.
WIDTHS = ((5, 10, 20), (9, 17, 33), (16, 32, 64), (32, 64, 112))


def run() -> Table:
    torch.manual_seed(0)
    rows = [answered("convolutions", plain(*widths), torch.randn(32, 1, 28, 28)) for widths in WIDTHS]
    residual = resnet18(width=17, num_classes=10, shape=(3, 64, 64)).eval()
    rows += [answered("ResNet-18", residual, torch.randn(count, 3, 64, 64)) for count in (8, 32)]
    return Table(
        "The default answer up to a million parameters",
        "Initial weights, ten outputs, Gaussian images. What is not yet reached and what random probes leave, of the "
        "map in total variation; asked are .05 in half a minute of two cores.",
        ("network", "parameters", "input", "steps", "probes", "not reached", "from probes", "seconds"),
        rows,
    )


def plain(first: int, second: int, third: int) -> nn.Module:
    channels = (1, first, second, third)
    layers = [
        layer
        for read, made in pairwise(channels)
        for layer in (nn.Conv2d(read, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(third, 10))


def answered(name: str, model: nn.Module, x: torch.Tensor) -> tuple[str, ...]:
    began = time.perf_counter()
    found = capalloc.propagate(model, x).attrs
    seconds = time.perf_counter() - began
    size = str(sum(p.numel() for p in model.parameters()))
    shape = " x ".join(map(str, x.shape))
    distances = (f"{found[part]:.3f}" for part in ("missing", "noise"))
    return name, size, shape, str(found["num_steps"]), str(found["num_probes"]), *distances, f"{seconds:.0f}"
