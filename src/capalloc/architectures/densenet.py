"""DenseNet: every layer reads all before it in its block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, conv, conv_norm, he, named, pooled_head


class DenseNetLayer(nn.Module):
    """h and the new features, side by side."""

    def __init__(self, ins: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        inner = bottleneck * growth
        self.branch = chain(
            nn.BatchNorm2d(ins), nn.ReLU(), conv(ins, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(), conv(inner, growth)
        )

    def forward(self, h: Tensor) -> Tensor:
        """The features so far and the new ones."""
        return torch.cat([h, self.branch(h)], 1)


def transition(ins: int, outs: int) -> nn.Module:
    """Fewer channels, and half the rows and columns."""
    return chain(nn.BatchNorm2d(ins), nn.ReLU(), conv(ins, outs, 1), nn.AvgPool2d(2))


@register(
    "densenet121",
    "Layers that read all before them, joined by concatenation.",
    "Huang, Liu, van der Maaten, Weinberger, arXiv 1608.06993",
)
def densenet121(
    growth: int = 32,
    depths: Sequence[int] = (6, 12, 24, 16),
    bottleneck: int = 4,
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """DenseNet-BC: `growth` channels a layer through a `bottleneck` times as wide, half the channels between blocks."""
    channels = 2 * growth
    stem = chain(*conv_norm(shape[0], channels, 7, 2), nn.MaxPool2d(3, 2, padding=1))
    body: dict[str, nn.Module] = {}
    for stage, depth in enumerate(depths, 1):
        if stage > 1:
            body[f"transition{stage - 1}"] = transition(channels, channels // 2)
            channels //= 2
        layers = [DenseNetLayer(channels + k * growth, growth, bottleneck) for k in range(depth)]
        body[f"block{stage}"] = nn.Sequential(*layers)
        channels += depth * growth
    head = chain(nn.BatchNorm2d(channels), nn.ReLU(), *pooled_head(channels, num_classes))
    return he(named(stem=stem, **body, head=head))
