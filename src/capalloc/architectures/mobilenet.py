"""MobileNet: depthwise convolutions between linear bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import Add, chain, conv_norm, he, named, pooled_head

#: Expansion, channels, blocks and stride of every stage (Sandler et al., table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def inverted_residual(ins: int, outs: int, stride: int, expansion: int) -> nn.Module:
    """Widen, convolve each channel by itself, narrow; a skip where the shape stays."""
    inner = ins * expansion
    widen = [] if expansion == 1 else conv_norm(ins, inner, 1, activation=nn.ReLU6)
    each = conv_norm(inner, inner, stride=stride, groups=inner, activation=nn.ReLU6)
    branch = chain(*widen, *each, *conv_norm(inner, outs, 1, activation=None))
    return Add(branch) if (ins, stride) == (outs, 1) else branch


@register(
    "mobilenet-v2",
    "Inverted residuals: depthwise convolutions between narrow linear layers.",
    "Sandler, Howard, Zhu, Zhmoginov, Chen, arXiv 1801.04381",
)
def mobilenet_v2(
    width: float = 1.0,
    stages: Sequence[Sequence[int]] = STAGES,
    last: int = 1280,
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """`width` multiplies all channels but the `last`; `stages` are (expansion, channels, blocks, stride)."""
    channels = max(1, round(32 * width))
    stem = chain(*conv_norm(shape[0], channels, 3, 2, activation=nn.ReLU6))
    layers: list[nn.Module] = []
    for expansion, outs, blocks, stride in stages:
        wider = max(1, round(outs * width))
        for k in range(blocks):
            layers.append(inverted_residual(channels, wider, 1 if k else stride, expansion))
            channels = wider
    head = chain(*conv_norm(channels, last, 1, activation=nn.ReLU6), *pooled_head(last, num_classes))
    return he(named(stem=stem, blocks=nn.Sequential(*layers), head=head))
