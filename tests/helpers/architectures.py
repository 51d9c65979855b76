"""Small versions of the architectures people use: a few hundred to two thousand parameters, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import gaussian, seeded_module


def conv_norm(ins: int, outs: int, size: int = 3, **options: int) -> nn.Sequential:
    """A convolution and its batch norm."""
    conv = nn.Conv2d(ins, outs, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outs))


class ResNet(nn.Module):
    """Blocks relu(h + bn(conv(relu(bn(conv(h)))))), one of them strided with a 1 x 1 shortcut."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.stem = conv_norm(1, width)
        self.blocks = nn.ModuleList()
        self.shortcuts = nn.ModuleList()
        for ins, outs, stride in [(width, width, 1), (width, 2 * width, 2)]:
            self.blocks.append(nn.Sequential(conv_norm(ins, outs, stride=stride), nn.ReLU(), conv_norm(outs, outs)))
            self.shortcuts.append(nn.Identity() if stride == 1 else conv_norm(ins, outs, 1, stride=stride))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            h = F.relu(block(h) + shortcut(h))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class PreActivation(nn.Module):
    """Blocks h + conv(relu(bn(conv(relu(bn(h)))))): nothing but the blocks writes to the stream."""

    def __init__(self, width: int = 3, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        conv = lambda: nn.Conv2d(width, width, 3, padding=1, bias=False)  # noqa: E731
        norm = lambda: nn.BatchNorm2d(width)  # noqa: E731
        self.blocks = nn.ModuleList(
            nn.Sequential(norm(), nn.ReLU(), conv(), norm(), nn.ReLU(), conv()) for _ in range(blocks)
        )
        self.norm = norm()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(F.relu(self.norm(h)).mean((2, 3)))


class UNet(nn.Module):
    """Down by max pooling, up by transposed convolutions or interpolation, skip connections joined by cat."""

    def __init__(self, width: int = 2, *, interpolate: bool = False) -> None:
        super().__init__()
        conv = lambda ins, outs: nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU())  # noqa: E731
        self.down1, self.down2, self.bottom = conv(1, width), conv(width, 2 * width), conv(2 * width, 2 * width)
        if interpolate:
            up = lambda ins, outs: nn.Sequential(  # noqa: E731
                nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(ins, outs, 1)
            )
        else:
            up = lambda ins, outs: nn.ConvTranspose2d(ins, outs, 2, stride=2)  # noqa: E731
        self.up2, self.up1 = up(2 * width, width), up(width, width)
        self.join2, self.join1 = conv(3 * width, width), conv(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        h = self.bottom(F.max_pool2d(second, 2))
        h = self.join2(torch.cat([self.up2(h), second], 1))
        return self.head(self.join1(torch.cat([self.up1(h), first], 1)))


class WaveNet(nn.Module):
    """Causal dilated layers tanh * sigmoid with residual and skip outputs."""

    def __init__(self, width: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**k) for k in range(layers))
        self.gates = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**k) for k in range(layers))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, skips = self.stem(x), []
        for k, (filters, gates) in enumerate(zip(self.filters, self.gates, strict=True)):
            padded = F.pad(h, (2**k, 0))
            z = torch.tanh(filters(padded)) * torch.sigmoid(gates(padded))
            skips.append(self.skips[k](z))
            h = h + self.residuals[k](z)
        return self.head(torch.stack(skips).sum(0))


class MobileNet(nn.Module):
    """Depthwise-separable convolutions with batch norm and relu6."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(1, width), nn.ReLU6()]
        for ins, outs, stride in [(width, 2 * width, 1), (2 * width, 2 * width, 2), (2 * width, 2 * width, 1)]:
            layers += [conv_norm(ins, ins, groups=ins, stride=stride), nn.ReLU6(), conv_norm(ins, outs, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels weighed by sigmoids of their own averages."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(F.relu(self.stem(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return self.head(F.relu(h * gate).mean((2, 3)))


class Mixer(nn.Module):
    """MLP-Mixer: mixing along tokens, then along channels, around layer norms."""

    def __init__(self, patch: int = 2, tokens: int = 16, width: int = 6, blocks: int = 1) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        mlp = lambda size, hidden: nn.Sequential(  # noqa: E731
            nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size)
        )
        self.token_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.channel_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.tokens = nn.ModuleList(mlp(tokens, 8) for _ in range(blocks))
        self.channels = nn.ModuleList(mlp(width, 12) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).mT
        layers = zip(self.token_norms, self.tokens, self.channel_norms, self.channels, strict=True)
        for token_norm, tokens, channel_norm, channels in layers:
            h = h + tokens(token_norm(h).mT).mT
            h = h + channels(channel_norm(h))
        return self.head(self.norm(h).mean(1))


class ConvNeXt(nn.Module):
    """Depthwise 7 x 7, layer norm, MLP, layer scale."""

    def __init__(self, width: int = 6, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, stride=2)
        self.spatial = nn.ModuleList(nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(blocks)
        )
        self.scales = nn.ParameterList(0.1 * torch.randn(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for spatial, norm, mlp, scale in zip(self.spatial, self.norms, self.mlps, self.scales, strict=True):
            h = h + (scale * mlp(norm(spatial(h).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.head(self.norm(h.mean((2, 3))))


class DenseNet(nn.Module):
    """Every layer reads all before it."""

    def __init__(self, growth: int = 3, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, growth, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(k * growth), nn.ReLU(), nn.Conv2d(k * growth, growth, 3, padding=1, bias=False)
            )
            for k in range(1, layers + 1)
        )
        width = (layers + 1) * growth
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer in self.layers:
            h = torch.cat([h, layer(h)], 1)
        return self.head(F.avg_pool2d(F.relu(self.norm(h)), 2).mean((2, 3)))


class Inception(nn.Module):
    """Branches of 1 x 1, 3 x 3, 5 x 5 and pooling, side by side."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.one = nn.Conv2d(width, 2, 1)
        self.three = nn.Sequential(nn.Conv2d(width, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1))
        self.five = nn.Sequential(nn.Conv2d(width, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 5, padding=2))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(width, 2, 1))
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        branches = [self.one(h), self.three(h), self.five(h), self.pooled(h)]
        return self.head(F.relu(torch.cat(branches, 1)).mean((2, 3)))


class SuperResolution(nn.Module):
    """Convolutions at low resolution, then a pixel shuffle."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Recurrent(nn.Module):
    """One LSTM or GRU layer over time and a linear head on its last state."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], inputs: int = 3, hidden: int = 5) -> None:
        super().__init__()
        self.layer = kind(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    """Multi-head self-attention with separate projections."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for f in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(h.transpose(-3, -2).flatten(-2))


class PreNormBlock(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)): ViT, GPT, Swin."""

    def __init__(self, width: int, heads: int, hidden: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def attend(self, x: Tensor) -> Tensor:
        return self.attention(x)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attend(self.norm1(h))
        return h + self.mlp(self.norm2(h))


class WindowBlock(PreNormBlock):
    """The same with attention in windows of `window` x `window`, shifted by rolling the image."""

    def __init__(self, width: int, heads: int, hidden: int, window: int, shift: int) -> None:
        super().__init__(width, heads, hidden)
        self.window, self.shift = window, shift

    def attend(self, x: Tensor) -> Tensor:
        examples, rows, cols, width = x.shape
        n = self.window
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(examples, rows // n, n, cols // n, n, width).transpose(2, 3).reshape(-1, n * n, width)
        x = self.attention(x)
        x = x.view(examples, rows // n, cols // n, n, n, width).transpose(2, 3).reshape(examples, rows, cols, width)
        return torch.roll(x, (self.shift, self.shift), (1, 2))


class ViT(nn.Module):
    """Patches, a class token, learnt positions, one encoder block."""

    def __init__(self, patch: int = 4, tokens: int = 4, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.5 * torch.randn(1, tokens + 1, width))
        self.block = PreNormBlock(width, heads, 2 * width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).mT
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position
        return self.head(self.norm(self.block(h))[:, 0])


class Swin(nn.Module):
    """Window attention, then shifted windows, then a patch merge."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.Sequential(*(WindowBlock(width, 2, 2 * width, window=2, shift=s) for s in (0, 1)))
        self.merge = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.embed(x).permute(0, 2, 3, 1))
        h = torch.cat([h[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
        return self.head(self.norm(self.merge(h)).mean((1, 2)))


class Bert(nn.Module):
    """Norms after the additions, as BERT has them; reads embedded tokens, writes one label a sequence."""

    def __init__(self, tokens: int = 6, width: int = 8) -> None:
        super().__init__()
        self.position = nn.Parameter(0.5 * torch.randn(1, tokens, width))
        self.attention = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x + self.position)
        h = self.norms[1](h + self.attention(h))
        h = self.norms[2](h + self.mlp(h))
        return self.head(torch.tanh(self.pooler(h[:, 0])))


class Gpt(nn.Module):
    """Causal attention; reads embedded tokens, writes scores of the next at every position."""

    def __init__(self, tokens: int = 6, width: int = 8) -> None:
        super().__init__()
        self.position = nn.Parameter(0.5 * torch.randn(1, tokens, width))
        self.block = PreNormBlock(width, 2, 2 * width, causal=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(x + self.position)))


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and the shape of one of its inputs."""

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def build(self, seed: int = 0) -> nn.Module:
        """In evaluation mode and float64; no bias, gain or statistic is at the value it starts with."""
        model = seeded_module(self.module, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if "bias" in name:
                tensor.data = 0.1 * noise
            elif tensor.ndim == 1:
                tensor.data = tensor.data * (1 + 0.2 * noise)
        model.train()
        with torch.no_grad():
            for k in range(8):  # running statistics
                model(self.examples(16, seed=100 + k))
        return model.eval()

    def examples(self, number: int, seed: int = 7) -> Tensor:
        """Gaussian inputs."""
        return gaussian(number, *self.shape, seed=seed)


ARCHITECTURES = {
    "ResNet": Architecture(ResNet, (1, 8, 8)),
    "pre-activation ResNet": Architecture(PreActivation, (1, 6, 6)),
    "U-Net, transposed": Architecture(UNet, (1, 8, 8)),
    "U-Net, interpolated": Architecture(lambda: UNet(interpolate=True), (1, 8, 8)),
    "WaveNet": Architecture(WaveNet, (1, 16)),
    "MobileNet": Architecture(MobileNet, (1, 8, 8)),
    "squeeze-and-excite": Architecture(SqueezeExcite, (1, 8, 8)),
    "MLP-Mixer": Architecture(Mixer, (1, 8, 8)),
    "ConvNeXt": Architecture(ConvNeXt, (1, 8, 8)),
    "DenseNet": Architecture(DenseNet, (1, 6, 6)),
    "Inception": Architecture(Inception, (1, 6, 6)),
    "super-resolution": Architecture(SuperResolution, (1, 6, 6)),
    "LSTM": Architecture(lambda: Recurrent(nn.LSTM), (6, 3)),
    "GRU": Architecture(lambda: Recurrent(nn.GRU), (6, 3)),
    "ViT": Architecture(ViT, (1, 8, 8)),
    "Swin": Architecture(Swin, (1, 8, 8)),
    "BERT": Architecture(Bert, (6, 8)),
    "GPT": Architecture(Gpt, (6, 8)),
}
