"""Lines of Python that make and run the parts of a design."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from capalloc.app.design.stack import Design
from capalloc.app.design.torch_network import gains

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


@dataclass(frozen=True)
class Written:
    """A design, and how its parts are written where they are the same in all layers or not."""

    design: Design

    @property
    def strided(self) -> tuple[int, ...]:
        """Layers with a stride, from 0."""
        return tuple(k for k, stride in enumerate(self.design.strides[1:]) if stride > 1)

    @property
    def upsampled(self) -> tuple[int, ...]:
        """Layers that repeat positions, from 0."""
        return tuple(k for k, repeat in enumerate(self.design.repeats[1:]) if repeat > 1)

    @property
    def grows(self) -> bool:
        """True where the dilation differs from layer to layer."""
        return self.design.cycle > 1 and self.design.depth > 1

    @property
    def widths(self) -> bool:
        """True where the width does."""
        return len(set(self.design.widths[1:])) > 1

    @property
    def widened(self) -> tuple[int, ...]:
        """Layers that change the width alone, from 0, where the others have a skip."""
        d = self.design
        changed = zip(d.strides[1:], d.repeats[1:], d.widths[1:], d.widths[2:], strict=False)
        alone = tuple(k for k, (stride, repeat, a, b) in enumerate(changed) if stride == repeat == 1 and a != b)
        return alone if any(d.skips) else ()

    def by_layer(self) -> str:
        """The widths of the stem and every layer as a tuple, in runs."""
        runs = [(width, len([*same])) for width, same in itertools.groupby(self.design.widths[1:])]
        return " + ".join(f"{number} * ({width},)" if number > 1 else f"({width},)" for width, number in runs)

    @property
    def deviation(self) -> bool:
        """True where the deviation of what activations read is needed."""
        return self.design.divides or self.design.norm != "none"

    def pooled(self) -> dict[str, float]:
        """Factors of the variance of each pooled layer's weights, by their names."""
        if not self.design.averages and not self.design.maxima:
            return {}
        found, usual = list(gains(self.design)), list(gains(Design(activation=self.design.activation, depth=1)))
        name = "depthwise" if self.design.depthwise else "conv"
        layers = {f"layers.{k}.{name}.weight": found[k + 1] / usual[1] for k in self.strided}
        layers |= {"stem.weight": found[0]} if self.design.averages else {}
        return {name: float(f"{more:.12g}") for name, more in layers.items()}

    def arguments(self, name: str) -> list[str]:
        """Arguments of a class of layers."""
        plain = name == "Layer"
        wanted = {
            "inputs": self.widths and plain,
            "outputs": self.widths and plain,
            "width": self.widths and not plain,
            "dilation": self.grows,
            "stride": bool(self.strided) and plain,
            "repeat": bool(self.upsampled) and plain,
            "deviation": self.deviation,
        }
        return [argument for argument, is_wanted in wanted.items() if is_wanted]

    def formula(self, skip: bool) -> str:
        """The formula of a layer in a line."""
        word = self.design.activation
        read = "norm(h)" if self.design.norm != "none" else "h"
        signal = read if word == "linear" else f"{word}({read})"
        curved = ", the activation reading h over its initial standard deviation" if self.design.divides else ""
        conv = f"pointwise(depthwise({signal}))" if self.design.depthwise else f"conv({signal})"
        return f"{'h + scale * ' if skip else ''}{conv}{curved}"

    def convolution(self, inputs: str, outputs: str, more: str, kernel: int = 0) -> str:
        """The making of a convolution."""
        bias = "" if self.design.bias else ", bias=False"
        return f"nn.Conv{self.design.ndim}d({inputs}, {outputs}, {kernel or self.design.kernel}{more}{bias})"

    def norm(self, width: str) -> str:
        """The making of a norm; empty without."""
        batch = f"nn.BatchNorm{self.design.ndim}d({width})"
        instance = f"nn.InstanceNorm{self.design.ndim}d({width}, affine=True)"
        made = {"batch": batch, "layer": f"ChannelNorm({width})", "group": f"nn.GroupNorm(1, {width})"} | {
            "instance": instance
        }
        return made.get(self.design.norm, "")

    def made(self, name: str) -> list[str]:
        """Lines of a layer's __init__."""
        width = str(self.design.widths[1])
        own = {"Block": ("width", "width"), "Layer": ("inputs", "outputs")}[name]
        inputs, outputs = own if self.widths else (width, width)
        strides = ", stride=stride" if name == "Layer" and self.strided and self.design.reduction == "stride" else ""
        lines = [f"self.norm = {self.norm(inputs)}"] if self.design.norm != "none" else []
        if self.design.norm == "batch":
            lines.append("self.norm.running_var.fill_(deviation**2)  # as of a batch")
        if self.design.depthwise:
            more = f"{strides}{self.inner()}, groups={inputs}"
            lines.append(f"self.depthwise = {self.convolution(inputs, inputs, more)}")
            lines.append(f"self.pointwise = {self.convolution(inputs, outputs, '', kernel=1)}")
        else:
            lines.append(f"self.conv = {self.convolution(inputs, outputs, strides + self.inner())}")
        kept = ["deviation"] if self.design.divides else []
        if name == "Layer":
            kept += ["stride"] if self.strided and self.design.reduction != "stride" else []
            kept += ["repeat"] if self.upsampled else []
        if self.left(""):
            kept += ["dilation"] if self.grows else []
        return [*lines, *(f"self.{word} = {word}" for word in kept)]

    def inner(self) -> str:
        """Padding and dilation of the layers' convolutions."""
        half, dilation = self.design.kernel // 2, self.design.dilation
        if not half:
            return ""
        spaced = ", dilation=dilation" if self.grows else f", dilation={dilation}" if dilation > 1 else ""
        if self.design.causal:
            return spaced
        each = f"{f'{half} * ' if half > 1 else ''}dilation" if self.grows else str(half * dilation)
        return f", padding={each}{spaced}"

    def outer(self) -> str:
        """Stride and padding of the stem's convolution."""
        half, stride = self.design.kernel // 2, self.design.conv_strides[0]
        padding = f", padding={half}" if half and not self.design.causal else ""
        return (f", stride={stride}" if stride > 1 else "") + padding

    def left(self, signal: str) -> str:
        """The signal padded on the left for a causal convolution of a layer; empty where none is padded."""
        half = self.design.kernel // 2
        if not self.design.causal or not half:
            return ""
        each = f"{2 * half} * self.dilation" if self.grows else str(2 * half * self.design.dilation)
        return f"nn.functional.pad({signal}, ({each}, 0))"

    def pool(self, kind: str, signal: str, window: str) -> str:
        """The mean, or the largest, of so many positions."""
        return f"nn.functional.{kind}_pool{self.design.ndim}d({signal}, {window})"

    def run(self, name: str, skip: bool) -> list[str]:
        """Lines of a layer's forward."""
        act = WRITTEN[self.design.activation].format
        read = act(self.normed())
        lines: list[str] = []
        if name == "Layer" and self.upsampled:
            lines.append("h = nn.functional.interpolate(h, scale_factor=self.repeat)")
        if name == "Layer" and self.strided and self.design.maxima:
            lines.append(f"x = {self.pool('max', read, 'self.stride')}")
            read = "x"
        if self.left(""):
            lines.append(f"x = {self.left(read)}")
            read = "x"
        found = f"self.pointwise(self.depthwise({read}))" if self.design.depthwise else f"self.conv({read})"
        if name == "Layer" and self.strided and self.design.averages:
            lines.append(f"x = {found}")
            found = self.pool("avg", "x", "self.stride")
        scale = "SCALE * self.deviation" if self.design.divides else "SCALE"
        return [*lines, f"return {f'h + {scale} * ' if skip else ''}{found}"]

    def branches(self) -> list[tuple[str, str, list[str]]]:
        """The cases of the loop over layers where they differ: words, a condition, and lines."""
        stride = str(self.design.stride)
        kinds = [
            ("k in STRIDED", (stride, "1"), self.strided),
            ("k in UPSAMPLED", ("1", stride), self.upsampled),
            ("inputs != width", ("1", "1"), self.widened),
        ]
        found: list[tuple[str, str, list[str]]] = []
        for condition, moved, layers in kinds:
            if layers:
                words = "elif " if found else "if "
                found.append((words, condition, self.changed(*moved)))
        return [*found, ("else", "", self.usual())] if found else []

    def changed(self, stride: str, repeat: str) -> list[str]:
        """Lines for a layer that changes positions or width."""
        lines = [f"layers.append(Layer({self.given(stride, repeat)}))"]
        return [*lines, *["deviation = 1.0"] * (self.deviation and any(self.design.skips))]

    def given(self, stride: str, repeat: str) -> str:
        """Values of the arguments of `Layer`."""
        values = {"outputs": "width", "stride": stride, "repeat": repeat}
        return ", ".join(values.get(argument, argument) for argument in self.arguments("Layer"))

    def block(self) -> list[str]:
        """Lines for a layer with a skip."""
        lines = [f"layers.append(Block({', '.join(self.arguments('Block'))}))"]
        if self.design.norm != "none":
            lines.append("deviation = (deviation**2 + SCALE**2) ** 0.5")
        elif self.design.divides:
            lines.append("deviation *= (1 + SCALE**2) ** 0.5")
        return lines

    def always(self) -> list[str]:
        """Lines of the loop over layers where they are all alike."""
        return [] if self.branches() else self.usual()

    def usual(self) -> list[str]:
        """Lines for a layer that leaves positions as they are."""
        return self.block() if any(self.design.skips) else [f"layers.append(Layer({self.given('1', '1')}))"]

    def drawn(self) -> list[str]:
        """Lines that draw a parameter `weight` of a `name`."""
        first = 'name == "stem.weight"' + (' or "pointwise" in name' if self.design.depthwise else "")
        lines = [f"gain = 1.0 if {first} else GAIN", "nn.init.normal_(weight, std=(gain / weight[0].numel()) ** 0.5)"]
        if not self.design.bias and self.design.norm == "none":
            return lines
        biases = ['elif name.endswith("bias"):', "    nn.init.zeros_(weight)"] if self.design.bias else []
        return ["if weight.ndim > 1:", *(f"    {line}" for line in lines), *biases]

    def forward(self) -> list[str]:
        """Lines of the network's forward."""
        half, act = self.design.kernel // 2, WRITTEN[self.design.activation].format
        read = f"nn.functional.pad(x, ({2 * half}, 0))" if self.design.causal and half else "x"
        lines, found = [], f"self.stem({read})"
        if self.design.averages:
            lines, found = [f"h = {found}"], self.pool("avg", "h", str(self.design.stride))
        return [*lines, f"h = self.layers({found})", f"return self.head({act(self.normed())})"]

    def normed(self) -> str:
        """The signal that an activation reads."""
        return "self.norm(h)" if self.design.norm != "none" else "h / self.deviation" if self.design.divides else "h"
