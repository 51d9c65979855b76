"""What the networks of the training study learn, from scikit-learn's 8 x 8 digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc.app.demo import load_digits

NUM_VALIDATION = 247


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs (examples, inputs) and labels (examples,)."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """Three disjoint sets of examples; validation chooses the learning rate and nothing else."""

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int

    @property
    def ends(self) -> tuple[int, int]:
        """Numbers of inputs and classes."""
        return self.train.inputs.shape[1], self.num_classes


def digits() -> Task:
    """Which digit; a linear readout gets about 95 % right. The mean image is taken away, mean energy is 1."""
    data = load_digits(seed=0)
    train, test = (images.flatten(1) for images in (data.train_images, data.test_images))
    mean = train[NUM_VALIDATION:].mean(0)
    scale = (train[NUM_VALIDATION:] - mean).square().mean().sqrt()
    train, test = (train - mean) / scale, (test - mean) / scale
    return Task(
        _examples(train[NUM_VALIDATION:], data.train_labels[NUM_VALIDATION:]),
        _examples(train[:NUM_VALIDATION], data.train_labels[:NUM_VALIDATION]),
        _examples(test, data.test_labels),
        num_classes=10,
    )


def pairs(per_image: int = 3) -> Task:
    """Two digits side by side: is exactly one of them 5 or more? No linear readout does better than chance."""
    task = digits()
    sets = (_paired(part, per_image, seed) for seed, part in enumerate((task.train, task.validation, task.test)))
    return Task(*sets, num_classes=2)


def _examples(pixels: Tensor, labels: Tensor) -> Examples:
    """With a last input of 1, the networks' only bias: without it tanh networks are odd functions."""
    return Examples(torch.cat([pixels, torch.ones(len(pixels), 1)], 1), labels)


def _paired(part: Examples, per_image: int, seed: int) -> Examples:
    """Every image `per_image` times on the left, with a random one of the same set on the right."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.arange(len(part.labels)).repeat(per_image)
    right = torch.randint(len(part.labels), left.shape, generator=generator)
    labels = (part.labels[left] >= 5) ^ (part.labels[right] >= 5)
    return Examples(torch.cat([part.inputs[left, :-1], part.inputs[right]], 1), labels.long())
