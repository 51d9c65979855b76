"""The classical 1-D architectures as linear filters: a window of the past in, one prediction out.

Index convention: windows are (examples, inputs) in time order, the last value the most recent; inside, signals are
(examples, channels, positions). An architecture that does not reach back over the whole window leaves the rest alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capalloc._runtime.arguments import checked

#: Weights start as averages plus noise of this share of what keeps the signal's variance: random signs alone make
#: products of many layers vanish on most paths.
SPREAD = 0.5


class WindowConvolution(nn.Module):
    """A convolution without bias over `positions` places; without sharing every place has weights of its own.

    Place t of the output reads inputs t * stride + dilation * (0 .. kernel - 1).
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        positions: int,
        generator: torch.Generator,
        *,
        stride: int = 1,
        dilation: int = 1,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.kernel, self.positions, self.shared = kernel, positions, shared
        self.stride, self.dilation = stride, dilation
        shape = (channels[1], channels[0], kernel) if shared else (positions, channels[1], channels[0], kernel)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        fan = channels[0] * kernel
        self.weight = nn.Parameter(1.0 / fan + SPREAD * noise / math.sqrt(fan))

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, channels, positions) to the same of the output."""
        last = (self.positions - 1) * self.stride + 1
        taps = [x[..., d : d + last : self.stride] for d in range(0, self.kernel * self.dilation, self.dilation)]
        columns = torch.stack(taps, -1)
        equation = "oik,eink->eon" if self.shared else "noik,eink->eon"
        out: Tensor = torch.einsum(equation, self.weight, columns)
        return out


class WindowFilter(nn.Module):
    """Layers on the latest values of a window; they end in one channel and one place."""

    def __init__(self, field: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.field = field
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, inputs) to (examples, 1)."""
        out: Tensor = self.layers(x[:, None, x.shape[1] - self.field :])[:, 0]
        return out


class LinearRecurrence(nn.Module):
    """h_t = A h_(t-1) + b x_t, prediction c'h_t at the end of the window: a filter w_lag = c'A^(lag-1) b."""

    def __init__(self, units: int, generator: torch.Generator) -> None:
        super().__init__()
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.transition = nn.Parameter(torch.linalg.qr(draw(units, units)).Q * 0.95)
        self.read = nn.Parameter(draw(units) / math.sqrt(units))
        self.write = nn.Parameter(draw(units) / math.sqrt(units))

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, inputs) to (examples, 1)."""
        # A^lag b, doubled until they cover the window
        states: Tensor = self.write[:, None]
        power: Tensor = self.transition
        while states.shape[1] < x.shape[1]:
            states = torch.cat([states, power @ states], 1)
            power = power @ power
        return x @ (self.read @ states)[: x.shape[1]].flip(0)[:, None]


class BlockAverage(nn.Module):
    """Means over blocks of `size` places."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, channels, positions) to a `size`-th of the positions."""
        means: Tensor = x.unflatten(-1, (-1, self.size)).mean(-1)
        return means


@checked
def dense_filter(length: int, generator: torch.Generator) -> WindowFilter:
    """Make a filter with one weight for every value of the window.

    Raises:
        ValueError: no value in the window.

    """
    _check(length=length)
    return WindowFilter(length, [WindowConvolution((1, 1), length, 1, generator)])


@checked
def stacked_convolutions(
    length: int, generator: torch.Generator, *, depth: int = 8, kernel: int = 3, channels: int = 1
) -> WindowFilter:
    """Stack `depth` convolutions on top of one another: $depth (kernel - 1) + 1$ values reach the prediction.

    Raises:
        ValueError: that is more than the window has, or a size below 1.

    """
    _check(depth=depth, kernel=kernel, channels=channels)
    field = depth * (kernel - 1) + 1
    if field > length:
        raise ValueError(
            f"depth={depth} convolutions of kernel={kernel} reach over {field} values; the window has length={length}"
        )
    widths = _widths(depth, channels)
    places = [field - level * (kernel - 1) for level in range(1, depth + 1)]
    layers = [WindowConvolution(c, kernel, n, generator) for c, n in zip(widths, places, strict=True)]
    return WindowFilter(field, layers)


@checked
def dilated_stack(length: int, generator: torch.Generator, *, channels: int = 1, shared: bool = True) -> WindowFilter:
    """Stack kernels of 2 with dilations 1, 2, 4 ... (WaveNet), as many as the window has room for.

    One prediction needs a binary tree of places only; without sharing each of those has weights of its own.

    Raises:
        ValueError: a window of fewer than two values, or no channel.

    """
    if not shared:
        return strided_hierarchy(length, generator, channels=channels, shared=False)
    _check(channels=channels)
    depth = _levels(length, 2)
    field = 2**depth
    layers = [
        WindowConvolution(c, 2, field - 2 ** (level + 1) + 1, generator, dilation=2**level)
        for level, c in enumerate(_widths(depth, channels))
    ]
    return WindowFilter(field, layers)


@checked
def strided_hierarchy(
    length: int, generator: torch.Generator, *, kernel: int = 2, channels: int = 1, shared: bool = True
) -> WindowFilter:
    """Stack convolutions whose stride is their kernel: a tree over the latest $kernel^depth$ values.

    Raises:
        ValueError: a window shorter than the kernel, a kernel below 2, or no channel.

    """
    _check(channels=channels)
    depth = _levels(length, kernel)
    layers = [
        WindowConvolution(c, kernel, kernel ** (depth - 1 - level), generator, stride=kernel, shared=shared)
        for level, c in enumerate(_widths(depth, channels))
    ]
    return WindowFilter(kernel**depth, layers)


@checked
def pooling_hierarchy(
    length: int, generator: torch.Generator, *, kernel: int = 3, channels: int = 1, shared: bool = True
) -> WindowFilter:
    """Alternate a convolution and an average of neighbouring pairs, as many times as the window has room for.

    Raises:
        ValueError: a window shorter than kernel + 1, or a size below 1.

    """
    _check(kernel=kernel, channels=channels)
    places = [1]  # after each pooling, from the prediction down
    while 2 * places[-1] + kernel - 1 <= length and (kernel > 1 or 2 * places[-1] <= length):
        places.append(2 * places[-1] + kernel - 1)
    depth = len(places) - 1
    if depth == 0:
        raise ValueError(f"length must be at least {kernel + 1} for kernel {kernel} and an average of 2, got {length}")
    layers: list[nn.Module] = []
    for level, c in enumerate(_widths(depth, channels)):
        convolution = WindowConvolution(c, kernel, 2 * places[depth - 1 - level], generator, shared=shared)
        layers += [convolution, BlockAverage(2)]
    return WindowFilter(places[-1], layers)


@checked
def recurrent_filter(length: int, generator: torch.Generator, *, units: int = 4) -> LinearRecurrence:
    """Make a linear recurrence with `units` hidden units: 2 * units independent parameters in a window long enough.

    Raises:
        ValueError: no value in the window, or no unit.

    """
    _check(length=length, units=units)
    return LinearRecurrence(units, generator)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _levels(length: int, kernel: int) -> int:
    """Find the largest power of the kernel that fits the window."""
    if kernel < 2:
        raise ValueError(f"kernel must be at least 2, got {kernel}")
    if length < kernel:
        raise ValueError(f"length must be at least the kernel, {kernel}, got {length}")
    depth = 1
    while kernel ** (depth + 1) <= length:
        depth += 1
    return depth


def _widths(depth: int, channels: int) -> list[tuple[int, int]]:
    """Channels in and out of every layer: one at both ends."""
    inner = [1, *[channels] * (depth - 1), 1]
    return list(itertools.pairwise(inner))
