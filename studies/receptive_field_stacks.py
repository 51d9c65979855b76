"""Stacks of convolutions, and the law of their walk in closed form (docs/theory.md, sections 5 and 6).

Index convention: layers from the input to the output; laws are over offsets -reach .. reach from the centre, on one
axis of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ACTIVATIONS = ("linear", "relu", "tanh")
WEIGHTS = ("random", "signs", "uniform", "binomial")


@dataclass(frozen=True)
class Stack:
    """Convolutions of one kernel size from a gray image to one channel, the same activation between them."""

    kernel: int
    depth: int
    activation: str = "relu"
    weights: str = "random"
    channels: int = 16
    dilations: tuple[int, ...] = (1,)  # repeated up to the depth
    strides: tuple[int, ...] = ()  # of the first layers; the others have 1
    branch: float | None = None  # eps of `depth` residual blocks h + eps conv(relu(h)); None without residuals

    def __post_init__(self) -> None:
        for name, value in (("kernel", self.kernel), ("depth", self.depth), ("channels", self.channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, to have a central entry, got {self.kernel}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {WEIGHTS}, got {self.weights!r}")
        if not self.dilations or min(self.dilations) < 1 or min(self.strides, default=1) < 1:
            raise ValueError(f"dilations and strides must be at least 1, got {self.dilations} and {self.strides}")
        if len(self.strides) > self.depth:
            raise ValueError(f"strides are for the first layers of {self.depth}, got {len(self.strides)}")
        if self.branch is not None and (self.strides or self.activation == "tanh"):
            raise ValueError(
                "branch is for blocks without strides and of unit gain, activation linear or relu: "
                f"got {self.activation!r} and strides {self.strides}"
            )

    def dilation(self, layer: int) -> int:
        """Of one layer, counted from the input."""
        return self.dilations[layer % len(self.dilations)]

    @property
    def scales(self) -> tuple[int, ...]:
        """Input pixels between neighbouring entries of each layer's kernel: its dilation times the strides below it."""
        strides = [*self.strides, *[1] * self.depth][: self.depth - 1]
        below = accumulate(strides, lambda a, b: a * b, initial=1)
        return tuple(self.dilation(k) * stride for k, stride in enumerate(below))

    @property
    def row(self) -> Array:
        """What the kernel is along one axis, up to signs and the mean over random weights: even or binomial."""
        if self.weights == "binomial":
            return np.array([math.comb(self.kernel - 1, k) for k in range(self.kernel)]) / 2 ** (self.kernel - 1)
        return np.ones(self.kernel) / self.kernel

    @property
    def step(self) -> Array:
        """Law of one step of the walk, in entries of the kernel: w^2 / |w|^2 (section 4)."""
        return self.row**2 / sum(self.row**2)

    @property
    def move(self) -> float:
        """Probability of a step at a layer: 1, or lambda / (1 + lambda) with lambda = eps^2 (section 5)."""
        return 1.0 if self.branch is None else self.branch**2 / (1 + self.branch**2)

    @property
    def size(self) -> int:
        """The theoretical field: 1 + sum_l (k - 1) scale_l."""
        return 1 + (self.kernel - 1) * sum(self.scales)

    @property
    def deviation(self) -> float:
        """Standard deviation of the walk: sqrt(sum_l move x step variance x scale_l^2).

        The step variance is (k^2 - 1) / 12, but for binomial weights.
        """
        step = self.step
        variance = float(step @ offsets(step) ** 2)
        return math.sqrt(self.move * variance * sum(scale**2 for scale in self.scales))

    @property
    def reach(self) -> int:
        """Pixels kept on each side of the centre: the theoretical field, or five deviations and two kernels of it."""
        wanted = min((self.size - 1) // 2, math.ceil(5 * self.deviation) + 2 * self.kernel)
        unit = math.prod(self.strides)  # the output position then lies on the image's centre
        return -(-wanted // unit) * unit

    def law(self, reach: int | None = None) -> Array:
        """The walk from the centre, on one axis: at every layer a step with probability `move`.

        Args:
            reach: pixels on each side, by default `self.reach`; what lies outside is left out.

        """
        exact = reduce(np.convolve, (_spread(self.step, scale, self.move) for scale in self.scales))
        reach = self.reach if reach is None else reach
        middle = len(exact) // 2
        missing = max(reach - middle, 0)
        return np.pad(exact, missing)[middle + missing - reach : middle + missing + reach + 1]


def _spread(step: Array, scale: int, move: float) -> Array:
    law = np.zeros((len(step) - 1) * scale + 1)
    law[::scale] = move * step
    law[len(law) // 2] += 1 - move
    return law


def offsets(law: Array) -> Array:
    """Pixels from the centre, for the last axis of a law."""
    reach = law.shape[-1] // 2
    return np.arange(-reach, reach + 1, dtype=float)
