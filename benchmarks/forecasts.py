"""What `audit` says beforehand that it takes, and what it takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import nn

import capalloc
from benchmarks.fresh_process import print_rows, rows_of
from benchmarks.table import Table
from capalloc.architectures import make
from capalloc.architectures.recurrent import RecurrentClassifier

#: Networks, and the shape of their examples.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LSTM, 50 steps": (lambda: make("lstm"), (64, 50, 16)),
    "LSTM, small, 40 steps": (lambda: RecurrentClassifier(nn.LSTM(4, 8, batch_first=True), 3), (64, 40, 4)),
    "GRU, 50 steps": (lambda: make("gru"), (64, 50, 16)),
    "GRU, small, 40 steps": (lambda: RecurrentClassifier(nn.GRU(4, 8, batch_first=True), 3), (64, 40, 4)),
    "LeNet": (lambda: make("lenet"), (64, 1, 28, 28)),
    "ResNet-18": (lambda: make("resnet18", num_classes=10, shape=(3, 64, 64)), (8, 3, 64, 64)),
    "ViT": (
        lambda: make("vit-tiny", num_classes=10, shape=(3, 32, 32), patch=8, width=64, depth=4, heads=4),
        (64, 3, 32, 32),
    ),
    "MLP": (lambda: make("mlp"), (64, 1, 28, 28)),
    "MLP, small": (
        lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)),
        (64, 16),
    ),
    "U-Net": (lambda: make("unet", width=8, depth=3, shape=(1, 32, 32)), (16, 1, 32, 32)),
    "Mixer": (lambda: make("mixer", num_classes=10, shape=(3, 32, 32), patch=8, width=64, depth=4), (64, 3, 32, 32)),
    "GPT": (lambda: make("gpt-tiny"), (16, 64, 128)),
    "TCN": (lambda: make("tcn"), (64, 1, 784)),
}


def row(name: str) -> tuple[str, ...]:
    make_model, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make_model().eval()
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    with patch("time.perf_counter", time.process_time):
        found = capalloc.audit(model, x)
    size = sum(p.numel() for p in model.parameters())
    told = f"{found.forecast_seconds:.3g} s", f"{found.seconds:.3g} s", f"{found.seconds / found.forecast_seconds:.2f}"
    return name, str(size), " x ".join(map(str, shape)), *told


def run() -> Table:
    return Table(
        "Forecasts of audits",
        "Initial weights, Gaussian inputs, 60 s allowed, each in a process of its own. Seconds of one processor, which "
        "stand for those of the clock: others on the machine do not count.",
        ("network", "parameters", "input", "forecast", "taken", "ratio"),
        [row for name in NETWORKS for row in rows_of("forecasts", name)],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_rows(row(wanted) for wanted in sys.argv[1:] or NETWORKS)
