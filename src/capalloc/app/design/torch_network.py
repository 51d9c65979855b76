"""A design as a module of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc._decoupling.activations import NAMED_ACTIVATIONS
from capalloc._runtime.arguments import checked
from capalloc.app.design.hermite_series import HermiteSeries, averaged
from capalloc.app.design.stack import Design
from capalloc.architectures.convnext import ChannelNorm

#: Modules by the number of axes.
MODULES_BY_AXES: Final[dict[tuple[str, int], Any]] = {
    ("conv", 1): nn.Conv1d,
    ("conv", 2): nn.Conv2d,
    ("instance", 1): nn.InstanceNorm1d,
    ("instance", 2): nn.InstanceNorm2d,
    ("norm", 1): nn.BatchNorm1d,
    ("norm", 2): nn.BatchNorm2d,
    ("average", 1): nn.AvgPool1d,
    ("average", 2): nn.AvgPool2d,
    ("max", 1): nn.MaxPool1d,
    ("max", 2): nn.MaxPool2d,
}


class StackLayer(nn.Module):
    """h + scale * conv(act(h)), or conv(act(h)), with what else layer `k` of a design has, k from 1."""

    def __init__(self, design: Design, k: int) -> None:
        super().__init__()
        inputs, outputs = design.widths[k], design.widths[k + 1]
        stride, repeat, dilation = design.strides[k], design.repeats[k], design.dilations[k - 1]
        self.deviation = design.deviations[k - 1] if design.divides else 1.0
        self.scale = self.deviation * (design.branch or 0.0) if design.skips[k - 1] else None
        self.left = 2 * dilation * (design.kernel // 2) if design.causal else 0
        self.norm = normed(design, k - 1)
        self.repeat = nn.Upsample(scale_factor=repeat) if repeat > 1 else None
        self.act = NAMED_ACTIVATIONS[design.activation]()
        self.largest = MODULES_BY_AXES["max", design.ndim](stride) if stride > 1 and design.maxima else None
        moved = design.conv_strides[k]
        if design.depthwise:
            self.depthwise: nn.Module | None = convolution(design, inputs, inputs, moved, dilation, inputs)
            self.pointwise = MODULES_BY_AXES["conv", design.ndim](inputs, outputs, 1, bias=design.bias)
        else:
            self.depthwise, self.conv = None, convolution(design, inputs, outputs, moved, dilation)
        self.average = MODULES_BY_AXES["average", design.ndim](stride) if stride > 1 and design.averages else None

    def forward(self, h: Tensor) -> Tensor:
        """One layer."""
        found: Tensor = h / self.deviation if self.norm is None else self.norm(h)
        found = self.act(found if self.repeat is None else self.repeat(found))
        found = found if self.largest is None else self.largest(found)
        found = F.pad(found, (self.left, 0)) if self.left else found
        found = self.conv(found) if self.depthwise is None else self.pointwise(self.depthwise(found))
        found = found if self.average is None else self.average(found)
        return found if self.scale is None else h + self.scale * found


class Network(nn.Module):
    """Stem, layers and head of a design."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        stride, moved = design.strides[0], design.conv_strides[0]
        self.deviation = design.deviations[-1] if design.divides else 1.0
        self.left = 2 * (design.kernel // 2) if design.causal else 0
        self.stem = convolution(design, design.in_channels, design.widths[1], moved, 1)
        self.average = MODULES_BY_AXES["average", design.ndim](stride) if stride > 1 and design.averages else None
        self.layers = nn.Sequential(*(StackLayer(design, k) for k in range(1, design.depth + 1)))
        self.norm = normed(design, design.depth)
        self.act = NAMED_ACTIVATIONS[design.activation]()
        self.head = MODULES_BY_AXES["conv", design.ndim](design.widths[-1], 1, 1, bias=design.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, *positions) -> (examples, 1, *positions, fewer by the strides)."""
        h = self.stem(F.pad(x, (self.left, 0)) if self.left else x)
        h = self.layers(h if self.average is None else self.average(h))
        h = h / self.deviation if self.norm is None else self.norm(h)
        found: Tensor = self.head(self.act(h))
        return found


def convolution(design: Design, inputs: int, outputs: int, stride: int, dilation: int, groups: int = 1) -> nn.Module:
    """A convolution that keeps the grid but for its stride; a causal one is padded by who calls it."""
    padding = 0 if design.causal else dilation * (design.kernel // 2)
    shape = (inputs, outputs, design.kernel, stride, padding, dilation, groups)
    found: nn.Module = MODULES_BY_AXES["conv", design.ndim](*shape, bias=design.bias)
    return found


def normed(design: Design, k: int) -> nn.Module | None:
    """The norm before activation `k`, a batch norm with the variance that batches have at initial weights."""
    width = design.widths[k + 1]
    if design.norm == "none":
        return None
    if design.norm in ("layer", "group"):
        return ChannelNorm(width) if design.norm == "layer" else nn.GroupNorm(1, width)
    if design.norm == "instance":
        instance: nn.Module = MODULES_BY_AXES["instance", design.ndim](width, affine=True)
        return instance
    norm: Any = MODULES_BY_AXES["norm", design.ndim](width)
    norm.running_var.fill_(design.deviations[k] ** 2)
    found: nn.Module = norm
    return found


def gains(design: Design) -> Iterator[float]:
    """Variance of the weights of the stem, every layer and the head, times their fan-in.

    It is 1 / E[phi^2] behind an activation, that of the largest where one is taken, and more where positions are
    averaged, so that the averages have variance 1 (docs/theory.md, sections 5 and 6).
    """
    series = HermiteSeries.of(design.activation)
    rho, gain = 0.0, 1.0
    changes = (0.0, *(share(design, k) for k in range(design.depth)))
    for k, (stride, change) in enumerate(zip(design.strides, changes, strict=True)):
        number = stride**design.ndim
        if design.maxima and number > 1:
            largest = series.largest(rho, number)
            rho = largest.correlation
            yield 1 / largest.mean_square
        else:
            number = number if design.averages else 1
            rho = (1 - change) * rho + change * series.correlation(rho) if k else rho
            yield gain * number / (1 + (number - 1) * rho)
            rho = averaged(rho, number)
        gain = 1 / series.mean_square
    yield gain


def share(design: Design, k: int) -> float:
    """Share of the variance that layer `k`, from 0, writes: 1 without a skip."""
    if not design.skips[k]:
        return 1.0
    change = (design.branch or 0.0) ** 2
    return change / (change + (design.deviations[k] ** 2 if design.norm != "none" else 1.0))


@checked
def build(design: Design, seed: int = 0) -> nn.Module:
    """The network of a design, with initial weights whose layers keep the variance of pre-activations, 1.

    Weights are normal, of variance $1 / (fan-in E[phi(z)^2])$, z a unit Gaussian: He's rule for ReLU; 1 / fan-in where
    no activation is read, and more before averages (docs/theory.md, section 5). Biases are 0. Norms come in evaluation
    as they are in a first step of training: `eval()` for readings, `train()` for training, as with any module.

    Args:
        design: what to build.
        seed: of the weights; the global random state is left as it is.

    """
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from it
        network = Network(design)
    generator = torch.Generator().manual_seed(seed)
    variances = dict(zip(("stem", *(f"layers.{k}" for k in range(design.depth)), "head"), gains(design), strict=True))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                layer, _, kind = name.removesuffix(".weight").rpartition(".")
                gain = 1.0 if kind == "pointwise" else variances[layer or kind]
                weight.normal_(0.0, (gain / weight[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("bias"):
                weight.zero_()
    return network
