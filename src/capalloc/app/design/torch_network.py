"""A design as a module of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capalloc._decoupling.activations import NAMED_ACTIVATIONS
from capalloc._runtime.arguments import checked
from capalloc.app.design.hermite_series import HermiteSeries
from capalloc.app.design.stack import Design


class StackLayer(nn.Module):
    """h + scale * conv(act(h)), or conv(act(h)); a curved activation reads h over its initial standard deviation."""

    def __init__(self, conv: nn.Module, act: nn.Module, deviation: float, scale: float | None) -> None:
        super().__init__()
        self.conv = conv
        self.act = act
        self.deviation = deviation
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        """One layer."""
        found: Tensor = self.conv(self.act(h / self.deviation))
        return found if self.scale is None else h + self.deviation * self.scale * found


class Network(nn.Module):
    """Stem, layers and head of a design."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        conv = nn.Conv1d if design.ndim == 1 else nn.Conv2d
        width, kernel, half = design.width, design.kernel, design.kernel // 2
        self.act = NAMED_ACTIVATIONS[design.activation]()
        self.deviation = design.deviations[-1]
        self.stem = conv(1, width, kernel, stride=design.strides[0], padding=half, bias=False)
        self.layers = nn.Sequential(
            *(
                StackLayer(
                    conv(width, width, kernel, stride, dilation * half, dilation, bias=False),
                    NAMED_ACTIVATIONS[design.activation](),
                    deviation,
                    design.branch if skip else None,
                )
                for dilation, stride, skip, deviation in zip(
                    design.dilations, design.strides[1:], design.skips, design.deviations[:-1], strict=True
                )
            )
        )
        self.head = conv(width, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, 1, *positions) -> (examples, 1, *positions, fewer by the strides)."""
        found: Tensor = self.head(self.act(self.layers(self.stem(x)) / self.deviation))
        return found


@checked
def build(design: Design, seed: int = 0) -> nn.Module:
    """The network of a design, with initial weights whose layers keep the variance of pre-activations, 1.

    Weights are normal, of variance 1 / (fan-in E[phi(z)^2]), z a unit Gaussian: He's rule for ReLU; 1 / fan-in in the
    stem (docs/theory.md, section 5).

    Args:
        design: what to build.
        seed: of the weights; the global random state is left as it is.

    """
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from it
        network = Network(design)
    generator = torch.Generator().manual_seed(seed)
    gain = 1 / HermiteSeries.of(design.activation).mean_square
    with torch.no_grad():
        for name, weight in network.named_parameters():
            variance = (1.0 if name == "stem.weight" else gain) / weight[0].numel()
            weight.normal_(0.0, variance**0.5, generator=generator)
    return network
