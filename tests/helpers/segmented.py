"""Small networks with linear segments: two maps and no gate between them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PreNorm(nn.Module):
    """A residual stream that is read through a frozen affine norm and not gated."""

    def __init__(self, width: int = 3, hidden: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            h = h + down(torch.relu(up(norm(h))))
        return self.head(h)


class Attention(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, heads: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(inputs, inner, bias=False) for _ in range(3))
        self.v = nn.Linear(inputs, inner, bias=bias)
        self.o = nn.Linear(inner, outputs, bias=bias)

    def split(self, z: Tensor) -> Tensor:
        return z.view(*z.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        return self.o(y.transpose(1, 2).flatten(2))


class ConvolutionBeforeNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Linear(18, 2)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def bottleneck(*widths: int, bias: bool = False) -> nn.Module:
    return nn.Sequential(*(nn.Linear(i, o, bias=bias) for i, o in itertools.pairwise(widths)))


def gated_bottleneck() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))


VO = ["v.weight", "o.weight"]


#: name -> (model, shape of the examples, free parameters, closed form of the total or None)
CASES = {
    "rank-2 bottleneck": (lambda: bottleneck(6, 2, 5), (20, 6), None, 2 * (6 + 5) - 4),
    "bottleneck with biases": (lambda: bottleneck(6, 2, 5, bias=True), (20, 6), None, 18 + 5),
    "wider than both ends": (lambda: bottleneck(3, 5, 2, bias=True), (20, 3), None, 3 * 2 + 2),
    "three maps, rank 1": (lambda: bottleneck(4, 3, 1, 4), (20, 4), None, 4 + 4 - 1),
    "wide, wider, narrow": (lambda: bottleneck(2, 5, 3, 4), (20, 2), None, 4 * 2),
    "narrower and narrower": (lambda: bottleneck(4, 3, 2, 1), (20, 4), None, 4),
    "gated bottleneck": (gated_bottleneck, (100, 4), None, None),
    "ungated residual stream": (PreNorm, (100, 4), None, None),
    "values and output": (lambda: Attention(3, 4, 2), (20, 5, 3), VO, 6),
    "two heads": (lambda: Attention(6, 4, 5, heads=2), (20, 5, 6), VO, 44 - 2 * 4),
    "values with a bias": (lambda: Attention(6, 4, 5, 2, True), (20, 5, 6), [*VO, "v.bias", "o.bias"], 36 + 5),
    "bias before a norm": (ConvolutionBeforeNorm, (100, 1, 8), None, None),
}
