"""Networks of the scaling study as exported programs, whose weights are drawn anew for every measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import capalloc

WIDTH, EXAMPLES = 64, 8


class Residual(nn.Module):
    """Blocks h + W_l relu(h) + b_l."""

    def __init__(self, depth: int, width: int, biases: bool) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(width, width) for _ in range(depth))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(depth if biases else 0))

    def forward(self, h: Tensor) -> Tensor:
        """(examples, width) to the same."""
        for k, weight in enumerate(self.weights):
            h = h + nn.functional.linear(torch.relu(h), weight, self.biases[k] if len(self.biases) else None)
        return h


class Recurrent(nn.Module):
    """h_t = h_(t-1) + W relu(h_(t-1)) + U x_t + b, from h_0 = x_0, weights shared over time."""

    def __init__(self, steps: int, width: int, biases: bool) -> None:
        super().__init__()
        self.steps = steps
        self.weight, self.input = (nn.Parameter(torch.zeros(width, width)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(width)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """(examples, 1 + steps, width) to the last state."""
        h = x[:, 0]
        for t in range(1, self.steps + 1):
            read = nn.functional.linear(x[:, t], self.input, self.bias)
            h = h + (nn.functional.linear(torch.relu(h), self.weight) + read)
        return h


@dataclass(frozen=True)
class Family:
    """Networks of one kind at one size: depth, or steps of memory."""

    kind: type[Residual] | type[Recurrent]
    size: int
    program: ExportedProgram

    @classmethod
    def of(cls, kind: type[Residual] | type[Recurrent], size: int, biases: bool) -> Family:
        """Export once; drawing weights needs no new graph."""
        with torch.random.fork_rng(devices=[]):
            model = kind(size, WIDTH, biases).eval()
        program = torch.export.export(model, (cls._inputs(kind, size),), strict=False)
        return cls(kind, size, program.run_decompositions({}))

    @staticmethod
    def _inputs(kind: type[nn.Module], size: int, generator: torch.Generator | None = None) -> Tensor:
        shape = (EXAMPLES, WIDTH) if kind is Residual else (EXAMPLES, size + 1, WIDTH)
        return torch.randn(shape, generator=generator)

    def inputs(self, generator: torch.Generator) -> Tensor:
        """Gaussian examples."""
        return self._inputs(self.kind, self.size, generator)

    def draw(self, eps: float, bias: float, generator: torch.Generator) -> None:
        """Branches of gain eps^2 (He's variance, 1 / fan-in for what reads the inputs), biases of +-bias."""
        for name, value in self.program.state_dict.items():
            drawn = torch.randn(value.shape, generator=generator)
            if "bias" in name:
                value.data.copy_(bias * drawn.sign())
            else:
                value.data.copy_(eps * math.sqrt((1 if name == "input" else 2) / WIDTH) * drawn)

    def time(self, eps: float, generator: torch.Generator) -> float:
        """T as `capalloc.scaling` finds it."""
        self.draw(eps, 0.0, generator)
        return capalloc.scaling(self.program, self.inputs(generator)).T

    def odds(self, eps: float, bias: float, generator: torch.Generator) -> float:
        """Of the walk's ending at a bias rather than at an input."""
        self.draw(eps, bias, generator)
        share = capalloc.walk(self.program, self.inputs(generator)).bias
        return share / (1 - share)


ACTIVATIONS: dict[str, type[nn.Module] | None] = {"ReLU": nn.ReLU, "linear": None, "tanh": nn.Tanh}


#: Convolution blocks of the sweep over channels, and the number of channels at which all exponents have one variance.
BLOCKS, CHANNELS = 8, 8


class Convolutional(nn.Module):
    """Blocks h + W_l * relu(h) / sqrt(blocks), kernels of 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernels = (torch.zeros(channels, channels, 3, 3) for _ in range(BLOCKS))
        self.kernels = nn.ParameterList(kernels)

    def forward(self, h: Tensor) -> Tensor:
        """(examples, channels, rows, columns) to the same."""
        for kernel in self.kernels:
            around = nn.functional.pad(torch.relu(h), (1, 1, 1, 1), mode="circular")
            h = h + BLOCKS**-0.5 * nn.functional.conv2d(around, kernel)
        return h


@dataclass(frozen=True)
class Channels:
    """Residual convolution blocks of one number of channels as an exported program."""

    channels: int
    program: ExportedProgram

    @classmethod
    def of(cls, channels: int) -> Channels:
        """Export once."""
        model = Convolutional(channels).eval()
        program = torch.export.export(model, (torch.zeros(EXAMPLES, channels, 6, 6),), strict=False)
        return cls(channels, program.run_decompositions({}))

    def time(self, exponent: float, generator: torch.Generator) -> float:
        """T as `capalloc.scaling` finds it, for weights of variance c channels^-exponent: He's at CHANNELS channels."""
        variance = 2 / 9 * CHANNELS ** (exponent - 1) * self.channels**-exponent
        for value in self.program.state_dict.values():
            value.data.copy_(math.sqrt(variance) * torch.randn(value.shape, generator=generator))
        images = torch.randn(EXAMPLES, self.channels, 6, 6, generator=generator)
        return capalloc.scaling(self.program, images).T


@dataclass(frozen=True)
class Layer:
    """One plain layer as an exported program."""

    width: int
    program: ExportedProgram

    @classmethod
    def of(cls, activation: str, width: int) -> Layer:
        """Export once."""
        act = ACTIVATIONS[activation]
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(nn.Linear(width, width, bias=False), *([act()] if act else []))
        program = torch.export.export(model, (torch.zeros(4 * EXAMPLES, width),), strict=False)
        return cls(width, program.run_decompositions({}))

    def gain(self, variance: float, generator: torch.Generator) -> float:
        """As `capalloc.scaling` finds it, where pre-activations have variance 1."""
        (weight,) = self.program.state_dict.values()
        weight.data.copy_(math.sqrt(variance) * torch.randn(weight.shape, generator=generator))
        inputs = torch.randn(4 * EXAMPLES, self.width, generator=generator) / math.sqrt(variance * self.width)
        return float(capalloc.scaling(self.program, inputs).data["gain"][0])
