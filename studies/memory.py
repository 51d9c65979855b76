"""Memory: h_t = h_(t-1) + M^-a W phi(h_(t-1)) + U x_t over M steps, one W for all of them (docs/theory.md, section 5).

How gradients grow and shatter by lag at random weights, which networks learn the exclusive or of two signs half the
memory apart, and where in the past their capacity lies. Indices are (runs, examples, steps, inputs).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import capalloc
from studies.differential import SLOPES
from studies.scaling import critical, exactly, sweep, with_error
from studies.study import Study, plus_minus, table

Array = NDArray[np.float64]
WIDTH, INPUTS, BATCH, NOISE = 24, 3, 48, 0.1
RATES = {"SGD": (0.01, 0.03, 0.1), "Adam": (0.001, 0.003, 0.01)}
OPTIMISERS = {
    "SGD": lambda weights, rate: torch.optim.SGD(weights, lr=rate, momentum=0.9),
    "Adam": lambda weights, rate: torch.optim.Adam(weights, lr=rate),
}


@dataclass(frozen=True)
class Design:
    """Sizes of the sweeps."""

    memories: tuple[int, ...] = (8, 16, 32, 64, 128)
    growing: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25)  # exponents of gradients
    trained: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    seeds: int = 5
    draws: int = 16
    steps: int = 300
    initial: tuple[int, ...] = (0, 1)  # seeds of trained networks


QUICK = Design((4, 8), (0.5, 1.25), (1.0,), 2, 8, 3, (0,))


def run(quick: bool = False) -> Study:
    """Sweep, train, allocate."""
    design = QUICK if quick else Design()
    tables = {"memory": growth_table(design), "lags": lags_table(design), "memory trained": "", "memory capacity": ""}
    tables["memory trained"], tables["memory capacity"] = trained_tables(design)
    return Study("scaling.md", tables)


# -- gradients at random weights ----------------------------------------------------------------------------


def by_lag(memory: int, eps: float, phi: str, shared: bool, draws: int, generator: torch.Generator) -> Array:
    """Energy of a random readout's gradient by lag over that at lag 0, and its correlation of two examples."""
    size, width = math.sqrt(SLOPES[phi] / 64), 64
    energies, products = np.zeros((2, memory + 1))
    for _ in range(draws):
        number = 1 if shared else memory
        weights = list((size * torch.randn(number, width, width, generator=generator).double()).expand(memory, -1, -1))
        h, gates = torch.randn(2, width, generator=generator).double(), []
        for weight in weights:
            gates.append((h > 0).double() if phi == "ReLU" else torch.ones_like(h))
            h = h + eps * (gates[-1] * h) @ weight + torch.randn(2, width, generator=generator)
        g = torch.randn(width, generator=generator).double().expand(2, width)
        g = g / g.norm(dim=1, keepdim=True)
        for lag in range(memory + 1):
            energies[lag] += float(g.square().sum()) / 2
            products[lag] += float(g[0] @ g[1])
            if lag < memory:
                g = g + eps * gates[memory - 1 - lag] * (g @ weights[memory - 1 - lag].T)
    return np.array([energies / draws, products / energies])


def growth(memory: int, eps: float, shared: bool) -> float:
    """Mean energy of (1 + eps W)^memory applied to a unit vector, for W of unit gain and infinite width.

    Fresh W: (1 + eps^2)^memory. One W: C(memory, k) terms of power k add up, sum_k C(memory, k)^2 eps^2k.
    """
    if not shared:
        return (1 + eps**2) ** memory
    ratios = [((memory - k) / (k + 1) * eps) ** 2 for k in range(memory)]  # of neighbouring terms
    return 1.0 + math.fsum(accumulate(ratios, operator.mul))


def growth_table(design: Design) -> str:
    """Exponents that keep the growth of gradients over all the memory."""
    rows = []
    for phi, shared in product(SLOPES, (False, True)):

        def log_growth(
            memory: int, a: float, generator: torch.Generator, phi: str = phi, shared: bool = shared
        ) -> float:
            found = by_lag(memory, memory**-a, phi, shared, design.draws, generator)
            return max(1e-3, math.log(found[0, -1]))

        measured = sweep("growth", design.memories, design.growing, design.seeds, log_growth)
        exact = exactly(lambda n, a, shared=shared: math.log(growth(n, n**-a, shared)), measured)
        value = plus_minus(*with_error(critical(measured)), 3)
        rows.append(
            ["one W" if shared else "fresh W", phi, value, f"{float(critical(exact)):.3f}", "1" if shared else "1/2"]
        )
    return table(["weights", "φ", "a that keeps the growth", "exact for linear steps at these M", "limit"], rows)


def lags_table(design: Design) -> str:
    """By lag at the longest memory: energy and correlation of gradients, ReLU."""
    memory = design.memories[-1]
    lags = [round(memory * part / 4) for part in range(5)]
    rows = []
    for a, shared in product((0.5, 1.0), (False, True)):
        generator = torch.Generator().manual_seed(0)
        name, eps = ("one W" if shared else "fresh W"), memory**-a
        energy, correlation = by_lag(memory, eps, "ReLU", shared, 4 * design.draws, generator)
        rows.append([a, name, "energy", *(f"{energy[k]:.3g}" for k in lags)])
        rows.append([a, name, "energy, linear, exact", *(f"{growth(k, eps, shared):.3g}" for k in lags)])
        rows.append([a, name, "correlation", *(f"{correlation[k]:.3f}" for k in lags)])
    return table(["a", "weights", "of the gradient", *(f"lag {k}" for k in lags)], rows)


# -- training -----------------------------------------------------------------------------------------------


def task(memory: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Signs on input 0 at the first step and on input 1 in the middle, amid noise; whether they are equal."""
    x = NOISE * torch.randn(BATCH, memory, INPUTS, generator=generator)
    signs = torch.randn(2, BATCH, generator=generator).sign()
    x[:, 0, 0] += signs[0]
    x[:, memory // 2, 1] += signs[1]
    return x, (signs[0] == signs[1]).float()


def initial(seed: int) -> list[Tensor]:
    """W, U, the readout and the first state."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((WIDTH, WIDTH, 2 / WIDTH), (INPUTS, WIDTH, 1.0), (WIDTH, 1, 1 / WIDTH), (1, WIDTH, 1.0))
    return [math.sqrt(v) * torch.randn(n, m, generator=generator) for n, m, v in shapes]


def outputs(weights: list[Tensor], x: Tensor, eps: Tensor) -> Tensor:
    """Logits (runs, examples)."""
    recurrent, reads, readout, start = weights
    h, recurrent = start.expand(-1, len(x), -1), eps * recurrent
    for read in torch.einsum("bti,rij->trbj", x, reads).unbind(0):
        h = torch.baddbmm(h + read, torch.relu(h), recurrent)
    return (h @ readout)[..., 0]


def fit(memory: int, optimiser: str, runs: list[tuple[float, float, int]], steps: int) -> tuple[Tensor, list[Tensor]]:
    """Accuracy of each (exponent, rate, seed) over the last tenth of its fresh batches, and its weights."""
    eps = torch.tensor([memory**-a for a, _, _ in runs])[:, None, None]
    weights = [[part[None].requires_grad_() for part in initial(seed)] for *_, seed in runs]
    descents = [OPTIMISERS[optimiser](parts, rate) for parts, (_, rate, _) in zip(weights, runs, strict=True)]
    generator, right = torch.Generator().manual_seed(memory), torch.zeros(len(runs))
    last = max(1, steps // 10)
    for step in range(steps):
        x, equal = task(memory, generator)
        found = outputs([torch.cat(parts) for parts in zip(*weights, strict=True)], x, eps)
        losses = nn.functional.binary_cross_entropy_with_logits(found, equal.expand_as(found), reduction="none")
        for descent in descents:
            descent.zero_grad()
        losses.mean(1).sum().backward()
        for descent in descents:
            descent.step()
        if step >= steps - last:
            right += ((found > 0) == equal.bool()).float().mean(1) * found.isfinite().all(1) / last
    return right.detach(), [torch.cat(parts).detach() for parts in zip(*weights, strict=True)]


class Network(nn.Module):
    """One run as a model."""

    def __init__(self, weights: list[Tensor], eps: float) -> None:
        super().__init__()
        self.weights, self.eps = nn.ParameterList(part.double() for part in weights), eps

    def forward(self, x: Tensor) -> Tensor:
        """(examples, steps, inputs) to logits (examples, 1)."""
        recurrent, reads, readout, start = self.weights
        h = start
        for read in (x @ reads).unbind(1):
            h = h + (self.eps * torch.relu(h) @ recurrent + read)
        return h @ readout


def trained_tables(design: Design) -> tuple[str, str]:
    """Accuracy by optimiser, exponent and memory at the best rate, and capacity by quarter of the past."""
    middle, rows = design.memories[len(design.memories) // 2], []
    untrained = [Network(initial(0), middle**-a) for a in design.trained]
    shares = [
        ["initial", f"{a:g}", "", *past(model, middle)] for a, model in zip(design.trained, untrained, strict=True)
    ]
    for name, rates in RATES.items():
        runs = list(product(design.trained, rates, design.initial))
        found = {memory: fit(memory, name, runs, design.steps) for memory in design.memories}
        for k, a in enumerate(design.trained):
            of = slice(k * len(rates) * len(design.initial), (k + 1) * len(rates) * len(design.initial))
            by_rate = [right[of].view(len(rates), -1).mean(1) for right, _ in found.values()]
            rows.append([name, f"{a:g}", *(f"{100 * float(values.max()):.0f}" for values in by_rate)])
            right, weights = found[middle][0][of], [part[of] for part in found[middle][1]]
            best = int(right.argmax())
            if right[best] >= 0.9:
                model = Network([part[best] for part in weights], middle**-a)
                shares.append([name, f"{a:g}", f"{100 * float(right[best]):.0f}", *past(model, middle)])
    head = ["optimiser", "a", *(f"M = {memory}" for memory in design.memories)]
    columns = ["last", "third", "second", "first"]
    columns = ["weights", "a", "accuracy", *(f"{k} quarter" for k in columns), "first step", "middle step"]
    return table(head, rows), table(columns, shares)


def past(model: nn.Module, memory: int) -> list[str]:
    """Shares of the inputs' capacity by the Markov rule: quarters, last to first, and the two steps that matter."""
    x = task(memory, torch.Generator().manual_seed(0))[0].double()
    kappa = capalloc.propagate(model.eval(), x, solver="markov", metric="variance").capacity.to_numpy().sum(-1)
    share = 100 * kappa / kappa.sum()
    return [f"{value:.1f} %" for value in (*share.reshape(4, -1).sum(1)[::-1], share[0], share[memory // 2])]
