"""Blocks and steps beside long runs of the stochastic solver, on networks of a million parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import capalloc
from benchmarks.scale import images
from benchmarks.table import Table
from capalloc.architectures.resnet import resnet18
from capalloc.architectures.vit import vit_tiny
from capalloc.solvers import Block, Stochastic

EXAMPLES, PIXELS, PATCH, PROBES, STEPS = 32, 32, 4, 16, (0, 2, 4, 8)
#: Ridges of the long runs, in units of the mean eigenvalue.
RIDGES = (1e-2, 1e-3, 1e-4)


def run() -> Table:
    return Table(
        "Blocks and steps beside long runs of the stochastic solver",
        f"Initial weights, {EXAMPLES} images of {PIXELS} x {PIXELS}, ten outputs, metric variance. Total variation of "
        f"patches of {PATCH} x {PATCH} and the constant, between {PROBES} probes after so many steps and the long run "
        "at each ridge, in units of the mean eigenvalue; then of the long runs beside one another.",
        ("network", "answer", *map("ridge {:g}".format, RIDGES), "said", "constant", "total", "seconds"),
        [row for name, model in networks().items() for row in rows(name, model.eval())],
    )


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    shape = (3, PIXELS, PIXELS)
    return {
        "ResNet-18, width 16": resnet18(width=16, num_classes=10, shape=shape),
        "ViT": vit_tiny(shape=shape, patch=PATCH, width=128, depth=5, heads=4, num_classes=10),
    }


def rows(name: str, model: nn.Module) -> Iterator[tuple[str, ...]]:
    x = images(EXAMPLES, PIXELS)
    unit = capalloc.solvers.mean_eigenvalue(model, x, metric="variance", coordinates="plain")
    began = time.perf_counter()
    settings = Stochastic(rtol=0.05, num_probes=4, coordinates="plain", spectrum=False)
    long = capalloc.measure(model, x, metric="variance", ridge=[r * unit for r in RIDGES], solver=settings)
    runs, seconds = [*long.values()], time.perf_counter() - began
    maps = [patches(run) for run in runs]
    size = sum(p.numel() for p in model.parameters())
    for steps in STEPS:
        began = time.perf_counter()
        found = capalloc.propagate(model, x, metric="variance", solver=Block(num_probes=PROBES, num_steps=steps))
        distances = [f"{distance(patches(found), m):.3f}" for m in maps]
        said = f"{found.attrs['missing']:.2f} + {found.attrs['noise']:.2f}"
        yield (
            f"{name}, {size}",
            f"{steps} steps",
            *distances,
            said,
            *shares(found),
            f"{time.perf_counter() - began:.0f}",
        )
    for ridge, run, m in zip(RIDGES, runs, maps, strict=True):
        apart = [f"{distance(m, other):.3f}" for other in maps]
        yield f"{name}, {size}", f"long run at {ridge:g}", *apart, "", *shares(run), f"{seconds:.0f}"


def patches(found: capalloc.Allocation) -> np.ndarray:
    parts = np.asarray(found.by(capalloc.partitions.patches(PATCH, PATCH)))
    return np.append(parts, found.bias) / found.total


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum()) / 2


def shares(found: capalloc.Allocation) -> tuple[str, str]:
    return f"{found.bias / found.total:.3f}", f"{found.total:.0f}"
