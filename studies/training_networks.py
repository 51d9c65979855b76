"""The networks of the training study, and how many of one shape run at once.

Index convention of tensors: (runs, examples, units). A run is one network with one seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class Network:
    """A linear stem, `depth` blocks h <- skip h + branch W phi(h), a linear readout; no biases.

    Weights of a block have variance scale / width. A plain network has skip = 0. `normalised` branches read the layer
    norm of h, without parameters.
    """

    family: str
    depth: int
    skip: float = 1.0
    branch: float = 1.0
    scale: float = 2.0
    activation: str = "relu"
    normalised: bool = False
    width: int = 32

    def __post_init__(self) -> None:
        if min(self.depth, self.width) < 1:
            raise ValueError(f"depth and width must be at least 1, got {self.depth} and {self.width}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def is_plain(self) -> bool:
        """Whether no path skips a block."""
        return self.skip == 0


def plain(family: str, depth: int, scale: float, activation: str = "relu") -> Network:
    """h <- W phi(h)."""
    return Network(family, depth, skip=0.0, scale=scale, activation=activation)


def residual(family: str, depth: int, power: float) -> Network:
    """h <- h + depth^power W relu(h), of rate depth^(2 power)."""
    return Network(family, depth, branch=depth**power)


def divided(family: str, depth: int, power: float) -> Network:
    """The residual block over sqrt(1 + eps^2): the same paths, without gain."""
    eps = depth**power
    return Network(family, depth, skip=1 / math.hypot(1, eps), branch=eps / math.hypot(1, eps))


def families(depth: int) -> list[Network]:
    """All networks of one depth; the last has blocks that do nothing: a linear readout of the stem."""
    return [
        plain("plain, He", depth, 2.0),
        plain("plain, 1.5 He", depth, 3.0),
        plain("plain, 2 He", depth, 4.0),
        plain("plain, 1/n", depth, 1.0),
        plain("plain tanh, 1/n", depth, 1.0, "tanh"),
        residual("residual, 1", depth, 0.0),
        residual("residual, $L^{-1/4}$", depth, -0.25),
        residual("residual, $L^{-1/2}$", depth, -0.5),
        residual("residual, $L^{-1}$", depth, -1.0),
        residual("residual, $L^{-2}$", depth, -2.0),
        divided("divided, 1", depth, 0.0),
        divided("divided, $L^{-1/4}$", depth, -0.25),
        Network("normalised branch", depth, normalised=True),
        Network("no blocks", depth, branch=0.0),
    ]


def batches(networks: Sequence[Network]) -> Iterator[list[Network]]:
    """Networks that can run at once: same depth, width, activation and norm."""
    shapes = sorted({_shape(network) for network in networks})
    for shape in shapes:
        yield [network for network in networks if _shape(network) == shape]


def initial(network: Network, ends: tuple[int, int], seed: int) -> list[Tensor]:
    """Stem, blocks, readout between `ends`, inputs and classes: networks of one depth differ by factors alone."""
    generator = torch.Generator().manual_seed(seed)
    scales = [1.0, *[network.scale] * network.depth, 1.0]
    sizes = [ends[0], *[network.width] * (network.depth + 1), ends[1]]
    return [
        torch.randn(n, m, generator=generator, dtype=torch.float64) * math.sqrt(scale / n)
        for n, m, scale in zip(sizes[:-1], sizes[1:], scales, strict=True)
    ]


def stack(runs: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Weights (runs, inputs, outputs) of every layer, as leaves."""
    return [torch.stack(layer).to(dtype).requires_grad_() for layer in zip(*runs, strict=True)]


def forward(networks: Sequence[Network], weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs (runs, examples, classes) of runs of one shape at inputs (runs, examples, inputs)."""
    *_, last = streams(networks, weights, x)
    return last @ weights[-1]


def streams(networks: Sequence[Network], weights: Sequence[Tensor], x: Tensor) -> Iterator[Tensor]:
    """The stream (runs, examples, units) behind the stem and behind every block."""
    phi, normalised = ACTIVATIONS[networks[0].activation], networks[0].normalised
    skip, branch = factors(networks, x)
    h = x @ weights[0]
    yield h
    for block in weights[1:-1]:
        read = torch.nn.functional.layer_norm(h, h.shape[-1:]) if normalised else h
        h = torch.baddbmm(skip * h, phi(read), branch * block)
        yield h


def factors(networks: Sequence[Network], like: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (runs, 1, 1) of skip and branch."""
    skip, branch = ([getattr(network, name) for network in networks] for name in ("skip", "branch"))
    return tuple(torch.tensor(values, dtype=like.dtype)[:, None, None] for values in (skip, branch))


def _shape(network: Network) -> tuple[int, int, str, bool]:
    return network.depth, network.width, network.activation, network.normalised
