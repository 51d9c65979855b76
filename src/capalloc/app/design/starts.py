"""Stacks that come near to the reference architectures, to start a design from: what `nearest` finds of each."""

from __future__ import annotations

from functools import partial
from typing import Final

from capalloc.app.design.stack import Design

#: Networks for images: stages of half the size and, but for small ones, twice the width.
_image = partial(Design, stride=2, strided=4, size=64, in_channels=3, growth=2.0)

STARTS: Final[dict[str, Design]] = {
    "lenet": Design(
        depth=1, kernel=5, stride=2, width=6, residual="none", size=28, bias=True, reduction="max", growth=2.0
    ),
    "vgg11": _image(depth=7, width=64, residual="none", bias=True, reduction="max", growth=1.7),
    "resnet18": _image(width=64, residual="constant", norm="batch"),
    "preact-resnet": _image(depth=18, strided=2, width=16, residual="constant", size=32, norm="batch"),
    "densenet121": _image(depth=58, width=64, residual="none", norm="batch", reduction="average"),
    "mobilenet-v2": _image(depth=17, residual="constant", norm="batch", depthwise=True),
    "convnext-tiny": _image(
        depth=21,
        kernel=7,
        width=96,
        residual="constant",
        activation="gelu",
        bias=True,
        depthwise=True,
        norm="layer",
    ),
    "unet": _image(depth=17, width=64, residual="none", bias=True, upsampled=4, in_channels=1),
    "tcn": Design(kernel=7, cycle=8, width=25, residual="constant", ndim=1, size=512, bias=True, causal=True),
    "wavenet": Design(depth=40, cycle=10, residual="constant", ndim=1, size=512, bias=True, causal=True),
}
