"""A design as a file of Python that needs torch alone."""

from __future__ import annotations

from typing import Any

from capalloc._runtime.arguments import checked
from capalloc.app.design.hermite_series import HermiteSeries
from capalloc.app.design.stack import HOMOGENEOUS_ACTIVATIONS, Design
from capalloc.app.pages import PAGES

#: How each activation is written on a signal.
WRITTEN = {
    "relu": "torch.relu({})",
    "leaky_relu": "nn.functional.leaky_relu({})",
    "gelu": "nn.functional.gelu({})",
    "silu": "nn.functional.silu({})",
    "elu": "nn.functional.elu({})",
    "tanh": "torch.tanh({})",
    "linear": "{}",
}


@checked
def code(design: Design) -> str:
    """A file with a class `Network`, the `nn.Module` of a design: parameters named and drawn as in `build`."""
    half, grows = design.kernel // 2, design.cycle > 1 and design.depth > 1
    crossings = tuple(k for k, stride in enumerate(design.strides[1:]) if stride > 1)
    curved = design.activation not in HOMOGENEOUS_ACTIVATIONS and any(design.skips)
    values: dict[str, Any] = {
        "title": title(design),
        "about": about(design),
        "depth": design.depth,
        "width": design.width,
        "kernel": design.kernel,
        "conv": f"Conv{design.ndim}d",
        "scale": _scale(design),
        "gain": f"{1 / HermiteSeries.of(design.activation).mean_square:.12g}",
        "crossings": crossings,
        "stride": design.stride,
        "strided": bool(crossings),
        "blocks": any(design.skips),
        "plain": not all(design.skips),
        "grows": grows,
        "dilation": f"{f'{design.dilation} * ' if design.dilation > 1 else ''}2 ** (k % {design.cycle})",
        "inner": _inner(half, design.dilation, grows),
        "outer": _outer(half, design.strides[0]),
        "curved": curved,
        "arguments": [name for name, wanted in (("dilation", grows), ("deviation", curved)) if wanted],
        "sizes": ", ".join([str(design.size)] * design.ndim),
        "word": design.activation,
        "act": WRITTEN[design.activation].format,
    }
    return str(PAGES.render("design.py.jinja", **values)).strip() + "\n"


def title(design: Design) -> str:
    """The design in a line."""
    kind = "plain" if design.branch is None else "residual"
    layers = "layer" if design.depth == 1 else "layers"
    return f"A {kind} stack of {design.depth} {layers}, {design.ndim}-D, designed with capalloc."


def about(design: Design) -> str:
    """Its settings in a line."""
    growth = f", doubling over {design.cycle} layers" if design.cycle > 1 else ""
    strides = f", stride {design.stride} in {design.strided}" if design.stride > 1 else ""
    branch = "no skips" if design.branch is None else f"branches times {design.branch:.4g}"
    return (
        f"Kernel {design.kernel}, dilation {design.dilation}{growth}{strides}, width {design.width}, {branch}, "
        f"{design.activation}."
    )


def _scale(design: Design) -> str:
    """The branch multiplier as a person would write it."""
    over = {"1/sqrt(L)": " / DEPTH**0.5", "1/L": " / DEPTH"}.get(design.residual, "")
    return f"{design.multiplier:g}{over}"


def _inner(half: int, dilation: int, grows: bool) -> str:
    """Padding and dilation of the layers' convolutions."""
    if not half:
        return ""
    if grows:
        return f", padding={f'{half} * ' if half > 1 else ''}dilation, dilation=dilation"
    return f", padding={half * dilation}{f', dilation={dilation}' if dilation > 1 else ''}"


def _outer(half: int, stride: int) -> str:
    """Stride and padding of the stem's convolution."""
    return (f", stride={stride}" if stride > 1 else "") + (f", padding={half}" if half else "")
