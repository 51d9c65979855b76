"""MLP-Mixer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from capalloc.architectures.attention import mlp
from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, named
from capalloc.architectures.vit import PatchEmbedding


class MixerBlock(nn.Module):
    """Mixing along tokens, then along channels, around layer norms."""

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = mlp(tokens, token_hidden), mlp(width, channel_hidden)

    def forward(self, h: Tensor) -> Tensor:
        """The stream after both branches."""
        h = h + self.tokens(self.norm1(h).mT).mT
        summed: Tensor = h + self.channels(self.norm2(h))
        return summed


class TokenMean(nn.Module):
    """The mean of the tokens."""

    def forward(self, h: Tensor) -> Tensor:
        """Average over the tokens axis."""
        return h.mean(1)


@register(
    "mixer",
    "MLPs along image patches and along channels, in turn.",
    "Tolstikhin et al., arXiv 2105.01601",
)
def mixer(
    width: int = 512,
    depth: int = 8,
    hidden: Sequence[int] = (256, 2048),
    patch: int = 16,
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """Mixer-S/16; `hidden` are the units of the MLPs along tokens and along channels."""
    patches = PatchEmbedding(shape, patch, width)
    blocks = nn.Sequential(*(MixerBlock(patches.tokens, width, *hidden) for _ in range(depth)))
    head = chain(nn.LayerNorm(width), TokenMean(), nn.Linear(width, num_classes))
    return named(patches=patches, blocks=blocks, head=head)
