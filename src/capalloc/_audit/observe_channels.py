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
#: Correlation up to 1 from which two channels are one: what rounding in float32 leaves.
REPEATED = 1e-6


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

    @property
    def number(self) -> float:
        """Number of channels: 0 where the layer is never called, NaN where they are too many to compare."""
        return math.nan if self.samples and not len(self.total) else len(self.total)

    @property
    def few(self) -> bool:
        """True where there are too few samples to say anything."""
        return self.samples < SAMPLES_A_CHANNEL * len(self.total)

    def _correlations(self) -> tuple[Tensor, Tensor]:
        """Those of the channels that vary, and which these are."""
        mean = self.total / self.samples
        square = self.products.diagonal() / self.samples
        moving = square - mean**2 > CONSTANT * square
        covariance = (self.products / self.samples - mean[:, None] * mean)[moving][:, moving]
        scale = covariance.diagonal().rsqrt()
        return scale[:, None] * covariance * scale, moving.nonzero().flatten()

    def directions(self) -> float:
        """Return how many directions hold 99 % of the variance, each channel at variance 1; NaN for few samples."""
        if not len(self.total) or self.few:
            return math.nan
        correlations, moving = self._correlations()
        if not len(moving):
            return 0.0
        values = torch.linalg.eigvalsh(correlations).flip(0).clamp(min=0)
        return float((values.cumsum(0) < HELD_VARIANCE * values.sum()).sum()) + 1

    def repeats(self) -> list[tuple[int, int]]:
        """Return channels that are another one but for scale and offset, each with the first such; none for few."""
        if not len(self.total) or self.few:
            return []
        correlations, moving = self._correlations()
        if not len(moving):
            return []
        alike = correlations.abs().triu(1) > 1 - REPEATED
        first = alike.int().argmax(0)  # the first one in each column
        return [(int(moving[k]), int(moving[first[k]])) for k in alike.any(0).nonzero().flatten()]


def observe(problem: Problem, batches: Iterable[Tensor]) -> dict[str, ReadChannels]:
    """Run batches through the private copy, and give what each dense or convolutional layer reads, by its name."""
    layers = {name: module for name, module in problem.model.named_modules() if isinstance(module, LAYERS)}
    found = {name: ReadChannels() for name in layers}

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        read = args[0]
        if not isinstance(module, nn.Linear):
            read = read.movedim(1, -1)
        if read.shape[-1] > MOST_CHANNELS:
            found[name].samples += read[..., 0].numel()
        else:
            found[name].add(read.reshape(-1, read.shape[-1]))

    handles = [module.register_forward_pre_hook(partial(note, name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                problem.model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
