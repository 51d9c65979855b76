"""Small models for measured capacity: one for every rule of a layer, and some that function transforms cannot enter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import gaussian


def data(*shape: int, seed: int = 0) -> Tensor:
    return gaussian(*shape, seed=seed)


def build(make) -> nn.Module:
    """A double model with fixed random weights, non-trivial statistics and scales."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().double().eval()
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.data.normal_(1.0 if "weight" in name else 0.0, 0.5)
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.normal_().abs_().add_(0.5) if "var" in name else b.normal_()
    return model


class Shared(nn.Module):
    """One matrix used twice, once through a rule and once transposed; a scale; a bias added by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.scale = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.weight))
        return self.head(F.relu(h @ self.weight.T * self.scale + self.scale))


class Twice(nn.Module):
    """One layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.layer(x)))


class ByHand(nn.Module):
    """A matrix on the right, an in-place activation, a layer without a rule (transposed convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.up = nn.ConvTranspose1d(2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = (x @ self.weight).add_(1.0).relu_()
        return self.up(h.reshape(-1, 2, 3)).flatten(1)[:, :3]


class Attention(nn.Module):
    """A transformer block on (length, width) inputs, by the fused function and by the module."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True) if module else None
        self.qkv = None if module else nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if self.attend is not None:
            h = x + self.attend(h, h, h, need_weights=False)[0]
        else:
            q, k, v = self.qkv(h)[:, None].chunk(3, -1)
            h = x + F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.mlp(h)[:, -1]


def norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


class Token(nn.Module):
    """A token of its own, beside those of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(1, -2)], 1)
        return self.second(torch.relu(self.first(h)).sum(1))


MODELS = {
    "token": (Token, (1, 4, 4)),
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "relu": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (4,)),
    "relu_no_bias": (
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)),
        (4,),
    ),
    "tanh": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), (3,)),
    "one_output": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.2), nn.Linear(5, 1)), (4,)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (1, 4, 4),
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2),
            nn.Tanh(),
            nn.Conv1d(4, 2, 3, padding="same", padding_mode="circular"),
            nn.ReLU(),
            nn.Conv1d(2, 2, 2, padding="same", dilation=3),
            nn.Flatten(),
            nn.Linear(6, 2),
        ),
        (2, 5),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
        (1, 2, 2, 3),
    ),
    "norms": (norm_net, (1, 4, 4)),
    "batchnorm1d": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), (3,)),
    "instance_norm": (
        lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(6, 2)),
        (2, 3),
    ),
    "prelu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), (3,)),
    "shared": (Shared, (3,)),
    "twice": (Twice, (3,)),
    "by_hand": (ByHand, (4,)),
    "attention": (lambda: Attention(module=False), (3, 4)),
    "multihead": (lambda: Attention(module=True), (3, 4)),
}


class Signs(nn.Module):
    """Multiplies by +-1, drawn anew for every example and unit: total decoupling."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * torch.randint(2, x.shape, device=x.device) - 1).to(x)


class Cube(torch.autograd.Function):
    """x^3 w in the old style: no forward mode, no vmap; the parameter is hidden from torch calls."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x**3 * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * 3 * x**2 * w, (grad * x**3).sum(0)


class CubeNew(torch.autograd.Function):
    """The same for function transforms, with reverse mode only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x**3 * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * 3 * x**2 * w, (grad * x**3).sum(0)


class Cubic(nn.Module):
    """Its weight has a use that no torch call shows, beside one that a rule covers."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.weight = nn.Parameter(torch.randn(4))
        self.last = nn.Linear(4, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        apply = self.function.apply if self.function else lambda h, w: h**3 * w
        return self.last(apply(self.first(x), self.weight) + self.weight)


class Branches(nn.Module):
    """Control flow on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(row) if row.sum() > 0 else self.b(row) for row in x])


def snapshot(model: nn.Module):
    state = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    flags = [(p.requires_grad, p.grad, p.dtype, p.device) for p in model.parameters()]
    return state, modes, hooks, flags


class Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0)


class Counter(nn.Module):
    """Remembers how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls
