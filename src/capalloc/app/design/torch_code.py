"""A design as a file of Python that needs torch alone."""

from __future__ import annotations

import textwrap
from typing import Any

from capalloc._runtime.arguments import checked
from capalloc.app.design.code_parts import Written
from capalloc.app.design.hermite_series import HermiteSeries
from capalloc.app.design.stack import Design
from capalloc.app.pages import PAGES


@checked
def code(design: Design) -> str:
    """A file with a class `Network`, the `nn.Module` of a design: parameters named and drawn as in `build`."""
    written = Written(design)
    values: dict[str, Any] = {
        "title": title(design),
        "about": about(design),
        "depth": design.depth,
        "channels": design.in_channels,
        "by_layer": written.by_layer(),
        "scale": _scale(design),
        "gain": f"{1 / HermiteSeries.of(design.activation).mean_square:.12g}",
        "strided": written.strided,
        "upsampled": written.upsampled,
        "fewer": design.sizes[-1] < design.size,
        "pooled": written.pooled(),
        "blocks": any(design.skips),
        "plain": not all(design.skips),
        "grows": written.grows,
        "widths": written.widths,
        "deviation": written.deviation,
        "dilation": f"{f'{design.dilation} * ' if design.dilation > 1 else ''}2 ** (k % {design.cycle})",
        "norm": written.norm(str(design.widths[-1])),
        "kind": design.norm,
        "arguments": {name: written.arguments(name) for name in ("Block", "Layer")},
        "formula": written.formula,
        "made": written.made,
        "run": written.run,
        "stem": written.convolution(str(design.in_channels), str(design.widths[1]), written.outer()),
        "head": written.convolution(str(design.widths[-1]), "1", "", kernel=1),
        "branches": written.branches(),
        "always": written.always(),
        "drawn": written.drawn(),
        "forward": written.forward(),
        "sizes": ", ".join([str(design.size)] * design.ndim),
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
    word = {"stride": "stride", "average": "averages of", "max": "maxima of"}[design.reduction]
    strides = f", {word} {design.stride} in {design.strided}" if design.stride > 1 else ""
    strides += f", repeats in {design.upsampled}" if design.stride > 1 and design.upsampled else ""
    branch = "no skips" if design.branch is None else f"branches times {design.branch:.4g}"
    more = [word for word in ("causal", "depthwise") if getattr(design, word)]
    more += ["biases"] * design.bias + [f"{design.norm} norms"] * (design.norm != "none")
    width = f"width {design.width}" + (f", times {design.growth:g} by stage" if len(set(design.widths[1:])) > 1 else "")
    width = f"widths {', '.join(map(str, design.stages))}" if design.stages else width
    parts = f"Kernel {design.kernel}, dilation {design.dilation}{growth}{strides}, {width}, {branch}, "
    return textwrap.fill(f"{parts}{', '.join([design.activation, *more])}.", 110)


def _scale(design: Design) -> str:
    """The branch multiplier as a person would write it."""
    over = {"1/sqrt(L)": " / DEPTH**0.5", "1/L": " / DEPTH"}.get(design.residual, "")
    return f"{design.multiplier:g}{over}"
