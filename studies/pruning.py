"""What is left of a trained network when all but a share of its weights go, by several scores of the weights.

Scores are computed once on the trained network ("rounds" says where it is more often), all weights of all layers stand
in one order, and biases and norms stay. Accuracy is that straight afterwards, and that after some training of what is
left.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import capalloc
from capalloc._runtime.extras import load_extra
from capalloc.app.demo import load_digits
from studies.study import Study, table

SEEDS = 5
KEPT = (0.1, 0.05)
#: Steps of the iterative methods, each keeping the same share of what the last left.
ROUNDS = 30
EXAMPLES = 128
EPOCHS, AGAIN = 60, 5
Scores = dict[nn.Module, Tensor]  # of the weight of each layer


@dataclass(frozen=True)
class Data:
    """A data set of classes, split, inputs standardised or in [0, 1]."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits() -> Data:
    """8 x 8 images of handwritten digits."""
    found = load_digits(0)
    return Data(found.train_images, found.train_labels, found.test_images, found.test_labels)


def cancer() -> Data:
    """Thirty features of cell nuclei, as a signal of one channel."""
    found = load_extra("the study", "sklearn.datasets").load_breast_cancer()
    x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:400], order[400:]
    x = (x - x[train].mean(0)) / x[train].std(0)
    return Data(x[train, None], y[train], x[test, None], y[test])


def dense(data: Data) -> nn.Sequential:
    """Two hidden layers."""
    size, classes = data.x[0].numel(), int(data.y.max()) + 1
    layers = [nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes)]
    return nn.Sequential(*layers)


def convolutional(data: Data) -> nn.Sequential:
    """Three normed convolutions, in the plane or along a line, and a mean."""
    plane = data.x.ndim == 4
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if plane else (nn.Conv1d, nn.BatchNorm1d)
    layers: list[nn.Module] = []
    for below, above, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [conv(below, above, 3, stride=stride, padding=1, bias=False), norm(above), nn.ReLU()]
    pool = nn.AdaptiveAvgPool2d(1) if plane else nn.AdaptiveAvgPool1d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(32, int(data.y.max()) + 1))


DATA: Mapping[str, Callable[[], Data]] = {"digits": digits, "breast cancer": cancer}
NETWORKS: Mapping[str, Callable[[Data], nn.Sequential]] = {"dense": dense, "convolutional": convolutional}


def train(data: Data, network: Callable[[Data], nn.Sequential], seed: int, epochs: int) -> nn.Sequential:
    """Train with Adam on all of the training examples, in batches of 64."""
    torch.manual_seed(seed)
    return trained(network(data), data, epochs)


def trained(model: nn.Sequential, data: Data, epochs: int) -> nn.Sequential:
    """The same network after some epochs; weights of 0 stay 0."""
    kept = [(m.weight, m.weight != 0) for m in weighted(model)]
    model.train().requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.x)).split(64):
            loss = nn.functional.cross_entropy(model(data.x[batch]), data.y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                for weight, mask in kept:
                    weight.mul_(mask)
    return model.eval().requires_grad_(False)


# -- scores -------------------------------------------------------------------------------------------------


def weighted(model: nn.Module) -> list[nn.Module]:
    """The layers whose weights may go."""
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]


def path_energy(model: nn.Sequential, data: Data) -> Scores:
    """`capalloc.prune_scores`, without labels."""
    found = capalloc.prune_scores(plain(model), data.x[:EXAMPLES], params="all").weights
    return {m: torch.tensor(found[f"{k}.weight"]) for k, m in enumerate(model) if m in weighted(model)}


def magnitude(model: nn.Sequential, data: Data) -> Scores:
    """|theta|."""
    return {m: m.weight.abs() for m in weighted(model)}


def synflow(model: nn.Sequential, data: Data) -> Scores:
    """theta dR/d theta, R the sum of outputs on ones with |theta|, norms by their scale (Tanaka et al., 2020)."""
    linear = plain(model).double()
    with torch.no_grad():
        for name, tensor in [*linear.named_parameters(), *linear.named_buffers()]:
            if "running_mean" in name or name.endswith("bias"):
                tensor.zero_()
            elif tensor.is_floating_point():
                tensor.abs_()
    linear.requires_grad_(True)
    linear(torch.ones_like(data.x[:1], dtype=torch.float64)).sum().backward()
    own = zip(weighted(model), weighted(linear), strict=True)
    return {m: (copied.weight * copied.weight.grad).float() for m, copied in own}


def damage(model: nn.Sequential, data: Data) -> Scores:
    """theta^2 times the diagonal of the Gauss-Newton matrix of the loss: optimal brain damage (LeCun, 1990)."""
    copied = plain(model).requires_grad_(False)
    layers = weighted(copied)
    names = [f"{k}.weight" for k, m in enumerate(copied) if m in layers]
    params = {name: p.detach() for name, p in copied.named_parameters()}

    def log_probability(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(copied, {**params, **theta}, (x[None],))
        return logits[0].log_softmax(0)

    theta = {name: params[name] for name in names}
    found = {name: torch.zeros_like(p) for name, p in theta.items()}
    for batch in data.x[:EXAMPLES].split(16):
        rows = torch.func.vmap(torch.func.jacrev(log_probability), (None, 0))(theta, batch)
        shares = copied(batch).softmax(1)
        for name, row in rows.items():
            found[name] += torch.einsum("nc,nc...->...", shares, row.square())
    return {m: theta[n] ** 2 * found[n] for m, n in zip(weighted(model), names, strict=True)}


def chance(model: nn.Sequential, data: Data) -> Scores:
    """Random scores."""
    return {m: torch.rand_like(m.weight) for m in weighted(model)}


def plain(model: nn.Sequential) -> nn.Sequential:
    """A copy whose masked weights are parameters again."""
    copied = copy.deepcopy(model)
    for module in weighted(copied):
        if prune.is_pruned(module):
            prune.remove(module, "weight")
    return copied


#: By name: the scores, and whether they are computed anew in every round.
METHODS: Mapping[str, tuple[Callable[[nn.Sequential, Data], Scores], bool]] = {
    "path energy": (path_energy, False),
    "path energy, rounds": (path_energy, True),
    "magnitude": (magnitude, False),
    "SynFlow": (synflow, False),
    "SynFlow, rounds": (synflow, True),
    "OBD": (damage, False),
    "chance": (chance, False),
}


def pruned(model: nn.Sequential, data: Data, method: str, kept: float, rounds: int = ROUNDS) -> nn.Sequential:
    """A copy with that share of the weights, torch's own pruning doing the work."""
    scores, anew = METHODS[method]
    left = copy.deepcopy(model)
    layers = weighted(left)
    whole = sum(m.weight.numel() for m in layers)
    for k in range(1, (steps := rounds if anew else 1) + 1):
        gone = whole - round(whole * kept ** (k / steps)) - sum(int((m.weight == 0).sum()) for m in layers if k > 1)
        found = scores(left, data)
        prune.global_unstructured(
            [(m, "weight") for m in layers],
            pruning_method=prune.L1Unstructured,
            importance_scores={(m, "weight"): s for m, s in found.items()},
            amount=max(gone, 0),
        )
    return plain(left)


def accuracy(model: nn.Sequential, data: Data) -> float:
    """Share of test examples that are right."""
    with torch.no_grad():
        return float((model(data.test_x).argmax(1) == data.test_y).double().mean())


def run(quick: bool = False) -> Study:
    """Accuracy on the test examples by network, method and share kept, mean and standard error over seeds."""
    kept, seeds, epochs = ((0.1,), 1, 2) if quick else (KEPT, SEEDS, EPOCHS)
    methods = [m for m in METHODS if not (quick and METHODS[m][1])]
    rows = []
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for of, load in DATA.items():
            data = load()
            for name, network in NETWORKS.items():
                models = [train(data, network, seed, epochs) for seed in range(seeds)]
                whole = written([accuracy(model, data) for model in models])
                for share in kept:
                    left = {method: [pruned(model, data, method, share) for model in models] for method in methods}
                    at_once = [written([accuracy(m, data) for m in left[method]]) for method in methods]
                    rows.append([of, name, whole, f"{share:.0%}", "at once", *at_once])
                    again = [[accuracy(trained(m, data, AGAIN), data) for m in left[method]] for method in methods]
                    rows.append([of, name, whole, f"{share:.0%}", "trained on", *map(written, again)])
    return Study("validation.md", {"pruning": table(["data", "network", "whole", "kept", "then", *methods], rows)})


def written(values: list[float]) -> str:
    """Mean and standard error over seeds."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"
