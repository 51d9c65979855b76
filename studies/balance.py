"""The best learning rate by depth, of residual networks that `capalloc.balance` has changed and of the same before it.

Networks are as a user would write them: a linear stem, L blocks h + F(relu(h)) of width 32 at He's weights, a linear
readout, on scikit-learn's digits. Indices are (runs, ...): all rates and seeds are trained at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import capalloc
from capalloc.app.demo import load_digits
from studies.blocks import STEPS
from studies.study import Study, table
from studies.training_fit import cross_entropies

WIDTH, BATCH, VALIDATION, SHOWN = 32, 64, 300, 64
OPTIMISERS = {"SGD": "sgd", "Adam": "adam"}


@dataclass(frozen=True)
class Sweep:
    """Sizes of the study."""

    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    layers: tuple[int, ...] = (1, 2)
    rates: int = 9  # half decades from 1e-4 on for SGD, 1e-5 for Adam
    seeds: int = 3
    epochs: int = 6


QUICK = Sweep((2, 3), (1,), 2, 1, 1)


@dataclass(frozen=True)
class Images:
    """Flat digits and their classes: to train, to choose the rate by, and to test."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Block(nn.Module):
    """h + F(relu(h))."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, h: Tensor) -> Tensor:
        """(examples, units)."""
        branch = h
        for layer in self.layers:
            branch = layer(branch.relu())
        return h + branch


def network(depth: int, layers: int, seed: int) -> nn.Sequential:
    """One at its initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, WIDTH), *(Block(layers) for _ in range(depth)), nn.Linear(WIDTH, 10))


def images() -> Images:
    """scikit-learn's digits, pixels standardised together."""
    found = load_digits(0)
    mean, std = found.train_images.mean(), found.train_images.std()
    x, test = (((part - mean) / std).flatten(1) for part in (found.train_images, found.test_images))
    y, k = found.train_labels, VALIDATION
    return Images((x[k:], y[k:]), (x[:k], y[:k]), (test, found.test_labels))


def run(quick: bool = False) -> Study:
    """Train, and tell the best rate by depth."""
    sweep, data = QUICK if quick else Sweep(), images()
    head = ["optimiser", "layers of a block", "", f"best rate at L = {', '.join(map(str, sweep.depths))}"]
    head += ["test accuracy there", "at the rate best at the least depth"]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for optimiser, layers, balanced in product(OPTIMISERS, sweep.layers, (True, False)):
            rows.append(row_of(optimiser, layers, balanced, sweep, data))
    return Study("scaling.md", {"balance": table(head, rows)})


def row_of(optimiser: str, layers: int, balanced: bool, sweep: Sweep, data: Images) -> list[str]:
    """Of one optimiser and kind of block: the best rates, and the accuracies."""
    rates = [(1e-4 if optimiser == "SGD" else 1e-5) * 10 ** (k / 2) for k in range(sweep.rates)]
    best, there, kept = [], [], []
    for depth in sweep.depths:
        losses, accuracies = fit(depth, layers, optimiser, balanced, rates, sweep, data)
        best.append(int(losses.argmin()))
        there.append(f"{100 * float(accuracies[best[-1]]):.0f}")
        kept.append(f"{100 * float(accuracies[best[0]]):.0f}")
    shown = " ".join(f"{rates[k]:.1g}" for k in best)
    return [optimiser, str(layers), "balanced" if balanced else "as it was", shown, " ".join(there), " ".join(kept)]


def fit(
    depth: int, layers: int, optimiser: str, balanced: bool, rates: list[float], sweep: Sweep, data: Images
) -> tuple[Tensor, Tensor]:
    """Validation loss and test accuracy of every rate, means over seeds; what is no number counts as infinite loss."""
    models: list[nn.Module] = [network(depth, layers, seed) for seed in range(sweep.seeds)]
    if balanced:
        x = data.train[0][:SHOWN]
        models = [capalloc.balance(model, x, optimiser=OPTIMISERS[optimiser]) for model in models]  # type: ignore[arg-type]
    params, buffers = (
        {name: part.detach().repeat_interleave(len(rates), 0) for name, part in parts.items()}
        for parts in stack_module_state(models)
    )
    names, weights = list(params), [part.requires_grad_() for part in params.values()]
    call = vmap(lambda theta, kept, x: functional_call(models[0], (theta, kept), (x,)), (0, 0, None))
    step = STEPS[optimiser](*([torch.zeros_like(part) for part in weights] for _ in range(2)))
    by_run = torch.tensor(rates).repeat(sweep.seeds)
    x, y = data.train
    generator = torch.Generator().manual_seed(0)
    for _ in range(sweep.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            found = call(dict(zip(names, weights, strict=True)), buffers, x[batch])
            losses = cross_entropies(found, y[batch].expand(len(by_run), -1))
            moves = step(torch.autograd.grad(losses.sum(), weights))
            with torch.no_grad():
                for part, move in zip(weights, moves, strict=True):
                    part -= by_run.view(-1, *[1] * (part.ndim - 1)) * move
    with torch.no_grad():
        theta = dict(zip(names, weights, strict=True))
        shape = (sweep.seeds, len(rates))
        held = cross_entropies(call(theta, buffers, data.validation[0]), data.validation[1].expand(len(by_run), -1))
        right = (call(theta, buffers, data.test[0]).argmax(-1) == data.test[1]).float().mean(-1)
    return held.nan_to_num(torch.inf, torch.inf).view(shape).mean(0), right.view(shape).mean(0)
