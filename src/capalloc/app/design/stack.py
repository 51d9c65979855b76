"""A stack of convolutions as a few settings: what a person chooses on the design page.

The network is stem -> `depth` layers -> head. The stem reads the input's channels and writes `width` of them. A layer
is h + multiplier * conv(activation(h)), or conv(activation(h)) where it has no skip; a norm may stand before each
activation, and max pooling behind it. The head is a 1 x 1 convolution of activation(h) to one channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
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
    "growth": (0.5, 2.0),
    "upsampled": (0, 4),
    "in_channels": (1, 64),
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
#: What a strided layer does: its convolution has the stride, an average over so many positions follows it, or it reads
#: the largest of so many activations.
REDUCTIONS: Final[tuple[str, ...]] = ("stride", "average", "max")
#: Most channels of a free width.
WIDEST_FREE: Final = 1024
#: Norms whose statistics are of all positions of an example.
ACROSS_POSITIONS: Final[tuple[str, ...]] = ("group", "instance")
#: Fewest channels of which a layer norm leaves something, and positions of which an instance norm does.
NARROWEST_NORMED: Final = 2
#: The words of every setting that is one.
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "residual": tuple(RESIDUALS),
    "activation": ACTIVATIONS,
    "norm": ("none", "batch", "layer", "group", "instance"),
    "reduction": REDUCTIONS,
}


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
            have no skip. With "max" they start with the first layer, as the stem reads no activation.
        reduction: of the strided layers: "stride", "average" over as many positions after the convolution, or "max",
            the largest of as many activations before it.
        upsampled: number of layers that repeat every position `stride` times before they convolve, 0 to 4 and at most
            `strided`: the last layer, and further ones evenly spread over the second half, which have no skip; strided
            ones then stand in the first half.
        width: channels, 1 to 256.
        growth: what a strided layer multiplies the width by, 0.5 to 2, and an upsampled one divides it by.
        stages: channels in the place of `width` and `growth`, each 1 to 1024: one number for each resolution, in the
            order in which they come first, or one for the stem and each layer. A change of width leaves no skip.
        depthwise: True for a convolution of each channel by itself and then one of 1 x 1, in the place of each layer's.
        causal: True where nothing reads what comes after it; one axis, and the last output position is the one read.
        residual: law of the branch multiplier with depth: `"constant"`, `"1/sqrt(L)"`, `"1/L"`, or `"none"`, no skip.
        multiplier: of a branch, 0.05 to 2, beside that law.
        activation: one of `ACTIVATIONS`.
        norm: before each activation: "batch", "layer" over the channels of each position, "group" over all channels and
            positions of an example, "instance" over the positions of each of its channels, or "none".
        bias: True for convolutions with biases, which start at zero.
        in_channels: of the input, 1 to 64.
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
    in_channels: int = 1
    norm: str = "none"
    bias: bool = False
    causal: bool = False
    depthwise: bool = False
    reduction: str = "stride"
    upsampled: int = 0
    growth: float = 1.0
    stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        for name, (low, high) in LIMITS.items():
            _check_range(name, getattr(self, name), low, high)
        _check_range("size", self.size, *SIZES[self.ndim])
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a central entry, got {self.kernel}")
        room = self.depth // 2 if self.upsampled else self.depth
        if self.strided > room:
            what = "half the depth, as upsampled layers take the other half" if self.upsampled else "the depth"
            raise ValueError(f"strided must be at most {what}, {room}, got {self.strided}: use fewer")
        if self.upsampled > self.strided:
            raise ValueError(f"upsampled must be at most strided, {self.strided}, got {self.upsampled}: use fewer")
        if self.causal and self.ndim > 1:
            raise ValueError("causal must be False with two axes: only one axis has a direction")
        if self.causal and self.norm in ACROSS_POSITIONS:
            raise ValueError(f"causal must be False with this norm, {self.norm}: its statistics are of all positions")
        if min(self.sizes) < 1:
            raise ValueError(f"size must leave a position to every average, got {self.size}: use fewer strided layers")
        if self.norm == "instance" and min(self.sizes) < NARROWEST_NORMED:
            raise ValueError(
                f"size must leave two positions to every instance norm, got {self.size}: use fewer strided"
            )
        self._check_widths()

    def _check_widths(self) -> None:
        kinds = len(set(self.levels))
        if self.stages and len(self.stages) not in (kinds, self.depth + 1):
            raise ValueError(
                f"stages must be {kinds} widths, one for each resolution, or {self.depth + 1}, one for the stem and "
                f"each layer, got {len(self.stages)}"
            )
        for width in self.stages:
            _check_range("stages", width, 1, WIDEST_FREE)
        if self.norm == "layer" and min(self.widths[1:]) < NARROWEST_NORMED:
            name = "stages" if self.stages else "width"
            raise ValueError(
                f"{name} must be at least {NARROWEST_NORMED} with a layer norm, which leaves one channel nothing"
            )

    @property
    def branch(self) -> float | None:
        """Multiplier of every branch, $epsilon$: `multiplier` times $L^0$, $L^(-1/2)$ or $L^-1$; None without skips."""
        power = RESIDUALS[self.residual]
        return None if power is None else self.multiplier * self.depth**power

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stem and of every layer, (depth + 1,)."""
        strides, room = [1] * (self.depth + 1), self.depth // 2 if self.upsampled else self.depth
        for k in range(self.strided):
            strides[k * room // self.strided + (self.reduction == "max")] = self.stride  # 0 is the stem
        return tuple(strides)

    @property
    def averages(self) -> bool:
        """True where averages stand in the place of strides."""
        return self.reduction == "average" and self.stride > 1

    @property
    def maxima(self) -> bool:
        """True where maxima do."""
        return self.reduction == "max" and self.stride > 1

    @property
    def conv_strides(self) -> tuple[int, ...]:
        """Strides of the convolutions themselves, of stem and layers."""
        return self.strides if self.reduction == "stride" else (1,) * len(self.strides)

    @property
    def repeats(self) -> tuple[int, ...]:
        """Number of times that every layer repeats the positions that it reads, 1 for the stem, (depth + 1,)."""
        found = [1] * (self.depth + 1)
        for k in range(self.upsampled):
            found[self.depth - k * (self.depth // 2) // self.upsampled] = self.stride
        return tuple(found)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Positions on an axis of the input, and of what the stem and every layer write, (depth + 2,)."""
        sizes = [self.size]
        for stride, repeat in zip(self.strides, self.repeats, strict=True):
            whole = sizes[-1] * repeat
            sizes.append(-(-whole // stride) if self.reduction == "stride" else whole // stride)
        return tuple(sizes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the input, and of what the stem and every layer write, (depth + 2,)."""
        levels = self.levels
        if len(self.stages) == len(levels):
            return self.in_channels, *self.stages
        if self.stages:
            by_level = dict(zip(dict.fromkeys(levels), self.stages, strict=True))
            return self.in_channels, *(by_level[level] for level in levels)
        least = NARROWEST_NORMED if self.norm == "layer" and self.width > 1 else 1
        grown = (max(least, round(self.width * self.growth**level)) for level in levels[1:])
        return self.in_channels, self.width, *grown

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of times that positions became fewer since the stem, for it and for every layer, (depth + 1,)."""
        changed = zip(self.strides[1:], self.repeats[1:], strict=True)
        return tuple(accumulate(((stride > 1) - (repeat > 1) for stride, repeat in changed), initial=0))

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilations of all layers, (depth,)."""
        return tuple(self.dilation * 2 ** (k % self.cycle) for k in range(self.depth))

    @property
    def skips(self) -> tuple[bool, ...]:
        """True for each layer with a skip, (depth,): none without a law, nor where positions or the width change."""
        widths = self.widths
        changed = zip(self.strides[1:], self.repeats[1:], widths[1:], widths[2:], strict=False)
        return tuple(self.branch is not None and stride == repeat == 1 and a == b for stride, repeat, a, b in changed)

    @property
    def deviations(self) -> tuple[float, ...]:
        """Standard deviation at initial weights of what the activations of the layers and the head are given.

        It is 1 after the stem and after layers without a skip. A block multiplies the variance by $1 + epsilon^2$, or
        with a norm, behind which branches do not grow with what they read, adds $epsilon^2$. (depth + 1,)
        """
        found = [1.0]
        for skip in self.skips:
            change = (self.branch or 0.0) ** 2
            whole = found[-1] ** 2 + change if self.norm != "none" else found[-1] ** 2 * (1 + change)
            found.append(whole**0.5 if skip else 1.0)
        return tuple(found)

    @property
    def divides(self) -> bool:
        """True where activations read their input over its deviation: curved ones in a stack without norms."""
        return self.norm == "none" and self.activation not in HOMOGENEOUS_ACTIVATIONS and any(self.skips)

    @property
    def num_params(self) -> int:
        """Weights of the stem, the layers and the head, biases, and two numbers of every channel that is normalised."""
        taps: int = self.kernel**self.ndim
        widths = self.widths
        pairs = list(pairwise(widths[1:]))
        weights = widths[0] * widths[1] * taps + widths[-1]
        weights += sum(a * taps + a * b if self.depthwise else a * b * taps for a, b in pairs)
        return weights + self.num_shifts + (sum(widths[1:]) if self.norm != "none" else 0)

    @property
    def num_shifts(self) -> int:
        """Parameters that read nothing but the constant: biases, and the shifts of norms."""
        written = sum(self.widths[1:]) + 1 + (sum(self.widths[1:-1]) if self.depthwise else 0)
        return (written if self.bias else 0) + (sum(self.widths[1:]) if self.norm != "none" else 0)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails too
        raise ValueError(f"{name} must lie from {low} to {high}, got {value}")
