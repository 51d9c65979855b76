"""U-Net: an image to an image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, he


def double(ins: int, outs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with ReLU."""
    return chain(nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU(), nn.Conv2d(outs, outs, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    """Down by maxima, up by transposed convolutions, with skips between halves of equal resolution."""

    def __init__(self, channels: int, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(depth + 1)]
        pairs = list(pairwise(widths))
        self.first = double(channels, width)
        self.down = nn.ModuleList(double(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(pairs))
        self.join = nn.ModuleList(double(coarse, fine) for fine, coarse in reversed(pairs))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes at every pixel."""
        skips = [self.first(x)]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        h = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            h = join(torch.cat([skips.pop(), up(h)], 1))
        scores: Tensor = self.head(h)
        return scores


@register(
    "unet",
    "Down and up again, with skips: a score for every pixel.",
    "Ronneberger, Fischer, Brox, arXiv 1505.04597",
)
def unet(width: int = 64, depth: int = 4, num_classes: int = 2, shape: Sequence[int] = (1, 128, 128)) -> nn.Module:
    """`depth` halvings of rows and columns, which must divide; convolutions are padded, unlike the paper's."""
    if any(n % 2**depth for n in shape[1:]):
        raise ValueError(f"rows and columns must be multiples of 2**depth = {2**depth}, got shape {tuple(shape)}")
    return he(UNet(shape[0], width, depth, num_classes))
