"""Depth of a block and optimiser: the best learning rate of residual networks h + L^-a F(h) by depth.

Theory (docs/scaling.md): a step moves L branches that learn alike by L eps^2 rate under SGD, whose gradients carry the
eps of their branch, and by L eps rate under Adam, whose steps do not. Indices are (runs, examples, units).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from studies.study import Study, table
from studies.training_fit import cross_entropies
from studies.training_tasks import Examples, Task, pairs

WIDTH, BATCH = 32, 64
EXPONENTS = (0.5, 1.0)
#: Powers of the depth by which theory changes the best rate: 2 a - 1 under SGD, a - 1 under Adam.
SHIFT: dict[str, Callable[[float], float]] = {"SGD": lambda a: 2 * a - 1, "Adam": lambda a: a - 1}


@dataclass(frozen=True)
class Design:
    """Sizes of the sweep."""

    depths: tuple[int, ...] = (4, 16, 64)
    layers: tuple[int, ...] = (1, 2)
    rates: int = 9  # half decades from 1e-3 on for SGD, 1e-4 for Adam
    seeds: int = 2
    epochs: int = 4


QUICK = Design((2, 4), (1, 2), 2, 1, 1)


@dataclass(frozen=True)
class Run:
    """One network and how it is trained."""

    exponent: float
    rate: float
    seed: int


def run(quick: bool = False) -> Study:
    """Train on pairs of digits."""
    design, task = QUICK if quick else Design(), pairs(per_image=1 if quick else 3)
    head = ["optimiser", "layers of a block", "a", "best rate", "theory: × L^", "accuracy", "at the first rate"]
    head[3] += f" at L = {', '.join(map(str, design.depths))}"
    rows = [row for name in SHIFT for layers in design.layers for row in rows_of(name, layers, design, task)]
    return Study("scaling.md", {"blocks": table(head, rows)})


def rows_of(optimiser: str, layers: int, design: Design, task: Task) -> list[list[str]]:
    """Of one optimiser and depth of a block."""
    rates = [(1e-3 if optimiser == "SGD" else 1e-4) * 10 ** (k / 2) for k in range(design.rates)]
    runs = [Run(*parts) for parts in product(EXPONENTS, rates, range(design.seeds))]
    shape = (len(EXPONENTS), len(rates), design.seeds)
    fits = [fit(depth, layers, runs, optimiser, task, design.epochs) for depth in design.depths]
    validation, test = ([part.view(shape).mean(2) for part in parts] for parts in zip(*fits, strict=True))
    rows = []
    for k, a in enumerate(EXPONENTS):
        best = [int(accuracy[k].argmax()) for accuracy in validation]
        tested = [f"{100 * float(accuracy[k, at]):.0f}" for accuracy, at in zip(test, best, strict=True)]
        kept = [f"{100 * float(accuracy[k, best[0]]):.0f}" for accuracy in test]
        cells = [
            " ".join(f"{rates[at]:.1g}" for at in best),
            f"{SHIFT[optimiser](a):g}",
            " ".join(tested),
            " ".join(kept),
        ]
        rows.append([optimiser, str(layers), f"{a:g}", *cells])
    return rows


def initial(depth: int, layers: int, seed: int, ends: tuple[int, int]) -> list[Tensor]:
    """Stem, blocks (depth, layers, units, units) of He's variance, readout."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator) / math.sqrt(shape[-2])  # noqa: E731
    return [draw(ends[0], WIDTH), math.sqrt(2) * draw(depth, layers, WIDTH, WIDTH), draw(WIDTH, ends[1])]


def outputs(weights: list[Tensor], x: Tensor, eps: Tensor) -> Tensor:
    """Logits (runs, examples, classes)."""
    stem, blocks, readout = weights
    h = x @ stem
    for block in blocks.unbind(1):
        *inner, last = block.unbind(1)
        branch = torch.relu(h)
        for layer in inner:
            branch = torch.relu(branch @ layer)
        h = torch.baddbmm(h, branch, eps * last)
    return h @ readout


def fit(depth: int, layers: int, runs: list[Run], optimiser: str, task: Task, epochs: int) -> list[Tensor]:
    """Accuracies of every run on validation and on test images; outputs that are no numbers are always wrong."""
    eps = torch.tensor([depth**-run.exponent for run in runs])[:, None, None]
    rates = torch.tensor([run.rate for run in runs])
    drawn = (initial(depth, layers, run.seed, task.ends) for run in runs)
    weights = [torch.stack(parts).requires_grad_() for parts in zip(*drawn, strict=True)]
    step = STEPS[optimiser]([torch.zeros_like(part) for part in weights], [torch.zeros_like(part) for part in weights])
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(task.train.labels), generator=generator).split(BATCH):
            found = outputs(weights, task.train.inputs[batch].float(), eps)
            losses = cross_entropies(found, task.train.labels[batch].expand(len(runs), -1))
            moves = step(torch.autograd.grad(losses.sum(), weights))
            with torch.no_grad():
                for part, move in zip(weights, moves, strict=True):
                    part -= rates.view(-1, *[1] * (part.ndim - 1)) * move
    return [accuracies(weights, eps, part) for part in (task.validation, task.test)]


@torch.no_grad()
def accuracies(weights: list[Tensor], eps: Tensor, part: Examples) -> Tensor:
    """Share of examples that each run gets right."""
    found = outputs(weights, part.inputs.float(), eps)
    return ((found.argmax(-1) == part.labels) & found.isfinite().all(-1)).float().mean(1)


Gradients = tuple[Tensor, ...]


def momentum(velocity: list[Tensor], _: list[Tensor]) -> Callable[[Gradients], list[Tensor]]:
    """SGD with momentum 0.9, all runs at once."""

    def step(gradients: Gradients) -> list[Tensor]:
        return [v.mul_(0.9).add_(g) for v, g in zip(velocity, gradients, strict=True)]

    return step


def adam(mean: list[Tensor], square: list[Tensor]) -> Callable[[Gradients], list[Tensor]]:
    """Adam at its usual settings, all runs at once."""
    number = 0

    def step(gradients: Gradients) -> list[Tensor]:
        nonlocal number
        number += 1
        for m, v, g in zip(mean, square, gradients, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
        unbiased = math.sqrt(1 - 0.999**number) / (1 - 0.9**number)
        return [unbiased * m / (v.sqrt() + 1e-8) for m, v in zip(mean, square, strict=True)]

    return step


STEPS = {"SGD": momentum, "Adam": adam}
