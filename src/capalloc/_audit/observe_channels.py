"""Directions that the channels span which a layer reads, from examples.

Index convention: what a layer reads becomes (samples, channels), a sample for every example and position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from capalloc._model.problem import Problem

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: ReadChannels above which the matrix of their products is not held.
MOST_CHANNELS = 4096
#: Share of the variance that the counted directions hold.
HELD_VARIANCE = 0.99
#: Samples for each channel below which they say nothing of its directions.
SAMPLES_A_CHANNEL = 4
#: Variance over mean square up to which a channel is constant: that of rounding in float32.
CONSTANT = 1e-10


@dataclass
class ReadChannels:
    """Moments of the channels that one layer reads."""

    samples: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    products: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def add(self, read: Tensor) -> None:
        """Count some samples, (samples, channels)."""
        read = read.detach().double().cpu()
        self.samples += len(read)
        self.total = read.sum(0) + (self.total if len(self.total) else 0)
        self.products = read.T @ read + (self.products if len(self.total) and len(self.products) else 0)

    def directions(self) -> float:
        """Return how many directions hold 99 % of the variance, each channel at variance 1; NaN for few samples."""
        number = len(self.total)
        if not number or self.samples < SAMPLES_A_CHANNEL * number:
            return math.nan
        mean = self.total / self.samples
        square = self.products.diagonal() / self.samples
        moving = square - mean**2 > CONSTANT * square
        if not moving.any():
            return 0.0
        covariance = (self.products / self.samples - mean[:, None] * mean)[moving][:, moving]
        scale = covariance.diagonal().rsqrt()
        values = torch.linalg.eigvalsh(scale[:, None] * covariance * scale).flip(0).clamp(min=0)
        return float((values.cumsum(0) < HELD_VARIANCE * values.sum()).sum()) + 1


def observe(problem: Problem, batches: Iterable[Tensor]) -> dict[str, ReadChannels]:
    """Run batches through the private copy, and give what each dense or convolutional layer reads, by its name."""
    found: dict[str, ReadChannels] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        read = args[0]
        if not isinstance(module, nn.Linear):
            read = read.movedim(1, -1)
        if read.shape[-1] <= MOST_CHANNELS:
            found.setdefault(name, ReadChannels()).add(read.reshape(-1, read.shape[-1]))

    layers = {name: module for name, module in problem.model.named_modules() if isinstance(module, LAYERS)}
    handles = [module.register_forward_pre_hook(partial(note, name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                problem.model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
