"""Why does it not train? A network of twelve layers with the weights that PyTorch gives it, on digits."""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import nn

import capalloc

pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (pixels - pixels.mean()) / pixels.std()


def deep() -> nn.Sequential:
    """Twelve layers of 64 units."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10)).double()


def accuracy(network: nn.Module, rate: float) -> float:
    """The share of unseen digits that the network reads after 100 steps of gradient descent."""
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    for _ in range(100):
        some = torch.randint(1200, (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[some]), labels[some]).backward()
        optimiser.step()
    return float((network(images[1200:]).argmax(1) == labels[1200:]).double().mean())


def best(network: Callable[[], nn.Module]) -> float:
    """The best accuracy of three learning rates, each from fresh weights."""
    return max(accuracy(network(), rate) for rate in (0.003, 0.03, 0.3))


print(f"as it is: {best(deep):.2f}")
found = capalloc.diagnose(deep(), images[:64])
print(found.summary, *found.advice[:2], sep="\n")
print(f"balanced: {best(lambda: capalloc.balance(deep(), images[:64])):.2f}")
