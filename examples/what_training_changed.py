"""What did training change? A network that reads digits, trained at two learning rates."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import capalloc

pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (pixels - pixels.mean()) / pixels.std()


def fresh() -> nn.Sequential:
    """The network at its initial weights, the same ones each time."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(*layers).double()


def train(network: nn.Module, rate: float) -> float:
    """Take 400 steps of Adam; the share of unseen digits that the network then reads."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(400):
        some = torch.randint(1200, (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[some]), labels[some]).backward()
        optimiser.step()
    return float((network(images[1200:]).argmax(1) == labels[1200:]).double().mean())


def told(network: nn.Module) -> str:
    """How much of the network is in use, on digits that it has seen and without their labels."""
    allocation = capalloc.propagate(network, images[:300], solver="markov")
    scores = capalloc.prune_scores(network, images[:300]).unit_scores
    dead = [int((scores[layer] == 0).sum()) for layer in ("0", "2")]
    return f"{allocation.total / 8970:.0%} of the parameters count, {dead[0]} and {dead[1]} of 64 units are dead"


print("before:", told(fresh()))
reached = {}
for rate in (0.05, 0.003):
    network = fresh()
    reached[rate] = train(network, rate)
    print(f"at rate {rate}: {told(network)}; accuracy {reached[rate]:.2f}")
assert reached[0.003] > reached[0.05]
