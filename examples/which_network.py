"""Which of these networks should I train? Four that read digits, with about a thousand parameters each."""

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn

import capalloc

pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (pixels - pixels.mean()) / pixels.std()


def dense(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU behind each but the last."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def networks() -> dict[str, nn.Sequential]:
    """The candidates at initial weights; the last begins with a linear layer that lets three numbers through."""
    torch.manual_seed(0)
    squeezed = nn.Sequential(nn.Linear(64, 3).double(), *dense(3, 64, 10))
    deep, deeper = dense(64, 11, 11, 11, 10), dense(64, *[8] * 8, 10)
    return {"wide": dense(64, 14, 10), "deep": deep, "deeper": deeper, "squeezed": squeezed}


def accuracy(network: nn.Module) -> float:
    """The share of unseen digits that the network reads once it is trained."""
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        some = torch.randint(1200, (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[some]), labels[some]).backward()
        optimiser.step()
    return float((network(images[1200:]).argmax(1) == labels[1200:]).double().mean())


ranking = capalloc.rank(networks(), images[:20])
print(ranking)
trained = {name: accuracy(network) for name, network in networks().items()}
print("trained:", ", ".join(f"{name} {trained[name]:.2f}" for name in ranking.order))
assert sorted(trained, key=lambda name: -trained[name]) == list(ranking.order)
