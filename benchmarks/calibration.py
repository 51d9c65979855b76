"""Standard errors of the stochastic solver beside the errors made, over seeds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.architectures import NETWORKS, SEED, built, trained
from benchmarks.table import Table
from capalloc import Allocation, measure
from capalloc.app.demo import load_digits
from capalloc.results.regions import patches
from capalloc.solvers import Stochastic

#: Batch norm, layer norm, group norm, attention with and without a mask, gates.
CHOSEN = ("ResNet", "MobileNet", "DenseNet", "LSTM", "ConvNeXt", "ViT", "Swin", "GPT")
#: Of one image these have fewer rows of constraints than parameters.
OF_ONE = ("ConvNeXt", "ViT", "GPT")
EXAMPLES, SEEDS, PROBES = 16, 24, (3, 8)
PART = patches(2, 2)


def run() -> Table:
    cases = [(name, EXAMPLES) for name in CHOSEN] + [(name, 1) for name in OF_ONE]
    return Table(
        "Standard errors of the stochastic solver over seeds",
        f'Initial weights, digits, the ridge "auto", solves to the accuracy of rtol .02, {SEEDS} seeds, beside the '
        "dense answer at the same ridge. Share of the errors made that are within two of the standard errors given, "
        "95 % or so where these are right: of single inputs, the constant, tensors (whose errors count all that solves "
        "miss) and the total. Then the largest relative error of a patch of 2 x 2 that was made, and that was told: "
        "medians.",
        (
            *("network", "images", "parameters", "probes", "inputs", "constant", "tensors", "total"),
            *("worst patch: made", "told"),
        ),
        [of_network(name, count, probes) for name, count in cases for probes in PROBES],
    )


def of_network(name: str, count: int, probes: int) -> tuple[str, ...]:
    digits = load_digits(SEED)
    module, lesson = NETWORKS[name]
    x, y = lesson.inputs(digits.train_images), lesson.targets(digits.train_images, digits.train_labels)
    model = trained(built(module, lesson, SEED), x, y, lesson, 0, SEED).double()
    return name, *calibrated(model, lesson.inputs(digits.test_images).double()[:count], probes, SEEDS)


def calibrated(model: nn.Module, x: Tensor, probes: int, seeds: int) -> tuple[str, ...]:
    """The row of a network."""
    solver = Stochastic(num_probes=probes, spectrum=False, partition=PART)
    exact = measure(model, x, ridge="auto", generator=seeded(0))
    ridge = exact.attrs["ridge"]  # "auto" is itself an estimate
    found = [measure(model, x, ridge=ridge, solver=solver, generator=seeded(seed)) for seed in range(seeds)]
    scores = [in_errors(one, exact) for one in found]
    made = [float(np.abs(one.by(PART) / exact.by(PART) - 1).max()) for one in found]
    told = [one.attrs["relative_standard_error"] for one in found]
    within = (np.mean(np.abs(kind) <= 2) for kind in zip(*scores, strict=True))
    sizes = str(len(x)), str(exact.attrs["num_params"]), str(probes)
    return *sizes, *(f"{share:.0%}" for share in within), *(f"{np.median(one):.1%}" for one in (made, told))


def in_errors(found: Allocation, exact: Allocation) -> tuple[np.ndarray, ...]:
    """Errors in units of standard errors: of inputs, the constant, tensors that hold something, and the total."""
    attrs = found.attrs
    off = found.by_parameter - exact.by_parameter
    tensors = np.array([attrs["by_parameter_standard_error"][name] for name in found.by_parameter.parameter.values])
    return (
        np.asarray((found.capacity - exact.capacity) / found.capacity.standard_error),
        np.array((found.bias - exact.bias) / attrs["bias_standard_error"]),
        np.asarray(off)[tensors > 0] / tensors[tensors > 0],
        np.array((found.total - exact.total) / attrs["total_standard_error"]),
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
