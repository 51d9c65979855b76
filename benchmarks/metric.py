"""Which metric to start from: how the map and the bias change with the draw of examples, and with the inputs' units.

python -m benchmarks.metric
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import capalloc
from benchmarks.networks import trained
from benchmarks.table import Table
from capalloc._linalg.metric_names import METRICS, MetricName
from capalloc.app.demo import Digits, load_digits

SEED = 0
DRAWS, SIZES = 3, (8, 30, 100)
#: A ridge relative to the mean eigenvalue: few examples then say something too.
RIDGE = 1e-3


def dense() -> nn.Sequential:
    """One hidden layer with biases, on the 64 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


def fitted(digits: Digits) -> nn.Module:
    """The dense network, trained on digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = dense()
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(20):
            for batch in torch.randperm(len(digits.train_images)).split(64):
                loss = nn.functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


def rescaled(model: nn.Module, times: float, shift: float) -> nn.Module:
    """The same function of inputs times and shifted: a fixed normalisation before the model."""

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model((x - shift) / times)

    return Before().eval()


def run() -> Table:
    digits = load_digits(SEED)
    rows = []
    for name, model in (("dense", fitted(digits)), ("MLP", trained("MLP", SEED, digits))):
        for metric, method in itertools.product(METRICS[:2], ("measure", "markov")):
            rows.append((name, method, metric, *_row(model, digits.test_images, metric, _method(method))))
    sizes = [str(size) for size in SIZES]
    return Table(
        "Choosing the metric",
        f"Total variation, the bias counted, between {DRAWS} disjoint draws of 8, 30 and 100 images of digits, mean of "
        f"the pairs; share of the bias over them; and that share at 100 images multiplied by 255, or shifted by 10, "
        f"with the same undone in the model. Measured with a ridge of {RIDGE:g} of the mean eigenvalue.",
        ("network", "method", "metric", *(f"TV {n}" for n in sizes), *(f"bias {n}" for n in sizes), "x 255", "+ 10"),
        rows,
    )


def _method(name: str) -> Callable[..., capalloc.Allocation]:
    if name == "markov":
        return partial(capalloc.propagate, solver="markov")

    def measured(model: nn.Module, x: Tensor, metric: MetricName) -> capalloc.Allocation:
        ridge = RIDGE * capalloc.solvers.mean_eigenvalue(model, x, metric=metric)
        return capalloc.measure(model, x, metric=metric, ridge=ridge)

    return measured


def _row(model: nn.Module, images: Tensor, metric: str, method: Callable[..., capalloc.Allocation]) -> list[str]:
    distances, shares = [], []
    for size in SIZES:
        found = [method(model, images[k * size : (k + 1) * size], metric=metric) for k in range(DRAWS)]
        pairs = [capalloc.total_variation(a, b) for a, b in itertools.combinations(found, 2)]
        distances.append(f"{statistics.mean(pairs):.3f}")
        shares.append(f"{statistics.mean(a.bias / a.total for a in found):.3f}")
    x = images[: SIZES[-1]]
    changed = [method(rescaled(model, a, s), x * a + s, metric=metric) for a, s in ((255.0, 0.0), (1.0, 10.0))]
    return [*distances, *shares, *(f"{a.bias / a.total:.3f}" for a in changed)]
