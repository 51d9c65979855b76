"""Train many networks of one shape at once: every run has its weights and its order of examples, none sees another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from studies.training_networks import Network, factors, forward, initial, stack, streams
from studies.training_tasks import Examples, Task

OPTIMISERS = {
    "SGD": lambda weights, rate: torch.optim.SGD(weights, lr=rate, momentum=0.9),
    "Adam": lambda weights, rate: torch.optim.Adam(weights, lr=rate),
}


@dataclass(frozen=True)
class Budget:
    """How long every run trains."""

    epochs: int = 15
    batch: int = 64
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Outcome:
    """One run after training."""

    loss: float  # mean cross-entropy of the training examples; not finite if training diverged
    validation: float  # accuracies
    test: float
    time: float  # T = sum_l log(1 + lambda_l) from the energies that the training examples have in branches and skips


def fit(runs: Sequence[tuple[Network, int]], task: Task, optimiser: str, rate: float, budget: Budget) -> list[Tensor]:
    """Weights (runs, inputs, outputs) of every layer after training networks of one shape, each with its seed."""
    networks, seeds = zip(*runs, strict=True)
    weights = stack([initial(network, task.ends, seed) for network, seed in runs], budget.dtype)
    descent = OPTIMISERS[optimiser](weights, rate)
    for batch in _orders(seeds, len(task.train.labels), budget):
        outputs = forward(networks, weights, task.train.inputs[batch].to(budget.dtype))
        descent.zero_grad()
        cross_entropies(outputs, task.train.labels[batch]).sum().backward()
        descent.step()
    return [layer.detach() for layer in weights]


def outcomes(networks: Sequence[Network], weights: Sequence[Tensor], task: Task) -> list[Outcome]:
    """Loss, accuracies and T of every run."""
    losses, _ = evaluate(networks, weights, task.train)
    accuracies = [evaluate(networks, weights, part)[1] for part in (task.validation, task.test)]
    times = measured_times(networks, weights, task.train)
    return [Outcome(*run) for run in zip(losses, *accuracies, times, strict=True)]


@torch.no_grad()
def evaluate(networks: Sequence[Network], weights: Sequence[Tensor], part: Examples) -> tuple[list[float], list[float]]:
    """Mean cross-entropy and accuracy of every run; outputs that are no numbers are always wrong."""
    inputs = part.inputs.to(weights[0].dtype).expand(len(networks), -1, -1)
    outputs = forward(networks, weights, inputs)
    labels = part.labels.expand(len(networks), -1)
    right = (outputs.argmax(-1) == labels) & outputs.isfinite().all(-1)
    return cross_entropies(outputs, labels).tolist(), right.double().mean(1).tolist()


def cross_entropies(outputs: Tensor, labels: Tensor) -> Tensor:
    """Of every run (runs,), from outputs (runs, examples, classes) and labels (runs, examples)."""
    losses = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)


@torch.no_grad()
def measured_times(networks: Sequence[Network], weights: Sequence[Tensor], part: Examples) -> list[float]:
    """T of every run, lambda_l = mean square of the branch / mean square of the skip; infinite for plain networks."""
    inputs = part.inputs.to(weights[0].dtype).expand(len(networks), -1, -1)
    skip, _ = factors(networks, inputs)
    time = torch.zeros(len(networks))
    for before, after in pairwise(streams(networks, weights, inputs)):
        stay = skip * before
        time += ((after - stay).square().sum((1, 2)) / stay.square().sum((1, 2))).log1p()
    return time.tolist()


def _orders(seeds: Sequence[int], num_examples: int, budget: Budget) -> Iterator[Tensor]:
    """Batches (runs, examples) of indices: a new order of each run's own for every epoch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(budget.epochs):
        order = torch.stack([torch.randperm(num_examples, generator=generator) for generator in generators])
        yield from order.split(budget.batch, dim=1)
