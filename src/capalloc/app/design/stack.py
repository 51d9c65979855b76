"""A stack of convolutions as a few settings: what a person chooses on the design page.

The network is stem -> `depth` layers -> head, without biases. The stem reads one channel and writes `width` of them. A
layer is h + multiplier * conv(activation(h)), or conv(activation(h)) where it has no skip. The head is a 1 x 1
convolution of activation(h) to one channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from capalloc._runtime.arguments import checked_fields

#: Lowest and highest value of every number, for the controls and for what a link may ask for.
LIMITS: Final[dict[str, tuple[float, float]]] = {
    "depth": (1, 100),
    "kernel": (1, 11),
    "dilation": (1, 8),
    "cycle": (1, 10),
    "stride": (1, 3),
    "strided": (1, 4),
    "width": (1, 256),
    "multiplier": (0.05, 2.0),
    "ndim": (1, 2),
}
#: Lowest and highest number of positions on an axis of the input, by the number of axes.
SIZES: Final[dict[int, tuple[int, int]]] = {1: (8, 512), 2: (8, 64)}
#: What branches are multiplied by, beside `multiplier`, by the law's name; "none" has no skip.
RESIDUALS: Final[dict[str, float | None]] = {"none": None, "constant": 0.0, "1/sqrt(L)": -0.5, "1/L": -1.0}
#: Activations that a positive factor goes through, whatever the variance that they read.
HOMOGENEOUS_ACTIVATIONS: Final[tuple[str, ...]] = ("relu", "leaky_relu", "linear")
ACTIVATIONS: Final[tuple[str, ...]] = ("relu", "leaky_relu", "gelu", "silu", "elu", "tanh", "linear")


@checked_fields
@dataclass(frozen=True)
class Design:
    """The settings of a stack of convolutions, checked.

    Args:
        depth: number of layers L between stem and head, 1 to 100.
        kernel: size of every kernel, odd, 1 to 11 on each axis.
        dilation: pixels between neighbouring entries of a kernel, 1 to 8, in the first layer of a cycle.
        cycle: layers in which the dilation doubles from one to the next, 1 to 10, before it starts again; 1 keeps it.
        stride: of the strided layers, 1 to 3.
        strided: number of strided layers, 1 to 4 and at most `depth`: the stem, and further ones evenly spread, which
            have no skip.
        width: channels, 1 to 256.
        residual: law of the branch multiplier with depth: "constant", "1/sqrt(L)", "1/L", or "none" for no skip.
        multiplier: of a branch, 0.05 to 2, beside that law.
        activation: one of `ACTIVATIONS`.
        ndim: axes of the input, 1 or 2.
        size: positions on each of them: 8 to 512 for one axis, 8 to 64 for two.

    Raises:
        TypeError: a number of the wrong type.
        ValueError: a setting out of its range.

    """

    depth: int = 16
    kernel: int = 3
    dilation: int = 1
    cycle: int = 1
    stride: int = 1
    strided: int = 1
    width: int = 32
    residual: str = "1/sqrt(L)"
    multiplier: float = 1.0
    activation: str = "relu"
    ndim: int = 2
    size: int = 45

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            _check_range(name, getattr(self, name), low, high)
        _check_range("size", self.size, *SIZES[self.ndim])
        for name, known in (("residual", tuple(RESIDUALS)), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a central entry, got {self.kernel}")
        if self.strided > self.depth:
            raise ValueError(f"strided must be at most the depth, {self.depth}, got {self.strided}: use fewer")

    @property
    def branch(self) -> float | None:
        """The multiplier of every branch, eps = multiplier x L^0, L^-1/2 or L^-1; None without skips."""
        power = RESIDUALS[self.residual]
        return None if power is None else self.multiplier * self.depth**power

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stem and of every layer, (depth + 1,)."""
        strides = [1] * (self.depth + 1)
        for k in range(self.strided):
            strides[k * self.depth // self.strided] = self.stride  # 0 is the stem
        return tuple(strides)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilations of all layers, (depth,)."""
        return tuple(self.dilation * 2 ** (k % self.cycle) for k in range(self.depth))

    @property
    def skips(self) -> tuple[bool, ...]:
        """True for each layer with a skip connection, (depth,): none at a stride, nor without a residual law."""
        return tuple(self.branch is not None and stride == 1 for stride in self.strides[1:])

    @property
    def deviations(self) -> tuple[float, ...]:
        """The divisor of each activation's input, those of the layers and the head's, (depth + 1,).

        Its standard deviation at initial weights: 1 after the stem and after layers without a skip; a block multiplies
        it by sqrt(1 + eps^2). 1 throughout for homogeneous activations, to which it makes no difference.
        """
        if self.activation in HOMOGENEOUS_ACTIVATIONS:
            return (1.0,) * (self.depth + 1)
        found = [1.0]
        for skip in self.skips:
            found.append(found[-1] * math.hypot(1.0, self.branch or 0.0) if skip else 1.0)
        return tuple(found)

    @property
    def num_params(self) -> int:
        """Weights of the stem, the layers and the head."""
        taps: int = self.kernel**self.ndim
        return self.width * taps + self.depth * self.width**2 * taps + self.width


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails too
        raise ValueError(f"{name} must lie from {low} to {high}, got {value}")
