"""A random family of small networks, and data sets made of what scikit-learn ships, for the study of ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capalloc._runtime.extras import load_extra
from capalloc.app.demo import load_digits
from studies.pruning import Data

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
KINDS = ("dense", "residual dense", "gated dense", "convolutional", "residual convolutional", "gated convolutional")
KINDS += ("attention",)
SMALLEST, LARGEST = 150, 1500
#: Side of the canvas of moved digits, strength of what is behind them, sides of photo patches and their rows.
CANVAS, BEHIND = 10, 0.4
PATCH, BANDS = 8, 4


@dataclass(frozen=True)
class Plan:
    """One architecture, of any data set."""

    kind: str
    width: int
    depth: int
    kernel: int
    activation: str
    norm: bool
    pool: str  # "mean" over positions at the end, or "flat"


def draw(rng: torch.Generator) -> Plan:
    """A random architecture."""

    def one(options: tuple[Any, ...]) -> Any:
        return options[int(torch.randint(len(options), (), generator=rng))]

    kind = one(KINDS)
    kernels, ends = ((1, 3, 5), ("mean", "flat")) if "convolutional" in kind else ((1,), ("flat",))
    return Plan(
        kind,
        one((2, 3, 4, 6, 8, 12, 16, 24, 32)),
        one((1, 2, 3, 4, 6)),
        one(kernels),
        one(tuple(ACTIVATIONS)),
        one((False, True)),
        one(("mean", "flat") if kind == "attention" else ends),
    )


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + self.branch(x)


class Gated(nn.Module):
    """value(x) times a sigmoid of gate(x)."""

    def __init__(self, value: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.value, self.gate = value, gate

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return self.value(x) * self.gate(x).sigmoid()


class Attend(nn.Module):
    """One head of attention over tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(examples, tokens, width), each token a mean of all values."""
        q, k, v = self.read(x).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.write(weights @ v)


class Patches(nn.Module):
    """Images as tokens, one a patch of 2 x 2 pixels, with learned positions."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(shape[0], width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(shape[1] * shape[2] // 4, width))

    def forward(self, x: Tensor) -> Tensor:
        """(examples, channels, rows, columns) to (examples, tokens, width)."""
        return self.embed(x).flatten(2).transpose(1, 2) + self.positions


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(examples, tokens, width) to (examples, width)."""
        return x.mean(1)


def build(plan: Plan, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The network of a plan for images of that shape."""
    if plan.kind == "attention":
        return _attention(plan, shape, classes)
    conv = "convolutional" in plan.kind
    w, act = plan.width, ACTIVATIONS[plan.activation]
    start = shape[0] if conv else math.prod(shape)

    def affine(below: int) -> nn.Module:
        return nn.Conv2d(below, w, plan.kernel, padding=plan.kernel // 2) if conv else nn.Linear(below, w)

    def norm() -> list[nn.Module]:
        return [nn.GroupNorm(1, w) if conv else nn.LayerNorm(w)] if plan.norm else []

    layers: list[nn.Module] = [] if conv else [nn.Flatten()]
    layers += [affine(start), *norm(), act(), *([nn.MaxPool2d(2)] if conv else [])]
    for _ in range(1, plan.depth):
        if plan.kind.startswith("residual"):
            layers.append(Residual(nn.Sequential(*norm(), act(), affine(w))))
        elif plan.kind.startswith("gated"):
            layers += [Gated(affine(w), affine(w)), *norm()]
        else:
            layers += [affine(w), *norm(), act()]
    size = w
    if conv:
        pooled = 1 if plan.pool == "mean" else 4
        layers += [nn.AdaptiveAvgPool2d(pooled), nn.Flatten()]
        size = w * pooled**2
    return nn.Sequential(*layers, nn.Linear(size, classes))


def _attention(plan: Plan, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    w, act = plan.width, ACTIVATIONS[plan.activation]
    layers: list[nn.Module] = [Patches(shape, w)]
    for _ in range(max(1, plan.depth // 2)):
        for part in (Attend(w), nn.Sequential(nn.Linear(w, 2 * w), act(), nn.Linear(2 * w, w))):
            layers.append(Residual(nn.Sequential(*([nn.LayerNorm(w)] if plan.norm else []), part)))
    tokens = shape[1] * shape[2] // 4
    end: list[nn.Module] = [Mean()] if plan.pool == "mean" else [nn.Flatten()]
    return nn.Sequential(*layers, *end, nn.Linear(w * (1 if plan.pool == "mean" else tokens), classes))


def plans(number: int, shapes: tuple[tuple[tuple[int, ...], int], ...], seed: int = 0) -> list[Plan]:
    """So many different architectures that are neither too small nor too large on any data set.

    Their sizes on the first one are spread evenly in the logarithm: what would make a bin too full is drawn again.
    """
    rng, found, bins = torch.Generator().manual_seed(seed), [], [0] * 8
    with torch.random.fork_rng():
        while len(found) < number:
            plan = draw(rng)
            sizes = [sum(p.numel() for p in build(plan, *shape).parameters()) for shape in shapes]
            place = math.log(sizes[0] / SMALLEST) / math.log(LARGEST / SMALLEST)
            if plan in found or not (min(sizes) >= SMALLEST and max(sizes) <= LARGEST):
                continue
            if bins[which := min(int(place * len(bins)), len(bins) - 1)] > number // len(bins):
                continue
            bins[which] += 1
            found.append(plan)
    return found


# -- data ---------------------------------------------------------------------------------------------------


def digits() -> Data:
    """8 x 8 images of handwritten digits."""
    found = load_digits(0)
    return Data(found.train_images, found.train_labels, found.test_images, found.test_labels)


def moved_digits() -> Data:
    """The same at a random place of a canvas of 10 x 10, in front of smooth noise."""
    found, rng = load_digits(0), torch.Generator().manual_seed(1)

    def moved(images: Tensor) -> Tensor:
        coarse = torch.rand(len(images), 1, CANVAS // 2, CANVAS // 2, generator=rng)
        canvas = BEHIND * nn.functional.interpolate(coarse, size=(CANVAS, CANVAS), mode="bilinear")
        for k, at in enumerate(torch.randint(0, CANVAS - 7, (len(images), 2), generator=rng).tolist()):
            piece = canvas[k, :, at[0] : at[0] + 8, at[1] : at[1] + 8]
            piece.copy_(torch.maximum(piece, images[k]))
        return canvas

    return Data(moved(found.train_images), found.train_labels, moved(found.test_images), found.test_labels)


def photos() -> Data:
    """Patches of 8 x 8 pixels of the two photographs: which of them, and which of four bands of rows.

    Training patches are of the left seven tenths, test patches of the right quarter: none overlap.
    """
    rng = torch.Generator().manual_seed(2)
    images = load_extra("the study", "sklearn.datasets").load_sample_images().images
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for which, array in enumerate(images):
        image = torch.tensor(array, dtype=torch.float32).permute(2, 0, 1) / 255
        height, width = image.shape[1] // BANDS, image.shape[2]
        for band in range(BANDS):
            for part, number, low, high in (("train", 160, 0.0, 0.7), ("test", 64, 0.75, 1.0)):
                rows = band * height + torch.randint(0, height - PATCH, (number,), generator=rng)
                columns = torch.randint(int(low * width), int(high * width) - PATCH, (number,), generator=rng)
                parts[part] += [
                    image[:, r : r + PATCH, c : c + PATCH] for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
                ]
                labels[part] += [which * BANDS + band] * number
    x, test = torch.stack(parts["train"]), torch.stack(parts["test"])
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Data((x - mean) / std, torch.tensor(labels["train"]), (test - mean) / std, torch.tensor(labels["test"]))


def covered_digits() -> Data:
    """Digits of which a random square of 3 x 3 pixels is covered, bright on dark or dark on bright, with noise."""
    found, rng = load_digits(0), torch.Generator().manual_seed(3)

    def covered(images: Tensor) -> Tensor:
        images = images.clone()
        for k, (row, column) in enumerate(torch.randint(0, 6, (len(images), 2), generator=rng).tolist()):
            images[k, :, row : row + 3, column : column + 3] = 0.5
        dark = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
        return torch.where(dark, 1 - images, images) + 0.2 * torch.randn(images.shape, generator=rng)

    return Data(covered(found.train_images), found.train_labels, covered(found.test_images), found.test_labels)


DATA: Mapping[str, Callable[[], Data]] = {
    "digits": digits,
    "moved digits": moved_digits,
    "photos": photos,
    "covered digits": covered_digits,
}
