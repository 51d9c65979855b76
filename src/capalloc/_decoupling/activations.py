"""Activations by name or as modules, and their slopes: the gates a = phi'(z) of docs/theory.md, section 3."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from capalloc._operators.calls import slope
from capalloc._runtime.arguments import blamed

Elementwise = Callable[[Tensor], Tensor]


class Abs(nn.Module):
    """|z|: gates are hard signs, of mean zero for symmetric pre-activations."""

    def forward(self, z: Tensor) -> Tensor:
        return z.abs()


class Erf(nn.Module):
    """erf(z)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.erf(z)


class Sine(nn.Module):
    """sin(omega z): from a linear activation (small omega) to a pseudo-random one (large omega)."""

    def __init__(self, omega: float = 1.0) -> None:
        super().__init__()
        self.omega = float(omega)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(self.omega * z)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


#: Activations that `gaussian_decoupling` knows by name.
NAMED_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "abs": Abs,
    "sign": Abs,  # hard sign gates are the slopes of |z|
    "erf": Erf,
    "sin": Sine,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
}


def resolve(activation: str | Elementwise) -> Elementwise:
    """Take an activation from its name, a private float64 copy of a module, or the callable given."""
    if isinstance(activation, str):
        if activation not in NAMED_ACTIVATIONS:
            raise ValueError(
                f"activation {activation!r} is not known by name; use one of {sorted(NAMED_ACTIVATIONS)}, "
                "a torch.nn module or an elementwise function of a tensor"
            )
        return NAMED_ACTIVATIONS[activation]()
    if not callable(activation):
        raise TypeError(
            f"activation must be a name, a torch.nn module or a function of a tensor, got {type(activation).__name__}"
        )
    if isinstance(activation, nn.Module):
        if sum(p.numel() for p in activation.parameters()) > 1 and isinstance(activation, nn.PReLU):
            raise ValueError(
                f"activation is a PReLU with {activation.num_parameters} slopes, one per channel, and one is needed; "
                "pass torch.nn.LeakyReLU(slope) for the channel of interest"
            )
        return copy.deepcopy(activation).double().cpu().eval().requires_grad_(False)
    return activation


def checked_slope(activation: Elementwise) -> Elementwise:
    """Give the slope function of an activation that was tried on a few values first."""
    z = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)
    with blamed("activation"):
        y = activation(z)
    if not isinstance(y, Tensor) or y.shape != z.shape:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"activation must act elementwise: it gave {shape} for a tensor of shape (8,)")
    if not torch.isfinite(y).all() or not torch.isfinite(slope(activation, z)).all():
        raise ValueError("activation gives NaN or inf, or a slope that is, between -2 and 2; gates must be finite")
    return lambda values: slope(activation, values)
