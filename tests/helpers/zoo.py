"""Small networks that the tests share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

REFERENCE_CAPACITY = [8.37451321, 7.21119266, 7.41429413]  # docs/theory.md, section 7
SCALED_REFERENCE_CAPACITY = [6.91497091, 11.4073934, 4.67763568]


def reference_weights(scale: Sequence[float] = (1, 1, 1)) -> list[Tensor]:
    """The weights of docs/theory.md, section 7, with the columns of the first scaled."""
    rng = np.random.default_rng(0)
    weights = [torch.tensor(rng.normal(size=shape)) for shape in [(4, 3), (3, 4), (2, 3)]]
    return [weights[0] * torch.tensor(scale, dtype=torch.float64), *weights[1:]]


def dense(weights: Sequence[Tensor], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A bias-free dense network with the given weights."""
    layers: list[nn.Module] = []
    for k, weight in enumerate(weights):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        layer.weight.data = weight.clone()
        layers += [layer, activation()] if k < len(weights) - 1 else [layer]
    return nn.Sequential(*layers)


def seeded_module(build: type[nn.Module] | object, *args: object, seed: int = 0, **kwargs: object) -> nn.Module:
    """A module with repeatable weights in float64, the global random state left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **kwargs).double()  # type: ignore[operator]


def gaussian(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Residual1d(nn.Module):
    """Stem, blocks h + conv(relu(conv(h))) without biases, a linear head on the middle position."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        conv = lambda i: nn.Conv1d(i, channels, 3, padding=1, bias=False)  # noqa: E731
        self.stem = conv(1)
        self.first = nn.ModuleList(conv(channels) for _ in range(blocks))
        self.second = nn.ModuleList(conv(channels) for _ in range(blocks))
        self.head = nn.Linear(channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            h = h + second(torch.relu(first(h)))
        return self.head(torch.relu(h)[:, :, h.shape[2] // 2])


class NormedResidual(nn.Module):
    """The network of docs/theory.md's worked count: 77 parameters, 16 symmetries."""

    def __init__(self) -> None:
        super().__init__()
        conv = lambda i: nn.Conv1d(i, 2, 3, padding=1, bias=False)  # noqa: E731
        self.stem = nn.Sequential(conv(1), nn.BatchNorm1d(2))
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(2), nn.BatchNorm1d(2), nn.ReLU(), conv(2), nn.BatchNorm1d(2)) for _ in range(2)
        )
        self.head = nn.Linear(2, 1)
        for name, p in self.named_parameters():
            if "bias" in name:
                nn.init.normal_(p)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = torch.relu(h + block(h))
        return self.head(h.mean(2))


class Convolutional(nn.Module):
    """Blocks h + factor conv(activation(h)), averaged over positions."""

    def __init__(
        self,
        depth: int = 4,
        factor: float = 1.0,
        channels: int = 4,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        conv = lambda ins: nn.Conv2d(ins, channels, 3, padding=1, bias=False)  # noqa: E731
        self.stem = conv(1)
        self.blocks = nn.ModuleList(conv(channels) for _ in range(depth))
        self.head = nn.Linear(channels, 3)
        self.factor = factor
        for block in self.blocks:
            nn.init.normal_(block.weight, std=math.sqrt(2 / (9 * channels)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + self.factor * block(self.activation(h))
        return self.head(h.mean((2, 3)))
