"""Reference architectures in plain torch, with their initial weights: nothing is downloaded.

`names()` lists them, `info(name)` tells of one, `make(name, seed, **arguments)` builds it.
"""

# Each family registers its architectures where it is imported.
from capalloc.architectures import (
    attention,
    convnext,
    convolutional,
    densenet,
    mixer,
    mobilenet,
    recurrent,
    resnet,
    temporal,
    unet,
    vit,
)
from capalloc.architectures.attention import token_table
from capalloc.architectures.catalogue import Architecture, info, make, names, register

__all__ = ["Architecture", "info", "make", "names", "register", "token_table"]

del attention, convnext, convolutional, densenet, mixer, mobilenet, recurrent, resnet, temporal, unet, vit
