"""The decoupling study: capacity profile of a stack of 1-D convolutions, from linear to pseudo-random gates.

A stack of kernels without padding, read at one output position, is a dense layered network whose matrices share
their entries; `propagate_moments` takes it with one constraint for each kernel entry. Units of a layer are in the
order (channel, position), as in a tensor of shape (channels, positions).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from capalloc._decoupling.activations import Abs, Sine
from capalloc._decoupling.pair_estimates import decoupling_of
from capalloc._decoupling.second_moments import propagate_moments
from capalloc._operators.calls import slope

STUDY_DELTAS = (0.0, 0.25, 0.5, 0.75, 1.0)
STUDY_OMEGAS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class KernelStack:
    """Kernels (outputs, inputs, entries) from the inputs to the one output."""

    kernels: tuple[Tensor, ...]

    @classmethod
    def random(cls, depth: int, channels: int, kernel: int, generator: torch.Generator) -> KernelStack:
        """Draw Gaussian kernels of variance 1 / fan-in: one channel at the two ends, `channels` between."""
        sizes = [1, *[channels] * (depth - 1), 1]
        shapes = zip(sizes[1:], sizes[:-1], strict=True)
        draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        return cls(tuple(draw((out, into, kernel)) / (into * kernel) ** 0.5 for out, into in shapes))

    @property
    def positions(self) -> list[int]:
        """Positions of every layer that the output sees, from the inputs to it."""
        reach = [k.shape[2] - 1 for k in self.kernels]
        return [1 + sum(reach[level:]) for level in range(len(reach) + 1)]

    def tangents(self) -> list[Tensor]:
        """Return dW / d(kernel entry) of each layer: (entries, channels x positions, channels x positions below)."""
        return [
            _tangent(kernel, above, below)
            for kernel, below, above in zip(self.kernels, self.positions, self.positions[1:], strict=False)
        ]

    def matrices(self) -> list[Tensor]:
        """Return the layers as matrices on flattened units."""
        return [torch.einsum("q,qji->ji", k.flatten(), t) for k, t in zip(self.kernels, self.tangents(), strict=True)]

    def gate_moments(self, activation: nn.Module, examples: Tensor) -> list[Tensor]:
        """Measure A = E[a a'] of every hidden layer, pre-activations of mean 0 by channel and variance 1 by layer.

        One factor a layer leaves capacity as it is, and so do the offsets: they are no parameters here.
        """
        value, moments = examples, []
        for kernel in self.kernels[:-1]:
            z = nn.functional.conv1d(value, kernel)
            z = z - z.mean((0, 2), keepdim=True)
            z = z / z.std()
            gates = slope(activation, z).flatten(1)
            moments.append(gates.T @ gates / len(gates))
            value = activation(z)
        return moments


def decoupling_study(
    *,
    depth: int = 6,
    channels: int = 2,
    kernel: int = 3,
    draws: int = 8,
    num_examples: int = 4000,
    seed: int = 0,
    deltas: Sequence[float] = STUDY_DELTAS,
    omegas: Sequence[float] = STUDY_OMEGAS,
    progress: bool = False,
) -> xr.Dataset:
    """Compute capacity profiles of a convolution stack, with gates from linear to pseudo-random.

    Gate moments are (1 - delta) 11' + delta I for the first, and measured on unit Gaussian inputs for ReLU, tanh,
    GELU, |z| and sin(omega z); profiles come from `propagate_moments` (docs/decoupling.md).

    Args:
        depth: number of convolutions.
        channels: channels of the hidden layers.
        kernel: entries of a kernel.
        draws: random networks over which profiles are averaged.
        num_examples: Gaussian inputs on which gates are measured.
        seed: of the networks and the inputs.
        deltas: decouplings in [0, 1] of the first part.
        omegas: frequencies of the sine.
        progress: show a progress bar over networks.

    Returns:
        Dataset over "setting" and "input" (the offset from the middle): `capacity`, the mean over draws, and
        `capacity_error`, its standard error; `total`; the measured `decoupling` between units, by `family`
        ("delta", "activation" or "omega").

    Raises:
        ValueError: a size below 1, a depth below 2, fewer than 2 draws, or a delta outside [0, 1].

    """
    _check_study(depth, channels, kernel, draws, num_examples, deltas)
    generator = torch.Generator().manual_seed(seed)
    settings = _settings(deltas, omegas)
    profiles, measured = [], []
    for _ in tqdm(range(draws), disable=not progress, desc="networks"):
        stack = KernelStack.random(depth, channels, kernel, generator)
        shape = (num_examples, 1, stack.positions[0])
        examples = torch.randn(shape, generator=generator, dtype=torch.float64)
        rows = list(_profiles(stack, examples, settings))
        profiles.append(torch.stack([row[0] for row in rows]).numpy())
        measured.append([row[1] for row in rows])
    by_draw = np.array(profiles)
    reach = (by_draw.shape[2] - 1) / 2
    return xr.Dataset(
        {
            "capacity": (("setting", "input"), by_draw.mean(0)),
            "capacity_error": (("setting", "input"), by_draw.std(0, ddof=1) / draws**0.5),
            "total": ("setting", by_draw.sum(2).mean(0)),
            "decoupling": ("setting", np.mean(measured, 0)),
            "family": ("setting", [family for family, _, _ in settings]),
        },
        coords={"setting": [name for _, name, _ in settings], "input": np.arange(by_draw.shape[2]) - reach},
        attrs={
            "depth": depth,
            "channels": channels,
            "kernel": kernel,
            "draws": draws,
            "num_examples": num_examples,
            "seed": seed,
        },
    )


Setting = tuple[str, str, float | nn.Module]


def _settings(deltas: Sequence[float], omegas: Sequence[float]) -> list[Setting]:
    activations = {"ReLU": nn.ReLU(), "tanh": nn.Tanh(), "GELU": nn.GELU(), "|z|": Abs()}
    return [
        *(("delta", f"δ = {delta:g}", float(delta)) for delta in deltas),
        *(("activation", name, module) for name, module in activations.items()),
        *(("omega", f"sin({omega:g} z)", Sine(omega)) for omega in omegas),
    ]


def _profiles(stack: KernelStack, examples: Tensor, settings: Sequence[Setting]) -> Iterator[tuple[Tensor, float]]:
    """Compute capacity at the inputs, and the mean layer decoupling, for every setting."""
    matrices, tangents = stack.matrices(), stack.tangents()
    for _, _, gate in settings:
        if isinstance(gate, nn.Module):
            moments = stack.gate_moments(gate, examples)
        else:
            moments = [equal_moment(len(matrix), gate) for matrix in matrices[:-1]]
        yield propagate_moments(matrices, moments, tangents)[0], float(np.mean([*map(layer_decoupling, moments)]))


def layer_decoupling(moment: Tensor) -> float:
    """Return delta, the mean of d_jj' over pairs of distinct units whose gates open (docs/theory.md, section 3)."""
    j, k = torch.triu_indices(len(moment), len(moment), 1)
    own = moment.diagonal()
    return float(decoupling_of(moment[j, k], own[j], own[k]).nanmean())


def equal_moment(units: int, delta: float) -> Tensor:
    """Return A = (1 - delta) 11' + delta I: every pair of units decoupled alike."""
    eye = torch.eye(units, dtype=torch.float64)
    return (1 - delta) + delta * eye


def _tangent(kernel: Tensor, above: int, below: int) -> Tensor:
    """Entry (c, c', t) reaches from input position p + t of channel c' to output position p of channel c."""
    out, into, size = kernel.shape
    tangent = torch.zeros(out, into, size, out, above, into, below, dtype=kernel.dtype)
    c, d, t, p = torch.meshgrid(*(torch.arange(n) for n in (out, into, size, above)), indexing="ij")
    tangent[c, d, t, c, p, d, p + t] = 1
    return tangent.reshape(out * into * size, out * above, into * below)


def _check_study(
    depth: int, channels: int, kernel: int, draws: int, num_examples: int, deltas: Sequence[float]
) -> None:
    least = {"depth": (depth, 2), "channels": (channels, 1), "kernel": (kernel, 1)}
    least |= {"draws": (draws, 2), "num_examples": (num_examples, 2)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
    outside = [delta for delta in deltas if not 0 <= delta <= 1]
    if outside:
        raise ValueError(f"deltas must lie in [0, 1], got {outside}")
