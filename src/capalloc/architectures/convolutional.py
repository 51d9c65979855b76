"""Plain stacks: dense layers, LeNet, VGG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, dense_layers, he


@register("mlp", "Dense layers with ReLU.", "Rumelhart, Hinton, Williams, Nature 323, 1986")
def mlp(width: int = 256, depth: int = 2, num_classes: int = 10, shape: Sequence[int] = (1, 28, 28)) -> nn.Module:
    """`depth` hidden layers of `width` units."""
    return chain(*dense_layers(math.prod(shape), *[width] * depth, num_classes))


@register(
    "lenet",
    "Two 5 x 5 convolutions with pooling, then dense layers.",
    "LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998",
)
def lenet(
    width: int = 6, hidden: Sequence[int] = (120, 84), num_classes: int = 10, shape: Sequence[int] = (1, 28, 28)
) -> nn.Module:
    """LeNet-5 with ReLU and maxima, `width` channels in its first layer."""
    last = 16 * width // 6
    features = (
        nn.Conv2d(shape[0], width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, last, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    rows, columns = ((n // 2 - 4) // 2 for n in shape[1:])
    if min(rows, columns) < 1:
        raise ValueError(f"shape of lenet must have rows and columns >= 12, got {tuple(shape)}")
    return chain(*features, *dense_layers(last * rows * columns, *hidden, num_classes))


@register(
    "vgg11",
    "Eight 3 x 3 convolutions with pooling, then three dense layers.",
    "Simonyan, Zisserman, arXiv 1409.1556",
)
def vgg11(
    width: int = 64,
    convolutions: Sequence[int] = (1, 1, 2, 2, 2),
    hidden: int = 4096,
    num_classes: int = 1000,
    shape: Sequence[int] = (3, 224, 224),
) -> nn.Module:
    """Configuration A: `convolutions` in each stage, channels doubled up to 8 `width`, a maximum after each stage."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for stage, number in enumerate(convolutions):
        for _ in range(number):
            wider = width * min(2**stage, 8)
            layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU()]
            channels = wider
        layers.append(nn.MaxPool2d(2))
    rows, columns = (n >> len(convolutions) for n in shape[1:])
    if min(rows, columns) < 1:
        raise ValueError(f"shape must have rows and columns >= {2 ** len(convolutions)}, got {tuple(shape)}")
    dense = dense_layers(channels * rows * columns, hidden, hidden, num_classes)
    for layer in dense:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
    return he(chain(*layers, *dense))
