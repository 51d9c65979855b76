"""What can I cut from a trained network that reads digits? Units of its hidden layer, by their share of path energy."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import capalloc

pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = ((pixels - pixels.mean()) / pixels.std()).reshape(-1, 1, 8, 8)


def reader(units: int) -> nn.Sequential:
    """A network with so many hidden units."""
    first = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(256, units), nn.ReLU(), nn.Linear(units, 10)).double()


def train(network: nn.Module, steps: int, rate: float) -> None:
    """Take steps of Adam on the first 1200 digits."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(steps):
        some = torch.randint(1200, (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[some]), labels[some]).backward()
        optimiser.step()


def accuracy(network: nn.Module) -> float:
    """The share of unseen digits that the network reads."""
    return float((network(images[1200:]).argmax(1) == labels[1200:]).double().mean())


def narrowed(kept: Tensor) -> nn.Sequential:
    """The trained network with these of its hidden units."""
    weights = model.state_dict()
    weights |= {"6.weight": weights["6.weight"][kept], "6.bias": weights["6.bias"][kept]}
    weights |= {"8.weight": weights["8.weight"][:, kept]}
    network = reader(len(kept))
    network.load_state_dict(weights)
    return network


torch.manual_seed(0)
model = reader(64)
train(model, 300, 2e-3)
share = torch.as_tensor(capalloc.prune_scores(model, images[:200]).unit_scores["6"])  # asks for no labels
alive, whole = int((share > 0).sum()), accuracy(model)
print(f"{64 - alive} of 64 units do nothing; accuracy {whole:.2f}")
for count in (64, alive, 32, 24):
    network = narrowed(share.topk(count).indices)
    size, cut = sum(p.numel() for p in network.parameters()), accuracy(network)
    lots = sum(accuracy(narrowed(torch.randperm(64)[:count])) for _ in range(5)) / 5
    train(network, 100, 5e-4)
    print(
        f"{count} units, {size:,} parameters: {cut:.2f}, {accuracy(network):.2f} after 100 steps; {lots:.2f} at random"
    )
    assert cut >= lots
    assert accuracy(network) > whole - 0.02
