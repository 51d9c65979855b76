"""Five small networks that read digits, one of a kind, for the validation tables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc.app.demo import Digits, build


class Residual(nn.Module):
    """A stem, pre-activation blocks h + conv(relu(conv(relu(h)))) and a pooled linear head."""

    def __init__(self, channels: int = 5, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        conv = lambda: nn.Conv2d(channels, channels, 3, padding=1, bias=False)  # noqa: E731
        self.branches = nn.ModuleList(nn.Sequential(nn.ReLU(), conv(), nn.ReLU(), conv()) for _ in range(blocks))
        self.head = nn.Linear(channels * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for branch in self.branches:
            h = h + branch(h)
        return self.head(F.adaptive_avg_pool2d(torch.relu(h), 2).flatten(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10)
    )


def dilated() -> nn.Module:
    """The rows of the image read as one signal, dilations 1, 2, 4, 8."""
    widths = [1, 4, 4, 4, 6]
    layers: list[nn.Module] = [nn.Flatten(2)]
    for k in range(4):
        layers += [nn.Conv1d(widths[k], widths[k + 1], 2, dilation=2**k), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool1d(7), nn.Flatten(), nn.Linear(42, 10))


def tanh() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "demo": lambda: build(torch.initial_seed()),  # the seed that the caller set
    "MLP": mlp,
    "residual": Residual,
    "dilated": dilated,
    "tanh": tanh,
}


def initial(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name]()


def trained(name: str, seed: int, digits: Digits, epochs: int = 25) -> nn.Module:
    model = initial(name, seed)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train_images), generator=order).split(64):
            loss = F.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()
