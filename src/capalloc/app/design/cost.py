"""The cost of running a design: operations, and memory."""

from __future__ import annotations

from collections.abc import Iterator

from capalloc.app.design.stack import Design

BYTES = 4  # of a number, float32


def flops(design: Design) -> int:
    """Operations of one forward pass of one example, two for each product of a convolution."""
    return sum(2 * places * products for places, products, _ in _convolutions(design))


def memory(design: Design) -> int:
    """Bytes of what norms, activations, convolutions, pooling and repeats of one example write, as float32.

    Training keeps about as much until its backward pass; parameters, and the state of an optimiser, come on top.
    """
    values = sum(places * channels for places, _, channels in _convolutions(design))
    for k, repeat in enumerate((*design.repeats[1:], 1), start=1):
        below, above = (design.sizes[k] ** design.ndim, (design.sizes[k] * repeat) ** design.ndim)
        copies = (below if design.norm != "none" else 0) + above * (2 if repeat > 1 else 1)  # the activation's is one
        values += copies * design.widths[k]
    if design.averages or design.maxima:
        pooled = (k for k, stride in enumerate(design.strides, start=1) if stride > 1)
        values += sum(design.sizes[k] ** design.ndim * design.widths[k - design.maxima] for k in pooled)
    return BYTES * values


def _convolutions(design: Design) -> Iterator[tuple[int, int, int]]:
    """Positions that each convolution writes, products at one of them, and channels written."""
    taps: int = design.kernel**design.ndim
    for k, (moved, repeat) in enumerate(zip(design.conv_strides, design.repeats, strict=True)):
        inputs, outputs = design.widths[k], design.widths[k + 1]
        whole = design.sizes[k + 1] if design.maxima else -(-design.sizes[k] * repeat // moved)
        places: int = whole**design.ndim
        if k and design.depthwise:
            yield places, inputs * taps, inputs
            yield places, inputs * outputs, outputs
        else:
            yield places, inputs * outputs * taps, outputs
    yield design.sizes[-1] ** design.ndim, design.widths[-1], 1
