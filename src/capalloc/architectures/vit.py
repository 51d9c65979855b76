"""Vision transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capalloc.architectures.attention import FirstToken, LearntPositions, PreNormBlock
from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, named, small_normal


class PatchEmbedding(nn.Module):
    """An image as tokens, one for each patch: (examples, tokens, width)."""

    def __init__(self, shape: Sequence[int], patch: int, width: int) -> None:
        super().__init__()
        if any(n % patch for n in shape[1:]):
            raise ValueError(f"rows and columns must be multiples of patch = {patch}, got shape {tuple(shape)}")
        self.tokens = shape[1] // patch * (shape[2] // patch)
        self.embed = nn.Conv2d(shape[0], width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Embedded patches."""
        tokens: Tensor = self.embed(x).flatten(2).mT
        return tokens


class ClassToken(nn.Module):
    """A learnt token before the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, h: Tensor) -> Tensor:
        """Put the token in front."""
        return torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1)


@register(
    "vit-tiny",
    "Transformer over image patches, with a class token.",
    "Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877",
)
def vit_tiny(
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    patch: int = 16,
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """ViT-Ti/16, `depth` blocks with norms first."""
    patches = PatchEmbedding(shape, patch, width)
    blocks = nn.Sequential(*(PreNormBlock(width, heads, 4 * width) for _ in range(depth)))
    start = named(patches=patches, classtoken=ClassToken(width), positions=LearntPositions(patches.tokens + 1, width))
    head = chain(FirstToken(), nn.LayerNorm(width), nn.Linear(width, num_classes))
    return small_normal(named(start=start, blocks=blocks, head=head))
