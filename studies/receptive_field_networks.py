"""Networks of a stack with weights drawn anew, and what their central output position sees of an image.

Index convention: an image is (1, channel, row, column); a profile is over offsets from the centre, on one axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import capalloc
from capalloc._energy.gate_sources import GateSource
from studies.receptive_field_stacks import Array, Stack

MODULES = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


def _gain(activation: nn.Module) -> float:
    """1 / E[phi(z)^2] of a unit Gaussian z: what keeps pre-activations at variance 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    values = activation(torch.from_numpy(nodes)).numpy()
    return float(weights.sum() / (weights @ values**2))


GAINS = {name: _gain(module()) for name, module in MODULES.items()}


class Block(nn.Module):
    """h + eps F(h)."""

    def __init__(self, branch: nn.Module, eps: float) -> None:
        super().__init__()
        self.branch = branch
        self.register_buffer("eps", torch.tensor(eps, dtype=torch.float64))  # moves to the dtype of the weights

    def forward(self, h: Tensor) -> Tensor:
        """One block."""
        return h + self.eps * self.branch(h)


def network(stack: Stack, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A network of the stack, padded so that its central output position is the image's centre.

    Random weights and signs have the variance gain / fan-in that keeps pre-activations at variance 1. Uniform weights
    are 1 / fan-in, and binomial ones a row of Pascal's triangle along each axis: both sum to 1.
    """
    layers = _plain(stack, generator) if stack.branch is None else _residual(stack, generator)
    return nn.Sequential(*layers).to(dtype)


def _plain(stack: Stack, generator: torch.Generator) -> list[nn.Module]:
    hidden = [stack.channels] * (stack.depth - 1)
    strides = [*stack.strides, *[1] * stack.depth]
    layers: list[nn.Module] = []
    for k, (into, out) in enumerate(zip([1, *hidden], [*hidden, 1], strict=True)):
        gain = GAINS[stack.activation] if k else 1.0
        weight = _weight(stack, (out, into, stack.kernel, stack.kernel), gain, generator)
        layers += [_convolution(weight, stack.dilation(k), strides[k]), MODULES[stack.activation]()]
    return layers[:-1]


def _residual(stack: Stack, generator: torch.Generator) -> list[nn.Module]:
    """Blocks h + eps conv(activation(h)) between a 1 x 1 stem and a 1 x 1 head, which do not move the walk."""
    assert stack.branch is not None
    channels, gain, ends = stack.channels, GAINS[stack.activation], replace(stack, kernel=1)
    layers: list[nn.Module] = [_convolution(_weight(ends, (channels, 1, 1, 1), 1.0, generator))]
    for k in range(stack.depth):
        weight = _weight(stack, (channels, channels, stack.kernel, stack.kernel), gain, generator)
        branch = nn.Sequential(MODULES[stack.activation](), _convolution(weight, stack.dilation(k)))
        layers.append(Block(branch, stack.branch))
    return [*layers, _convolution(_weight(ends, (1, channels, 1, 1), 1.0, generator))]


def _weight(stack: Stack, shape: tuple[int, int, int, int], gain: float, generator: torch.Generator) -> Tensor:
    scale = math.sqrt(gain / math.prod(shape[1:]))
    if stack.weights == "random":
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if stack.weights == "signs":
        return scale * (2.0 * torch.randint(2, shape, generator=generator, dtype=torch.float64) - 1)
    row = torch.from_numpy(stack.row)
    return (torch.outer(row, row) / shape[1]).expand(shape).clone()


def _convolution(weight: Tensor, dilation: int = 1, stride: int = 1) -> nn.Conv2d:
    out, into, kernel, _ = weight.shape
    padding = dilation * (kernel // 2)
    # made without memory, so without initial weights from the global generator
    made = nn.Conv2d(into, out, kernel, stride, padding, dilation, bias=False, device="meta")
    made.weight = nn.Parameter(weight)
    return made


# -- what one output position sees --------------------------------------------------------------------------


def gradient(model: nn.Module, image: Tensor) -> Tensor:
    """The gradient of the central output position with respect to the image: (row, column), in float64."""
    image = image.detach().requires_grad_()
    (found,) = torch.autograd.grad(centre(model(image)).sum(), image)
    return found[0, 0].double()


def centre(outputs: Tensor) -> Tensor:
    """The central position of (examples, channel, row, column)."""
    return outputs[:, :, outputs.shape[2] // 2, outputs.shape[3] // 2]


def profile(plane: Tensor) -> Array:
    """The sums of (row, column) along both axes, in both directions, averaged: the law is the same along the four."""
    one = plane.sum(0) + plane.sum(1)
    return ((one + one.flip(0)) / 4).numpy()


def draws(stack: Stack, number: int, generator: torch.Generator) -> Iterator[tuple[nn.Sequential, Tensor]]:
    """Random networks, each with one Gaussian image of its own."""
    side = 2 * stack.reach + 1
    for _ in range(number):
        model = network(stack, generator)
        yield model, torch.randn(1, 1, side, side, generator=generator)


def walked(model: nn.Module, image: Tensor, gates: GateSource = "data") -> Array:
    """The profile of capalloc's walk from the central output position of this network, with its gates on the image."""
    law = capalloc.walk(model, image, outputs=centre, gates=gates).inputs
    return profile(torch.from_numpy(law.sum("channel").to_numpy()).double())
