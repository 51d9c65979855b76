"""ConvNeXt: convolutional blocks in the manner of transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capalloc.architectures.attention import mlp
from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, named, small_normal


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (examples, channels, rows, columns)."""

    def forward(self, h: Tensor) -> Tensor:
        """Normalise every position by itself."""
        return super().forward(h.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """h + scale * mlp(norm(depthwise 7 x 7 (h)))."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, h: Tensor) -> Tensor:
        """The stream and the block's addition."""
        added = self.scale * self.mlp(self.norm(self.spatial(h).movedim(1, -1)))
        summed: Tensor = h + added.movedim(-1, 1)
        return summed


@register(
    "convnext-tiny",
    "Depthwise 7 x 7 convolutions and channel MLPs with layer scale.",
    "Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, arXiv 2201.03545",
)
def convnext_tiny(
    width: int = 96,
    depths: Sequence[int] = (3, 3, 9, 3),
    patch: int = 4,
    scale: float = 1e-6,
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """ConvNeXt-T; `scale` multiplies the branches at first."""
    body: dict[str, nn.Module] = {}
    channels = width
    for stage, depth in enumerate(depths, 1):
        if stage > 1:
            body[f"down{stage - 1}"] = chain(ChannelNorm(channels), nn.Conv2d(channels, 2 * channels, 2, stride=2))
            channels *= 2
        body[f"stage{stage}"] = nn.Sequential(*(ConvNeXtBlock(channels, scale) for _ in range(depth)))
    stem = chain(nn.Conv2d(shape[0], width, patch, stride=patch), ChannelNorm(width))
    head = chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(channels), nn.Linear(channels, num_classes))
    return small_normal(named(stem=stem, **body, head=head))
