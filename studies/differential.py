"""Differential layers: blocks h + eps D_l phi(h), D_l a difference operator in space (docs/theory.md, section 5).

How far what one output position reads has spread at the inputs (the phase in space) beside the gates that it crosses
(T, and the correlation of gradients of two examples), for eps = L^-a. Indices are (examples, channels, positions).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc.gates import gradient_correlation
from studies.scaling import critical, exactly, with_error
from studies.study import Study, plus_minus, table

CHANNELS = 16
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Sizes of the sweeps."""

    depths: tuple[int, ...] = (8, 16, 32, 64, 128)
    exponents: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25)
    seeds: int = 5
    draws: int = 8  # networks of one seed, whose spreads are pooled
    radii: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 16  # of the networks whose capacity is propagated
    networks: int = 3


QUICK = Design((4, 12), (0.25, 1.25), 2, 2, (1, 2), 2, 1)


def run(quick: bool = False) -> Study:
    """Sweep depths and exponents, then refine the grid."""
    design = QUICK if quick else Design()
    found = {(name, phi): swept(operator, phi, design) for name, operator in OPERATORS.items() for phi in SLOPES}
    tables = {
        "differential": exponents_table(found),
        "spreads": spreads_table(found),
        "spread of capacity": capacity_table(design),
        "refined": refined_table(design),
    }
    return Study("depth-limit.md", tables)


# -- operators ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """D_l of unit energy gain, with steps of one variance in positions."""

    step_variance: float
    fresh: bool  # drawn anew for every block

    def draw(self, depth: int, generator: torch.Generator) -> list[Tensor]:
        """Kernels (channels, channels or 1, 3) of every block."""
        number = depth if self.fresh else 1
        if self.step_variance < 1:
            kernels = torch.randn(number, CHANNELS, CHANNELS, 3, generator=generator).double() / math.sqrt(3 * CHANNELS)
        else:
            speeds = torch.randn(number, CHANNELS, 1, 1, generator=generator).double() if self.fresh else torch.ones(1)
            kernels = speeds * DIFFERENCE.expand(number, CHANNELS, 1, 3)
        return list(kernels.expand(depth, -1, -1, -1))


DIFFERENCE = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) / math.sqrt(2)
OPERATORS = {
    "random kernels": Operator(2 / 3, fresh=True),
    "random speeds × ∂": Operator(1.0, fresh=True),
    "∂, the same in all": Operator(1.0, fresh=False),
}
#: 1 / E[a^2], which keeps a branch's gain at eps^2.
SLOPES = {"linear": 1.0, "ReLU": 2.0}


def gradients(kernels: list[Tensor], phi: str, eps: float, positions: int, generator: torch.Generator) -> Tensor:
    """Of a random readout of the middle position at two independent examples, (2, channels, positions)."""
    start = torch.randn(2, CHANNELS, positions, generator=generator).double().requires_grad_()
    readout = torch.randn(CHANNELS, generator=generator).double()
    h, eps = start, eps * math.sqrt(SLOPES[phi])
    for kernel in kernels:
        read = F.pad(torch.relu(h) if phi == "ReLU" else h, (1, 1), mode="circular")
        h = h + eps * F.conv1d(read, kernel, groups=CHANNELS // kernel.shape[1])
    return torch.autograd.grad((h[:, :, positions // 2] @ readout).sum(), start)[0]


def spread(squares: Tensor) -> float:
    """Root of the second moment about the middle of a law (positions,), not normalised."""
    away = torch.arange(len(squares), dtype=squares.dtype) - len(squares) // 2
    return float(((squares * away**2).sum() / squares.sum()).sqrt())


# -- closed forms -------------------------------------------------------------------------------------------


def walked(step_variance: float, rate: float, depth: int) -> float:
    """Spread of the walk: depth blocks, each a step with probability rate / (1 + rate)."""
    return math.sqrt(depth * step_variance * rate / (1 + rate))


def capacity_spread(step_variance: float, rate: float, depth: int) -> float:
    """Spread of the capacity of kernels: a unit starts with one even step of its own and walks the other blocks."""
    return math.sqrt(step_variance + walked(step_variance, rate, depth - 1) ** 2)


def coherent(eps: float, depth: int) -> float:
    """Spread of the squared coefficients of (1 + eps d)^depth, d = (shift - shift back) / sqrt(2), by Parseval.

    The transfer function is (1 + i sqrt(2) eps sin k)^depth; sum x^2 c_x^2 is the mean of its squared derivative
    2 eps^2 depth^2 cos^2 k (1 + 2 eps^2 sin^2 k)^(depth - 1).
    """
    k = np.linspace(0, 2 * np.pi, 4 * depth + 8, endpoint=False)  # exact for these trigonometric polynomials
    size = 1 + 2 * eps**2 * np.sin(k) ** 2
    moments = 2 * (eps * depth * np.cos(k)) ** 2 * size ** (depth - 1)
    return math.sqrt(moments.sum() / (size**depth).sum())


def predicted(operator: Operator, depth: int, exponent: float) -> float:
    """Spread of linear layers: incoherent where operators are fresh, coherent where they are the same."""
    eps = depth**-exponent
    return walked(operator.step_variance, eps**2, depth) if operator.fresh else coherent(eps, depth)


# -- sweeps -------------------------------------------------------------------------------------------------


def swept(operator: Operator, phi: str, design: Design) -> xr.Dataset:
    """Spread and gradient correlation over (seed, exponent, size), beside the spread of linear layers."""
    shape = (design.seeds, len(design.exponents), len(design.depths))
    spreads, correlations = np.empty(shape), np.empty(shape)
    for at in np.ndindex(shape):
        depth, generator = design.depths[at[2]], torch.Generator().manual_seed(1000 * at[0] + 100 * at[1] + at[2])
        spreads[at], correlations[at] = observed(
            operator, phi, depth ** -design.exponents[at[1]], depth, design.draws, generator
        )
    coords = {"seed": np.arange(design.seeds), "exponent": list(design.exponents), "size": list(design.depths)}
    dims = ("seed", "exponent", "size")
    data = xr.Dataset({"spread": (dims, spreads), "correlation": (dims, correlations)}, coords)
    return data.assign(predicted=exactly(lambda n, a: predicted(operator, n, a), data["spread"]))


def observed(
    operator: Operator, phi: str, eps: float, depth: int, draws: int, generator: torch.Generator
) -> tuple[float, float]:
    """Spread of the squared gradient and correlation of gradients, both of sums over draws."""
    positions = 2 * depth + 3
    law, product, norms = torch.zeros(positions).double(), 0.0, 0.0
    for _ in range(draws):
        g = gradients(operator.draw(depth, generator), phi, eps, positions, generator)
        law += g.square().sum((0, 1))
        product += float((g[0] * g[1]).sum())
        norms += float(g[0].norm() * g[1].norm())
    return spread(law), product / norms


# -- tables -------------------------------------------------------------------------------------------------


def exponents_table(found: dict[tuple[str, str], xr.Dataset]) -> str:
    """Exponents at which the spread does not change with depth: measured, and of linear layers at these depths."""
    rows = []
    for (name, phi), data in found.items():
        value, error = with_error(critical(data["spread"]))
        exact = float(critical(data["predicted"]))
        rows.append([name, phi, plus_minus(value, error), f"{exact:.4f}", "1/2" if OPERATORS[name].fresh else "1"])
    return table(["operator", "φ", "a that keeps the spread", "exact for linear layers at these depths", "limit"], rows)


def spreads_table(found: dict[tuple[str, str], xr.Dataset]) -> str:
    """Spread at two depths, measured / of linear layers, and gradient correlation at the larger one."""
    exponents = next(iter(found.values()))["exponent"].to_numpy()
    head = ["operator", "φ", "L", "of", *(f"a = {a:g}" for a in exponents)]
    rows = []
    for (name, phi), data in found.items():
        for depth in data["size"].to_numpy()[[0, -1]]:
            at = data.sel(size=depth)
            pairs = zip(at["spread"].mean("seed").to_numpy(), at["predicted"].to_numpy(), strict=True)
            rows.append([name, phi, depth, "spread", *(f"{found:.2f} / {exact:.2f}" for found, exact in pairs)])
        if phi == "ReLU":
            value, error = with_error(at["correlation"])
            cells = [plus_minus(v, e, 2) for v, e in zip(value, error, strict=True)]
            rows.append([name, phi, depth, "gradient correlation", *cells])
    times = [f"{depth * math.log1p(depth ** (-2 * a)):.3g}" for a in exponents]
    return table(head, [*rows, ["all", "all", depth, "T", *times]])


class Stack(nn.Module):
    """Random kernels as a model: h + eps conv(relu(h)), 4 channels, periodic."""

    def __init__(self, depth: int, eps: float) -> None:
        super().__init__()
        conv = lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular", bias=False)  # noqa: E731
        self.blocks, self.eps = nn.ModuleList(conv() for _ in range(depth)), eps
        for block in self.blocks:
            nn.init.normal_(block.weight, std=math.sqrt(2 / 12))

    def forward(self, h: Tensor) -> Tensor:
        """(examples, channels, positions) to the same."""
        for block in self.blocks:
            h = h + self.eps * block(torch.relu(h))
        return h


def capacity_table(design: Design) -> str:
    """The walk of a unit placed at the output, and capacity, which is born in the blocks, by `receptive_field`."""
    head = ["a", "walk from the output", "closed form", "capacity", "closed form", "total change T"]
    rows = []
    for a in design.exponents:
        eps = design.blocks**-a
        each = np.array([capacity_spreads(design.blocks, eps, seed) for seed in range(design.networks)])
        forms = [form(2 / 3, eps**2, design.blocks) for form in (walked, capacity_spread)]
        (walk, capacity), time = each.mean(0), design.blocks * math.log1p(eps**2)
        rows.append([a, f"{walk:.2f}", f"{forms[0]:.2f}", f"{capacity:.2f}", f"{forms[1]:.2f}", f"{time:.3g}"])
    return table(head, rows)


def capacity_spreads(depth: int, eps: float, seed: int) -> list[float]:
    """Deviations of both maps of the middle output position."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, inputs = Stack(depth, eps).double().eval(), torch.randn(32, 4, 33).double()
    maps = (capalloc.receptive_field(model, inputs, of=of, output_position=(16,)) for of in ("energy", "capacity"))
    return [found.axes["column"].deviation for found in maps]


def refined_table(design: Design) -> str:
    """Random kernels whose walk spreads over ever more positions of a finer grid."""
    head = ["spread, positions", "L", "T", "measured", "gradient correlation, law", "measured"]
    return table(head, refined_rows(design))


def refined_rows(design: Design) -> Iterator[list[object]]:
    """ReLU at a rate of 1/8, where depth = 9 radius^2 / step variance gives the spread `radius`."""
    operator = OPERATORS["random kernels"]
    for radius in design.radii:
        depth = round(9 * radius**2 / operator.step_variance)
        each = []
        for seed in range(design.seeds):
            generator = torch.Generator().manual_seed(seed)
            each.append(observed(operator, "ReLU", math.sqrt(1 / 8), depth, max(1, design.draws // radius), generator))
        data = xr.Dataset({"both": (("seed", "which"), np.array(each))})
        value, error = with_error(data["both"])
        law = float(gradient_correlation([1 / 8] * depth)["gradient"][-1])
        measured = [plus_minus(v, e, 3) for v, e in zip(value, error, strict=True)]
        yield [radius, depth, f"{depth * math.log1p(1 / 8):.3g}", measured[0], f"{law:.3f}", measured[1]]
