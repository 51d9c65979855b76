"""Sequences by dilated causal convolutions: WaveNet, TCN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import Add, chain, he, named


class CausalConv1d(nn.Conv1d):
    """A convolution whose output at a time reads nothing later."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad the past alone."""
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class WaveNetStack(nn.Module):
    """Layers tanh(filter) * sigmoid(gate), each adding to a stream and to the sum that the head reads."""

    def __init__(self, channels: int, width: int, dilations: Sequence[int], num_classes: int) -> None:
        super().__init__()
        many = lambda make: nn.ModuleList(make(d) for d in dilations)  # noqa: E731
        self.stem = CausalConv1d(channels, width, 2)
        self.filters = many(lambda d: CausalConv1d(width, width, 2, dilation=d))
        self.gates = many(lambda d: CausalConv1d(width, width, 2, dilation=d))
        self.residuals = many(lambda _: nn.Conv1d(width, width, 1))
        self.skips = many(lambda _: nn.Conv1d(width, width, 1))
        self.head = chain(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the next sample's classes at every time."""
        h, total = self.stem(x), None
        for filters, gates, residual, skip in zip(self.filters, self.gates, self.residuals, self.skips, strict=True):
            z = torch.tanh(filters(h)) * torch.sigmoid(gates(h))
            total = skip(z) if total is None else total + skip(z)
            h = h + residual(z)
        scores: Tensor = self.head(total)
        return scores


@register(
    "wavenet",
    "Gated causal convolutions of growing dilation over a signal.",
    "van den Oord et al., arXiv 1609.03499",
)
def wavenet(
    width: int = 32, layers: int = 10, stacks: int = 2, num_classes: int = 256, shape: Sequence[int] = (1, 4096)
) -> nn.Module:
    """`stacks` times `layers` layers of dilations 1, 2, 4, ..."""
    return WaveNetStack(shape[0], width, [2**k for k in range(layers)] * stacks, num_classes)


class LastTime(nn.Module):
    """The state at the last time."""

    def forward(self, h: Tensor) -> Tensor:
        """The last entry of the last axis."""
        return h[..., -1]


@register(
    "tcn",
    "Residual blocks of causal dilated convolutions; reads a sequence, writes one label.",
    "Bai, Kolter, Koltun, arXiv 1803.01271",
)
def tcn(
    width: int = 25, depth: int = 8, kernel: int = 7, num_classes: int = 10, shape: Sequence[int] = (1, 784)
) -> nn.Module:
    """`depth` blocks of dilations 1, 2, 4, ...; without the paper's weight norm and dropout."""
    blocks: list[nn.Module] = []
    channels = shape[0]
    for k in range(depth):
        branch = chain(
            CausalConv1d(channels, width, kernel, dilation=2**k),
            nn.ReLU(),
            CausalConv1d(width, width, kernel, dilation=2**k),
            nn.ReLU(),
        )
        blocks.append(Add(branch, None if channels == width else nn.Conv1d(channels, width, 1), nn.ReLU()))
        channels = width
    return he(named(blocks=nn.Sequential(*blocks), last=LastTime(), head=nn.Linear(channels, num_classes)))
