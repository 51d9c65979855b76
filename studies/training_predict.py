"""What theory says of a network of the training study before it is trained (docs/theory.md, sections 5 and 6).

The rule below was fixed before the first network was trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from capalloc.gates import gaussian_decoupling, gaussian_gate_moment
from studies.training_networks import Network

#: Energy may grow or shrink by this factor from the stem to the readout.
LARGEST_GAIN = 1e3
#: Gradients of two examples must correlate more than this: about one over the size of a batch, below which the mean
#: gradient of a batch is mostly that of its members alone. The same bound as on the share of paths through no branch.
SHATTERED = 0.01
#: A residual network whose paths skip all branches with more than this probability is its stem and readout.
IDLE = 0.9


@dataclass(frozen=True)
class Prediction:
    """Numbers at initial weights, from theory alone."""

    plain: bool
    time: float  # T = sum_l log(1 + lambda_l); infinite for plain networks
    gain: float  # energy at the readout / energy at the stem
    correlation: float  # of the gradients at two examples with orthogonal inputs

    @property
    def skipping(self) -> float:
        """Share of path energy that goes through no branch, e^-T."""
        return math.exp(-self.time)

    @property
    def gain_fits(self) -> bool:
        """Whether the signal neither explodes nor vanishes."""
        return 1 / LARGEST_GAIN <= self.gain <= LARGEST_GAIN

    @property
    def phase(self) -> str:
        """By e^-T for residual networks; by gain and gradient correlation for plain ones."""
        if self.plain and not self.gain_fits:
            return "explodes" if self.gain > 1 else "vanishes"
        if (self.correlation if self.plain else self.skipping) < SHATTERED:
            return "shatters"
        return "no propagation" if self.skipping > IDLE else "balanced"

    @property
    def trains(self) -> bool:
        """The gain is within bounds and gradients are not shattered."""
        return self.gain_fits and self.correlation >= SHATTERED

    @property
    def uses_blocks(self) -> bool:
        """It trains, and its blocks take part."""
        return self.trains and self.skipping <= IDLE


def predict(network: Network) -> Prediction:
    """T, gain and gradient correlation of a wide network at random weights, for two inputs of energy 1 and product 0.

    With energy q and example correlation rho of the stream, b = branch^2 scale E[phi(z)^2], lambda = b / (skip^2 q):
    the correlation of gradients is prod_l (1 - d_l lambda_l / (1 + lambda_l)) (docs/theory.md, section 6).
    """
    energy, product, time, correlation = 1.0, 0.0, 0.0, 1.0
    for _ in range(network.depth):
        rho = min(1.0, product / energy)
        own, cross, decoupling = moments(network.activation, rho, 1.0 if network.normalised else energy)
        factor = network.branch**2 * network.scale
        stay, step = network.skip**2 * energy, factor * own
        correlation *= 1 - decoupling * step / (stay + step)
        time += math.log1p(step / stay) if stay else math.inf
        energy, product = stay + step, network.skip**2 * product + factor * cross
    return Prediction(network.is_plain, time, energy, correlation)


@cache
def moments(activation: str, rho: float, energy: float) -> tuple[float, float, float]:
    """E[phi(z)^2], E[phi(z) phi(z')] and the decoupling of Gaussians z, z' of variance `energy`, correlation `rho`."""
    if activation == "relu":
        angle = math.acos(rho)
        return energy / 2, energy * (math.sin(angle) + rho * (math.pi - angle)) / (2 * math.pi), angle / math.pi
    # The gate moment of an activation's integral is the activation's own moment.
    values = gaussian_gate_moment(log_cosh, [1.0, rho], energy, kinks=())
    return float(values[0]), float(values[1]), float(gaussian_decoupling("tanh", rho, energy, kinks=()))


def log_cosh(z: Tensor) -> Tensor:
    """The integral of tanh, without overflow."""
    return z.abs() + torch.nn.functional.softplus(-2 * z.abs()) - math.log(2)
