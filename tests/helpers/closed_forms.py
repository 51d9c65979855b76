"""Activations whose Gaussian moments have a closed form, one of each."""

from __future__ import annotations

from torch import nn

from capalloc._decoupling.activations import Abs, Erf, Sine

CLOSED = {
    nn.Identity: nn.Identity(),
    nn.ReLU: nn.ReLU(),
    nn.LeakyReLU: nn.LeakyReLU(0.2),
    nn.PReLU: nn.PReLU(init=-0.4),
    Abs: Abs(),
    Erf: Erf(),
    Sine: Sine(2.5),
}
