"""Blocks and steps beside long runs of the stochastic solver, on networks of a million parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Long:
    """A network, and the run that its answers are held against: ridges in units of the mean eigenvalue."""

    model: nn.Module
    ridges: tuple[float, ...]
    probes: int
    rtol: float


#: Of a run: the first of them is the cheapest.
RIDGES = (1e-2, 1e-3, 1e-4)


def run() -> Table:
    return Table(
        "Blocks and steps beside long runs of the stochastic solver",
        f"Initial weights, {EXAMPLES} images of {PIXELS} x {PIXELS}, ten outputs, metric variance. Total variation of "
        f"patches of {PATCH} x {PATCH} and the constant, between {PROBES} probes after so many steps and the long run "
        "at each ridge, in units of the mean eigenvalue; then of the long runs beside one another.",
        ("network", "answer", *map("ridge {:g}".format, RIDGES), "said", "constant", "total", "seconds"),
        [row for name, long in networks().items() for row in rows(name, long)],
    )


def networks() -> dict[str, Long]:
    """A ViT of patches of 4 is four times as slow; below the first ridge its run takes hours."""
    torch.manual_seed(0)
    shape = (3, PIXELS, PIXELS)
    resnet = resnet18(width=16, num_classes=10, shape=shape)
    vit = vit_tiny(shape=shape, patch=8, width=128, depth=5, heads=4, num_classes=10)
    return {
        "ResNet-18, width 16": Long(resnet.eval(), RIDGES, 4, 0.05),
        "ViT, patches of 8": Long(vit.eval(), RIDGES[:1], 2, 0.15),
    }


def rows(name: str, long: Long) -> Iterator[tuple[str, ...]]:
    x, model = images(EXAMPLES, PIXELS), long.model
    unit = capalloc.solvers.mean_eigenvalue(model, x, metric="variance", coordinates="plain")
    began = time.perf_counter()
    settings = Stochastic(rtol=long.rtol, num_probes=long.probes, coordinates="plain", spectrum=False)
    found = capalloc.measure(model, x, metric="variance", ridge=[r * unit for r in long.ridges], solver=settings)
    runs, seconds = [*found.values()], time.perf_counter() - began
    maps, missing = [patches(run) for run in runs], [""] * (len(RIDGES) - len(runs))
    name = f"{name}, {sum(p.numel() for p in model.parameters())}"
    for steps in STEPS:
        began = time.perf_counter()
        ours = capalloc.propagate(model, x, metric="variance", solver=Block(num_probes=PROBES, num_steps=steps))
        distances = [f"{distance(patches(ours), m):.3f}" for m in maps]
        said = f"{ours.attrs['missing']:.2f} + {ours.attrs['noise']:.2f}"
        took = f"{time.perf_counter() - began:.0f}"
        yield name, f"{steps} steps", *distances, *missing, said, *shares(ours), took
    for ridge, run, m in zip(long.ridges, runs, maps, strict=True):
        apart = [f"{distance(m, other):.3f}" for other in maps]
        yield name, f"long run at {ridge:g}", *apart, *missing, "", *shares(run), f"{seconds:.0f}"


def patches(found: capalloc.Allocation) -> np.ndarray:
    parts = np.asarray(found.by(capalloc.partitions.patches(PATCH, PATCH)))
    return np.append(parts, found.bias) / found.total


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum()) / 2


def shares(found: capalloc.Allocation) -> tuple[str, str]:
    return f"{found.bias / found.total:.3f}", f"{found.total:.0f}"
