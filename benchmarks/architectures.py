"""The measured and the propagated map of small versions of the architectures people use, trained on digits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from benchmarks import nulls
from benchmarks.table import Table
from capalloc.app.demo import load_digits

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # the networks are those of the tests
import architectures as zoo

SEED = 0
EPOCHS, BATCH, LEARNING_RATE = 15, 64, 5e-3
#: Constraints for each parameter, or more; their number then limits what is measured less.
CONSTRAINTS = 2


@dataclass(frozen=True)
class Task:
    """What a network learns: inputs and targets made of images (examples, 1, 8, 8) and labels."""

    inputs: Callable[[Tensor], Tensor]
    targets: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


def noisy(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    return images + 0.3 * noise


CLASSIFY = Task(lambda images: images, lambda images, labels: labels, F.cross_entropy)
ROWS = Task(lambda images: images[:, 0], lambda images, labels: labels, F.cross_entropy)
DENOISE = Task(noisy, lambda images, labels: images, F.mse_loss)
ENLARGE = Task(lambda images: F.avg_pool2d(images, 2), lambda images, labels: images, F.mse_loss)
NEXT_PIXEL = Task(
    lambda images: images[:, 0, 2:5].flatten(1)[:, None, :16],
    lambda images, labels: images[:, 0, 2:5].flatten(1)[:, None, 1:17],
    F.mse_loss,
)
NEXT_ROW = Task(lambda images: images[:, 0, :-1], lambda images, labels: F.avg_pool1d(images[:, 0, 1:], 2), F.mse_loss)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Task]] = {
    "ResNet": (zoo.ResNet, CLASSIFY),
    "pre-activation ResNet": (zoo.PreActivation, CLASSIFY),
    "U-Net, transposed": (lambda: zoo.UNet(3), DENOISE),
    "U-Net, interpolated": (lambda: zoo.UNet(interpolate=True), DENOISE),
    "WaveNet": (lambda: zoo.WaveNet(5), NEXT_PIXEL),
    "MobileNet": (zoo.MobileNet, CLASSIFY),
    "squeeze-and-excite": (zoo.SqueezeExcite, CLASSIFY),
    "MLP-Mixer": (zoo.Mixer, CLASSIFY),
    "ConvNeXt": (zoo.ConvNeXt, CLASSIFY),
    "DenseNet": (zoo.DenseNet, CLASSIFY),
    "Inception": (zoo.Inception, CLASSIFY),
    "super-resolution": (zoo.SuperResolution, ENLARGE),
    "LSTM": (lambda: zoo.Recurrent(nn.LSTM, 8), ROWS),
    "GRU": (lambda: zoo.Recurrent(nn.GRU, 8), ROWS),
    "ViT": (zoo.ViT, CLASSIFY),
    "Swin": (zoo.Swin, CLASSIFY),
    "BERT": (lambda: zoo.Bert(8, 8), ROWS),
    "GPT": (lambda: zoo.Gpt(7, 8), NEXT_ROW),
}


def run() -> Table:
    digits = load_digits(SEED)
    rows = []
    for name, (module, task) in NETWORKS.items():
        x, y = task.inputs(digits.train_images), task.targets(digits.train_images, digits.train_labels)
        test = task.inputs(digits.test_images).double()
        for stage, epochs in (("initial", 0), ("trained", EPOCHS)):
            model, *others = (
                trained(built(module, task, seed), x, y, task, epochs, seed).double()
                for seed in (SEED, *nulls.OTHER_SEEDS)
            )
            rows.append((name, stage, *compared(model, others, test)))
    return Table(
        "Architectures: propagated beside measured",
        f"Small versions of tests/helpers/architectures.py, {EPOCHS} epochs on the digits, weights of seed {SEED}. "
        f"{CONSTRAINTS} constraints for each parameter, or more. {nulls.ABOUT}",
        (
            "network",
            "weights",
            "parameters",
            "unseen",
            "examples",
            "measured total",
            "Markov total",
            *nulls.HEADER,
            "bias measured",
            "bias Markov",
            "seconds measured",
            "seconds Markov",
        ),
        rows,
    )


def built(module: Callable[[], nn.Module], task: Task, seed: int) -> nn.Module:
    """With ten outputs where it tells digits apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = module()
        if task.loss is F.cross_entropy:
            model.head = nn.Linear(model.head.in_features, 10)
    return model


def trained(model: nn.Module, x: Tensor, y: Tensor, task: Task, epochs: int, seed: int) -> nn.Module:
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    for _ in range(max(epochs, 1)):
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            loss = task.loss(model(x[batch]), y[batch])
            if epochs:  # otherwise only the running statistics move
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


def compared(model: nn.Module, others: list[nn.Module], test: Tensor) -> tuple[str, ...]:
    params = sum(p.numel() for p in model.parameters())
    outputs = model(test[:1]).numel()
    x = test[: -(-CONSTRAINTS * params // outputs)]
    start = time.perf_counter()
    measured = capalloc.measure(model, x, metric="variance")
    between = time.perf_counter()
    rule = partial(capalloc.propagate, inputs=x, metric="variance", table=False, solver="markov")
    markov = rule(model)
    stop = time.perf_counter()
    return (
        str(params),
        f"{markov.attrs['unseen_params'] / params:.0%}",
        str(len(x)),
        f"{measured.total:.0f}",
        f"{markov.total:.0f}",
        *nulls.agreement(measured, markov, model, others, rule),
        f"{measured.bias:.0f}",
        f"{markov.bias:.0f}",
        f"{between - start:.1f}",
        f"{stop - between:.1f}",
    )
