"""Parts that several families share."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

#: Names that `chain` gives to layers; others go by the name of their class.
LAYER_WORDS = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "norm",
    nn.LayerNorm: "norm",
    nn.Linear: "linear",
    nn.MaxPool2d: "pool",
    nn.AvgPool2d: "pool",
    nn.AdaptiveAvgPool2d: "pool",
}


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, by name."""
    return nn.Sequential(OrderedDict(modules))


def chain(*modules: nn.Module) -> nn.Sequential:
    """Modules in a row, named conv1, norm1, relu1, conv2, ...; without a number where there is one of the kind."""
    kinds = [
        next((kind for base, kind in LAYER_WORDS.items() if isinstance(m, base)), type(m).__name__.lower())
        for m in modules
    ]
    counts, seen = Counter(kinds), Counter[str]()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for kind, module in zip(kinds, modules, strict=True):
        seen[kind] += 1
        layers[f"{kind}{seen[kind]}" if counts[kind] > 1 else kind] = module
    return nn.Sequential(layers)


class Add(nn.Module):
    """shortcut(h) + branch(h), and an activation if there is one."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """The sum."""
        summed: Tensor = self.activation(self.shortcut(h) + self.branch(h))
        return summed


def dense_layers(*sizes: int) -> list[nn.Module]:
    """Flatten, then linear layers between the sizes with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for ins, outs in pairwise(sizes):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    return layers[:-1]


def conv(ins: int, outs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps rows and columns, but for its stride."""
    return nn.Conv2d(ins, outs, size, stride=stride, padding=size // 2, groups=groups, bias=False)


def conv_norm(
    ins: int,
    outs: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> list[nn.Module]:
    """Convolution, batch norm, and an activation if there is one."""
    layers = [conv(ins, outs, size, stride, groups), nn.BatchNorm2d(outs)]
    return [*layers, activation()] if activation else layers


def pooled_head(width: int, num_classes: int) -> list[nn.Module]:
    """Averages over rows and columns, and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]


def he(model: nn.Module) -> nn.Module:
    """Give convolutions He's normal weights: a ReLU behind them keeps the second moment."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def small_normal(model: nn.Module, std: float = 0.02) -> nn.Module:
    """Give linear layers and convolutions the weights that transformers start with, and no bias."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
