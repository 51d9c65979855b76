"""Residual networks: basic and bottleneck blocks, and blocks with the activations first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import Add, chain, conv, conv_norm, he, named, pooled_head

HE_2015, HE_2016 = "He, Zhang, Ren, Sun, arXiv 1512.03385", "He, Zhang, Ren, Sun, arXiv 1603.05027"
BlockMaker = Callable[[int, int, int], nn.Module]


def basic(ins: int, outs: int, stride: int) -> nn.Module:
    """relu(h + norm(conv(relu(norm(conv(h))))))."""
    branch = chain(*conv_norm(ins, outs, stride=stride), *conv_norm(outs, outs, activation=None))
    return Add(branch, _shortcut(ins, outs, stride), nn.ReLU())


def bottleneck(ins: int, outs: int, stride: int) -> nn.Module:
    """The same of three convolutions, the middle one of a quarter of the channels."""
    inner = outs // 4
    branch = chain(
        *conv_norm(ins, inner, 1), *conv_norm(inner, inner, stride=stride), *conv_norm(inner, outs, 1, activation=None)
    )
    return Add(branch, _shortcut(ins, outs, stride), nn.ReLU())


def preactivation(ins: int, outs: int, stride: int) -> nn.Module:
    """h + conv(relu(norm(conv(relu(norm(h))))))."""
    branch = chain(
        nn.BatchNorm2d(ins),
        nn.ReLU(),
        conv(ins, outs, stride=stride),
        nn.BatchNorm2d(outs),
        nn.ReLU(),
        conv(outs, outs),
    )
    return Add(branch, None if (ins, stride) == (outs, 1) else conv(ins, outs, 1, stride))


def _shortcut(ins: int, outs: int, stride: int) -> nn.Module | None:
    return None if (ins, stride) == (outs, 1) else chain(*conv_norm(ins, outs, 1, stride, activation=None))


def stages(block: BlockMaker, ins: int, widths: Sequence[int], depths: Sequence[int]) -> dict[str, nn.Module]:
    """`depths` blocks of every width; the first block of every stage but the first halves rows and columns."""
    found: dict[str, nn.Module] = {}
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        first = block(ins, width, 1 if stage == 1 else 2)
        found[f"stage{stage}"] = nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1)))
        ins = width
    return found


def _imagenet(
    block: BlockMaker, width: int, first: int, depths: Sequence[int], num_classes: int, channels: int
) -> nn.Module:
    widths = [first * 2**k for k in range(len(depths))]
    stem = chain(*conv_norm(channels, width, 7, 2), nn.MaxPool2d(3, 2, padding=1))
    body = stages(block, width, widths, depths)
    return he(named(stem=stem, **body, head=chain(*pooled_head(widths[-1], num_classes))))


@register("resnet18", "Residual blocks of two 3 x 3 convolutions.", HE_2015)
def resnet18(
    width: int = 64,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """ResNet-18; `depths` are the blocks of each stage, (3, 4, 6, 3) for ResNet-34."""
    return _imagenet(basic, width, width, depths, num_classes, shape[0])


@register("resnet50", "Residual bottleneck blocks of three convolutions.", HE_2015)
def resnet50(
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """ResNet-50 with the stride on the 3 x 3 convolution; (3, 4, 23, 3) makes ResNet-101."""
    return _imagenet(bottleneck, width, 4 * width, depths, num_classes, shape[0])


@register("preact-resnet", "Residual blocks with norm and ReLU before each convolution, for 32 x 32 images.", HE_2016)
def preact_resnet(
    width: int = 16, depths: Sequence[int] = (3, 3, 3), num_classes: int = 10, shape: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    """20 layers at the default `depths`; n blocks in each of three stages make 6n + 2."""
    widths = [width * 2**k for k in range(len(depths))]
    body = stages(preactivation, width, widths, depths)
    head = chain(nn.BatchNorm2d(widths[-1]), nn.ReLU(), *pooled_head(widths[-1], num_classes))
    return he(named(stem=conv(shape[0], width), **body, head=head))
