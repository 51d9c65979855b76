"""Hypothesis (H) measured: capacity with the inputs' covariance for every gate pattern, and with each pattern's own.

Index convention of constraints: (cells, slots, outputs, parameters). Slots are the inputs z, of mean 0 and variance 1,
and, where the network has biases, the constant last; a cell is a gate pattern, in which the network is affine
(docs/theory.md, section 2).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from capalloc.app.demo import load_digits
from studies.study import Study, table

SAMPLES = 200_000
#: Weights of Gaussian networks are drawn this often, those of digits once.
SEEDS = 5
#: Widths, and whether layers have biases.
GAUSSIAN = (
    ([4, 3, 1], False),
    ([4, 8, 1], False),
    ([8, 8, 1], False),
    ([4, 8, 1], True),
    ([8, 8, 1], True),
    ([4, 5, 5, 1], False),
    ([4, 5, 5, 1], True),
    ([6, 6, 4, 3], True),
)
DIGITS = ([16, 4, 10], [16, 8, 10], [16, 5, 5, 10])


def run(quick: bool = False) -> Study:
    """Compare the two maps on Gaussian inputs and on digits."""
    head = ["inputs", "network", "cells", "total, (H)", "without", "distance", "noise", "to own cells"]
    head += ["input of deviation 3, (H)", "without", "root in units"]
    gaussian = gaussian_rows(GAUSSIAN[3:4], 2000, 2) if quick else gaussian_rows(GAUSSIAN, SAMPLES, SEEDS)
    rows = [*gaussian, *(digits_rows(DIGITS[:1], 1) if quick else digits_rows(DIGITS, 30))]
    return Study("validation.md", {"gate patterns": table(head, rows)})


# -- cells --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells that examples visit."""

    first: Tensor  # (cells,) an example of each
    share: Tensor  # (cells,) of the examples
    moments: Tensor  # (cells, slots, slots): E[z z' | cell], the constant last


def gates(model: nn.Sequential, z: Tensor) -> Tensor:
    """Whether each ReLU is open, (examples, units)."""
    found = []
    for layer in model:
        if isinstance(layer, nn.ReLU):
            found.append(z > 0)
        z = layer(z)
    return torch.cat(found, 1)


@torch.no_grad()
def visited(slots: Tensor, patterns: Tensor) -> Cells:
    """Cells by the pattern of each example."""
    _, cell, counts = patterns.unique(dim=0, return_inverse=True, return_counts=True)
    summed = slots.new_zeros(len(counts), slots.shape[1] ** 2)
    for examples, of in zip(slots.split(50_000), cell.split(50_000), strict=True):
        summed.index_add_(0, of, (examples[:, :, None] * examples[:, None]).flatten(1))
    first = torch.full_like(counts, len(slots)).scatter_reduce_(0, cell, torch.arange(len(slots)), "amin")
    moments = (summed / counts[:, None]).unflatten(1, (slots.shape[1], -1))
    return Cells(first, counts.to(slots) / len(slots), moments)


def has_constant(model: nn.Module) -> bool:
    """Whether the network has biases: without them it is linear in every cell, and the constant no slot."""
    return any("bias" in name for name, _ in model.named_parameters())


def slots_of(model: nn.Module, z: Tensor) -> Tensor:
    """Examples with a last slot of 1 where there is a constant."""
    return F.pad(z, (0, int(has_constant(model))), value=1.0)


def constraints(model: nn.Sequential, z: Tensor) -> Tensor:
    """d/dtheta of the gradient at the inputs, and of the intercept f - gradient . z if that is a slot."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def affine(theta: dict[str, Tensor], at: Tensor) -> Tensor:
        f = lambda x: functional_call(model, theta, (x,))  # noqa: E731
        slope = jacrev(f)(at)
        return torch.cat([slope.T, (f(at) - slope @ at)[None]])[: slots_of(model, z).shape[1]]

    found = vmap(jacrev(affine), (None, 0))(parameters, z)
    return torch.cat([part.flatten(3) for part in found.values()], 3)


# -- capacity -----------------------------------------------------------------------------------------------


def under_hypothesis(cells: Cells, rows: Tensor) -> Tensor:
    """Capacity by slot where every cell has the covariance of all inputs, here the identity."""
    return capacity(rows * cells.share.sqrt()[:, None, None, None])


def without_hypothesis(cells: Cells, rows: Tensor, deviations: Tensor | None = None) -> Tensor:
    """Capacity by slot where every cell has its own second moments.

    Their symmetric root makes slots of them: that of z or, with the deviations of the slots, that of x in its units.
    """
    units = rows.new_ones(rows.shape[1]) if deviations is None else deviations
    root = roots(units[:, None] * cells.moments * units) / units
    return capacity(torch.einsum("c,cij,cjok->ciok", cells.share.sqrt(), root, rows))


def roots(moments: Tensor) -> Tensor:
    """Symmetric roots; what rounding leaves in the directions that a cell lacks is no direction."""
    values, vectors = torch.linalg.eigh(moments)
    none = values <= values.amax(-1, keepdim=True) * moments.shape[-1] * torch.finfo(moments.dtype).eps
    return (vectors * values.clamp(min=0).sqrt().masked_fill(none, 0)[..., None, :]) @ vectors.mT


def capacity(rows: Tensor) -> Tensor:
    """Leverage scores of the rows, summed over cells and outputs."""
    flat = rows.flatten(0, 2)
    left, sizes, _ = torch.linalg.svd(flat, full_matrices=False)
    left = left[:, sizes > sizes[0] * max(flat.shape) * torch.finfo(flat.dtype).eps]
    return left.square().sum(1).view(rows.shape[:3]).sum((0, 2))


def distance(a: Tensor, b: Tensor) -> float:
    """Total variation of the normalised maps, the constant counted."""
    return float((a / a.sum() - b / b.sum()).abs().sum() / 2)


# -- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One network's maps, in figures."""

    cells: int
    total: float
    total_without: float
    distance: float
    noise: float  # distance between the maps without (H) of two halves of the examples
    degenerate: float  # distance of the map without (H) to the mean of z^2 / |z|^2


def compare(model: nn.Sequential, z: Tensor) -> Comparison:
    """Both maps on examples z."""
    (cells, rows), slots = found(model, z), slots_of(model, z)
    assumed, own = under_hypothesis(cells, rows), without_hypothesis(cells, rows)
    halves = [without_hypothesis(*found(model, z[start::2])) for start in (0, 1)]
    shares = (slots.square() / slots.square().sum(1, keepdim=True)).mean(0)
    totals = float(assumed.sum()), float(own.sum())
    return Comparison(len(rows), *totals, distance(assumed, own), distance(*halves), distance(own, shares))


def found(model: nn.Sequential, z: Tensor) -> tuple[Cells, Tensor]:
    """The cells that examples visit and the constraints in them."""
    cells = visited(slots_of(model, z), gates(model, z))
    return cells, constraints(model, z[cells.first])


def of_first(model: nn.Sequential, z: Tensor, deviation: float) -> tuple[float, float, float]:
    """What the first input holds over the mean of the others: under (H), without, and by the root in units."""
    wider = torch.ones(z.shape[1], dtype=z.dtype)
    wider[0] = deviation
    model = copy.deepcopy(model)
    model[0].weight.data *= wider  # reads x = deviation z
    cells, rows = found(model, z)
    maps = [under_hypothesis(cells, rows), without_hypothesis(cells, rows)]
    maps.append(without_hypothesis(cells, rows, slots_of(model, wider[None])[0]))
    return tuple(float(kappa[0] / kappa[1 : z.shape[1]].mean()) for kappa in maps)


def network(widths: list[int], biases: bool, seed: int) -> nn.Sequential:
    """A ReLU network of float64 at PyTorch's initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, bias=biases, dtype=torch.float64) for a, b in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers[:-1] for part in (layer, nn.ReLU())), layers[-1])


def spread(values: Iterable[float], digits: int) -> str:
    """Least to most."""
    values = list(values)
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def cells_of(all_figures: list[Comparison]) -> list[str]:
    """One network's columns, over seeds."""
    columns = zip(*map(astuple, all_figures), strict=True)
    return [spread(column, digits) for column, digits in zip(columns, (0, 0, 0, 3, 3, 3), strict=True)]


def gaussian_rows(networks: Sequence[tuple[list[int], bool]], samples: int, seeds: int) -> Iterator[list[str]]:
    """Gaussian inputs, all of deviation 1 but for the last columns."""
    z = torch.randn(samples, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for widths, biases in networks:
        models = [network(widths, biases, seed) for seed in range(seeds)]
        figures = cells_of([compare(model, z[:, : widths[0]]) for model in models])
        first = zip(*(of_first(model, z[:, : widths[0]], 3.0) for model in models), strict=True)
        name = "-".join(map(str, widths)) + (", biases" if biases else "")
        yield ["Gaussian", name, *figures, *(spread(values, 2) for values in first)]


def digits_rows(networks: Sequence[list[int]], epochs: int) -> Iterator[list[str]]:
    """Digits of 4 x 4 pixels, each of mean 0 and variance 1."""
    data = load_digits(seed=0)
    images = F.avg_pool2d(data.train_images.double(), 2).flatten(1)
    z = (images - images.mean(0)) / images.std(0, correction=0)
    for widths in networks:
        for weights, length in (("initial", 0), ("trained", epochs)):
            model = trained(network(widths, True, 0), z, data.train_labels, length)
            yield ["digits", f"{'-'.join(map(str, widths))}, {weights}", *cells_of([compare(model, z)]), "", "", ""]


def trained(model: nn.Sequential, z: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    """The same network after some epochs of Adam."""
    order = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(z), generator=order).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(z[batch]), labels[batch]).backward()
            optimiser.step()
    return model
