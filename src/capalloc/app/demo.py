"""Capacity of a small convolutional network trained on real handwritten digits: measured, then predicted."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capalloc._measure.measure import measure
from capalloc._propagate.propagate import propagate
from capalloc._runtime.extras import load_extra
from capalloc._settings import Block, Run
from capalloc.app.report import write_report
from capalloc.results.allocation import Allocation
from capalloc.results.comparison import agreement

CHANNELS = (8, 8)
EPOCHS, BATCH, LEARNING_RATE = 40, 64, 1e-3
#: Test images that capacity is measured on: many more constraints than parameters.
EXAMPLES = 50
#: Steps from the blocks towards the measured capacity.
STEPS = 8


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits, pixels in [0, 1]: images (examples, 1, 8, 8), split into train and test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Demo:
    """The findings of the demo."""

    accuracy: float  # on the test images
    num_hidden: int  # hidden channels: what rescaling takes from the number of parameters
    measured: Allocation
    predicted: Allocation
    seconds: dict[str, float]  # by step

    @property
    def agreement(self) -> dict[str, float]:
        """Distances and correlation of the measured and the predicted map."""
        return agreement(self.measured, self.predicted)

    def write(self, path: str | os.PathLike[str]) -> None:
        """The report of this run."""
        write_report(
            path,
            {"measured": self.measured, "predicted": self.predicted},
            title="Where a network that reads digits spends its capacity",
            facts={
                "test accuracy": f"{self.accuracy:.1%}",
                "seconds to measure": f"{self.seconds['measure']:.1f}",
                "seconds to predict": f"{self.seconds['predict']:.1f}",
            },
        )


def run_demo(seed: int = 0, progress: bool | None = None) -> Demo:
    """Train the network on digits, measure its capacity on test images, and predict it by blocks and steps.

    Args:
        seed: of the split, the initial weights and the order of training; the global random state is left alone.
        progress: show progress bars; None shows them on a terminal only.

    Raises:
        ModuleNotFoundError: scikit-learn, which brings the images, is not installed.

    """
    digits = load_digits(seed)
    times = [time.perf_counter()]
    model = train(digits, seed)
    times.append(time.perf_counter())
    images = digits.test_images[:EXAMPLES]
    measured = measure(model, images, metric="variance", run=Run(progress=progress))
    times.append(time.perf_counter())
    predicted = propagate(model, images, solver=Block(num_steps=STEPS), metric="variance")
    times.append(time.perf_counter())
    steps = ("train", "measure", "predict")
    return Demo(
        accuracy=accuracy(model, digits.test_images, digits.test_labels),
        num_hidden=sum(CHANNELS),
        measured=measured,
        predicted=predicted,
        seconds={step: end - start for step, start, end in zip(steps, times[:-1], times[1:], strict=True)},
    )


def load_digits(seed: int) -> Digits:
    """The 1797 images that scikit-learn ships, a quarter of them for testing."""
    bunch = load_extra("the demo", "sklearn.datasets").load_digits()
    split = load_extra("the demo", "sklearn.model_selection").train_test_split
    images = torch.tensor(bunch.images[:, None] / 16.0, dtype=torch.float32)
    labels = torch.tensor(bunch.target)
    train, test = split(range(len(images)), test_size=0.25, random_state=seed, stratify=bunch.target)
    return Digits(images[train], labels[train], images[test], labels[test])


def build(seed: int) -> nn.Sequential:
    """Two convolutions, a maximum between them, and a linear layer, without biases; the same for the same seed."""
    first, second = CHANNELS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = {
            "conv1": nn.Conv2d(1, first, kernel_size=3, padding=1, bias=False),
            "relu1": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(first, second, kernel_size=3, padding=1, bias=False),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(second * 16, 10, bias=False),
        }
    return nn.Sequential(OrderedDict(layers))


def train(digits: Digits, seed: int, epochs: int = EPOCHS) -> nn.Sequential:
    """Train by Adam on the cross-entropy of the training images."""
    model = build(seed)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train_images), generator=order).split(BATCH):
            loss = nn.functional.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest output is their label."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())
