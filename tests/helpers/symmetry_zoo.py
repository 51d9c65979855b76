"""Networks of a few hundred parameters, one for each way in which channels are tied, shared or moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import NormedResidual, Residual1d, gaussian, seeded_module

Build = Callable[[], tuple[nn.Module, Tensor]]
NETWORKS: dict[str, Build] = {}
#: Networks with gates or statistics that depend on the inputs; the others are tested with every gate open.
NEED_DATA: set[str] = set()


class Net(nn.Module):
    """Named layers and a function of (layers, input)."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer if isinstance(layer, nn.Module) else nn.Parameter(layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def network(*shape: int, data: bool = False) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a network that reads inputs of this shape; every parameter is drawn at random."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def make() -> tuple[nn.Module, Tensor]:
            model = seeded_module(build)
            for k, p in enumerate(model.parameters()):
                p.data = gaussian(*p.shape, seed=100 + k) if p.ndim else p.data + 0.5
            return model, gaussian(6 if data else 1, *shape)

        if data:
            NEED_DATA.add(build.__name__)
        NETWORKS[build.__name__] = make
        return build

    return register


def conv(i: int, o: int, k: int = 3, **options: object) -> nn.Conv1d:
    return nn.Conv1d(i, o, k, padding=k // 2, **options)  # type: ignore[arg-type]


@network(5)
def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


@network(2, 8, 8)
def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 2),
    )  # fmt: skip


@network(1, 9)
def residual() -> nn.Module:
    return Residual1d(3, 2)


@network(1, 12)
def residual_with_batch_norm() -> nn.Module:
    return NormedResidual()


@network(2, 8)
def pre_activation() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.stem(x)
        h = h + n.b(F.relu(n.norm_b(n.a(F.relu(n.norm_a(h))))))
        return n.head(F.relu(n.norm(h)).mean(2))

    return Net(
        run, stem=conv(2, 4, bias=False), norm_a=nn.BatchNorm1d(4), a=conv(4, 3, bias=False),
        norm_b=nn.BatchNorm1d(3), b=conv(3, 4, bias=False), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2),
    )  # fmt: skip


@network(2, 8)
def zero_padded_shortcut() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(n.stem(x))
        h = F.pad(h[:, :, ::2], (0, 0, 1, 1)) + n.b(F.relu(n.a(h)))
        return n.head(F.relu(h).mean(2))

    return Net(
        run, stem=conv(2, 2, bias=False), a=conv(2, 3, bias=False), b=nn.Conv1d(3, 4, 3, 2, 1, bias=False),
        head=nn.Linear(4, 2),
    )  # fmt: skip


@network(2, 10)
def depthwise_separable() -> nn.Module:
    return nn.Sequential(
        conv(2, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), conv(4, 4, groups=4, bias=False), nn.BatchNorm1d(4),
        nn.ReLU(), conv(4, 6, 1), nn.ReLU(), conv(6, 12, 3, groups=6), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip


@network(2, 8)
def grouped() -> nn.Module:
    def shuffled(n: Net, x: Tensor) -> Tensor:
        h = F.relu(n.b(F.relu(n.a(x))))
        h = h.reshape(-1, 2, 3, 8).transpose(1, 2).reshape(-1, 6, 8)
        return n.c(h).mean(2)

    return Net(shuffled, a=conv(2, 4), b=conv(4, 6, groups=2), c=conv(6, 3, groups=3))


@network(2, 8)
def inception() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(n.stem(x))
        branches = [n.a(h), n.c(F.relu(n.b(h))), n.d(F.max_pool1d(h, 3, 1, 1)), h]
        return n.head(F.relu(torch.cat(branches, 1)).mean(2))

    return Net(
        run, stem=conv(2, 3), a=conv(3, 2, 1), b=conv(3, 2, 1), c=conv(2, 3), d=conv(3, 2, 1), head=nn.Linear(10, 2)
    )


@network(2, 8)
def densely_connected() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.stem(x)
        h = torch.cat([h, n.a(F.relu(n.norm_a(h)))], 1)
        h = torch.cat([h, n.b(F.relu(n.norm_b(h)))], 1)
        return n.head(F.relu(F.avg_pool1d(n.down(h), 2)).mean(2))

    return Net(
        run, stem=conv(2, 3), norm_a=nn.BatchNorm1d(3), a=conv(3, 2, bias=False), norm_b=nn.BatchNorm1d(5),
        b=conv(5, 2, bias=False), down=conv(7, 3, 1, bias=False), head=nn.Linear(3, 2),
    )  # fmt: skip


@network(1, 16)
def u_net() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        a = F.relu(n.a(x))
        b = F.relu(n.b(F.max_pool1d(a, 2)))
        up = n.up(F.relu(n.bottom(F.max_pool1d(b, 2))))
        c = F.relu(n.c(torch.cat([b, up], 1)))
        d = F.interpolate(c, scale_factor=2, mode="nearest")
        return n.head(torch.cat([a, d], 1)).mean(2)

    return Net(
        run, a=conv(1, 2), b=conv(2, 3), bottom=conv(3, 4), up=nn.ConvTranspose1d(4, 3, 2, 2), c=conv(6, 3),
        head=conv(5, 2),
    )  # fmt: skip


@network(1, 8)
def transposed_without_bias() -> nn.Module:
    return nn.Sequential(
        conv(1, 3), nn.ReLU(), nn.ConvTranspose1d(3, 2, 4, 2, 1, bias=False), nn.ReLU(), conv(2, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 1),
    )  # fmt: skip


@network(4, 6, data=True)
def squeeze_and_excite() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.stem(x)
        s = torch.sigmoid(n.up(F.relu(n.down(h.mean(2)))))
        return n.head(F.relu(n.out(h * s[:, :, None])).mean(2))

    return Net(run, stem=conv(4, 3), down=nn.Linear(3, 2), up=nn.Linear(2, 3), out=conv(3, 4), head=nn.Linear(4, 2))


@network(1, 12, data=True)
def gated_dilated() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h, skips = n.stem(x), []
        for k, (main, gate, out, skip) in enumerate(zip(n.main, n.gate, n.out, n.skip, strict=True)):
            padded = F.pad(h, (2**k, 0))
            z = torch.tanh(main(padded)) * torch.sigmoid(gate(padded))
            h = h + out(z)
            skips.append(skip(z))
        return n.head(F.relu(sum(skips)))[:, :, -1]

    dilated = lambda: nn.ModuleList(nn.Conv1d(3, 3, 2, dilation=2**k) for k in range(2))  # noqa: E731
    point = lambda: nn.ModuleList(nn.Conv1d(3, 3, 1) for _ in range(2))  # noqa: E731
    return Net(
        run, stem=nn.Conv1d(1, 3, 1), main=dilated(), gate=dilated(), out=point(), skip=point(),
        head=nn.Conv1d(3, 2, 1),
    )  # fmt: skip


def mixer(bias: bool, norm: bool) -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.embed(x)
        for k in range(2):
            h = h + n.t2[k](F.gelu(n.t1[k](n.n1[k](h).mT))).mT
            h = h + n.c2[k](F.gelu(n.c1[k](n.n2[k](h))))
        return n.head(h.mean(1))

    line = lambda i, o: nn.ModuleList(nn.Linear(i, o, bias=bias) for _ in range(2))  # noqa: E731
    norms = lambda: nn.ModuleList(nn.LayerNorm(3) if norm else nn.Identity() for _ in range(2))  # noqa: E731
    return Net(
        run, embed=nn.Linear(2, 3, bias=bias), t1=line(4, 5), t2=line(5, 4), c1=line(3, 4), c2=line(4, 3),
        n1=norms(), n2=norms(), head=nn.Linear(3, 2),
    )  # fmt: skip


@network(4, 2)
def mixer_without_biases() -> nn.Module:
    return mixer(bias=False, norm=False)


@network(4, 2)
def mixer_with_biases() -> nn.Module:
    return mixer(bias=True, norm=False)


@network(4, 2, data=True)
def mixer_with_layer_norm() -> nn.Module:
    return mixer(bias=True, norm=True)


def attend(n: nn.Module, h: Tensor, heads: int, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Multi-head attention by explicit products, heads by views."""
    b, t, c = h.shape
    q, k, v = (x.reshape(b, t, heads, c // heads).transpose(1, 2) for x in n.qkv(h).chunk(3, -1))
    a = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    return n.proj(a.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, causal: bool = False, post: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads, self.causal, self.post = heads, causal, post

    def forward(self, h: Tensor) -> Tensor:
        mix = lambda x: attend(self, x, self.heads, causal=self.causal)  # noqa: E731
        feed = lambda x: self.down(F.gelu(self.up(x)))  # noqa: E731
        if self.post:
            h = self.norm1(h + mix(h))
            return self.norm2(h + feed(h))
        h = h + mix(self.norm1(h))
        return h + feed(self.norm2(h))


@network(2, 4, 4, data=True)
def vision_transformer() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.patch(x).flatten(2).mT
        h = torch.cat([n.token.expand(len(x), 1, 4), h], 1) + n.position
        return n.head(n.norm(n.blocks(h))[:, 0])

    return Net(
        run, patch=nn.Conv2d(2, 4, 2, 2), token=torch.zeros(1, 1, 4), position=torch.zeros(1, 5, 4),
        blocks=nn.Sequential(Block(4, 5, 2), Block(4, 5, 2)), norm=nn.LayerNorm(4), head=nn.Linear(4, 2),
    )  # fmt: skip


@network(4, 3, data=True)
def bert_like() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.norm(n.embed(x) + n.position)
        return n.head(torch.tanh(n.pool(n.blocks(h)[:, 0])))

    return Net(
        run, embed=nn.Linear(3, 4), position=torch.zeros(4, 4), norm=nn.LayerNorm(4),
        blocks=nn.Sequential(Block(4, 5, 2, post=True)), pool=nn.Linear(4, 4), head=nn.Linear(4, 2),
    )  # fmt: skip


@network(4, 3, data=True)
def gpt_like() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        return n.head(n.norm(n.blocks(n.embed(x) + n.position)))

    return Net(
        run, embed=nn.Linear(3, 4, bias=False), position=torch.zeros(4, 4),
        blocks=nn.Sequential(Block(4, 5, 2, causal=True)), norm=nn.LayerNorm(4), head=nn.Linear(4, 3, bias=False),
    )  # fmt: skip


@network(2, 4, 4, data=True)
def shifted_windows() -> nn.Module:
    def windows(h: Tensor) -> Tensor:
        return h.reshape(-1, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)

    def back(h: Tensor) -> Tensor:
        return h.reshape(-1, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 4)

    def run(n: Net, x: Tensor) -> Tensor:
        h = n.embed(x.permute(0, 2, 3, 1))
        for k, block in enumerate(n.blocks):
            shifted = torch.roll(n.norm[k](h), (-k, -k), (1, 2))
            h = h + torch.roll(back(attend(block, windows(shifted), 2)), (k, k), (1, 2))
            h = h + block.down(F.gelu(block.up(block.norm2(h))))
        h = torch.cat([h[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
        return n.head(n.merge(n.last(h)).mean((1, 2)))

    blocks = nn.ModuleList(Block(4, 5, 2) for _ in range(2))
    for block in blocks:
        block.norm1 = nn.Identity()
    return Net(
        run, embed=nn.Linear(2, 4), blocks=blocks, norm=nn.ModuleList(nn.LayerNorm(4) for _ in range(2)),
        last=nn.LayerNorm(16), merge=nn.Linear(16, 3, bias=False), head=nn.Linear(3, 2),
    )  # fmt: skip


@network(2, 6, data=True)
def conv_next() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.stem(x)
        for k in range(2):
            z = n.norm[k](n.depth[k](h).mT)
            z = n.down[k](F.gelu(n.up[k](z))) * n.scale[k]
            h = h + z.mT
        return n.head(n.last(h.mean(2)))

    return Net(
        run, stem=conv(2, 4), depth=nn.ModuleList(conv(4, 4, groups=4) for _ in range(2)),
        norm=nn.ModuleList(nn.LayerNorm(4) for _ in range(2)), up=nn.ModuleList(nn.Linear(4, 6) for _ in range(2)),
        down=nn.ModuleList(nn.Linear(6, 4) for _ in range(2)), scale=torch.zeros(2, 4), last=nn.LayerNorm(4),
        head=nn.Linear(4, 2),
    )  # fmt: skip


@network(4, 3, data=True)
def lstm() -> nn.Module:
    return Net(lambda n, x: n.head(n.rnn(x)[0][:, -1]), rnn=nn.LSTM(3, 4, batch_first=True), head=nn.Linear(4, 2))


@network(4, 3, data=True)
def gru() -> nn.Module:
    return Net(lambda n, x: n.head(n.rnn(x)[0][:, -1]), rnn=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 2))


def recurrent(bias: bool) -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = torch.tanh(n.read(x[:, 0]))
        for t in range(1, 4):
            h = torch.tanh(n.read(x[:, t]) + n.step(h))
        return n.head(h)

    return Net(run, read=nn.Linear(3, 4, bias=bias), step=nn.Linear(4, 4, bias=False), head=nn.Linear(4, 2))


@network(4, 3)
def recurrent_cell() -> nn.Module:
    return recurrent(True)


@network(4, 3)
def recurrent_cell_without_bias() -> nn.Module:
    return recurrent(False)


@network(3)
def iterated() -> nn.Module:
    """One square layer over and over: its rescalings must map into themselves."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = n.first(x)
        for _ in range(4):
            h = F.relu(n.inner(h))
        return n.last(h)

    line = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
    return Net(run, first=line(3, 4), inner=line(4, 4), last=line(4, 2))


@network(5)
def tied_autoencoder() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, n.w))
        h = n.middle(h)
        return F.linear(F.relu(h), n.w.t())

    return Net(run, w=torch.zeros(4, 5), middle=nn.Linear(4, 4))


@network(4)
def rezero() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = n.stem(x)
        for k in range(2):
            h = h + n.alpha[k] * n.out[k](F.relu(n.inner[k](h)))
        return n.head(h)

    line = lambda i, o: nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(2))  # noqa: E731
    return Net(run, stem=nn.Linear(4, 3), inner=line(3, 5), out=line(5, 3), alpha=torch.zeros(2), head=nn.Linear(3, 2))


@network(2, 6)
def scalar_on_all_channels() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        return n.head(F.relu(n.skip * n.stem(x) + n.branch * n.other(x)).mean(2))

    return Net(
        run,
        stem=conv(2, 3, bias=False),
        other=conv(2, 3),
        skip=torch.ones(()),
        branch=torch.ones(1),
        head=nn.Linear(3, 2),
    )


@network(5)
def two_parameters_in_a_product() -> nn.Module:
    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, n.gain[:, None] * n.direction))
        return F.linear(h * (n.a * n.b), n.out)

    return Net(
        run, gain=torch.zeros(4), direction=torch.zeros(4, 5), a=torch.zeros(4), b=torch.zeros(4), out=torch.zeros(2, 4)
    )


@network(4, 6, data=True)
def group_norm() -> nn.Module:
    return nn.Sequential(
        conv(4, 6), nn.GroupNorm(2, 6), nn.GELU(), conv(6, 4, bias=False), nn.GroupNorm(1, 4), nn.GELU(), nn.Flatten(),
        nn.Linear(24, 2),
    )  # fmt: skip


@network(4, 6, data=True)
def instance_norm() -> nn.Module:
    return nn.Sequential(
        conv(4, 3), nn.InstanceNorm1d(3, affine=True), nn.GELU(), conv(3, 4), nn.GELU(), nn.Flatten(), nn.Linear(24, 2)
    )


@network(5, data=True)
def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))


@network(5, data=True)
def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))


@network(3, 4, data=True)
def multi_head_attention() -> nn.Module:
    return Net(
        lambda n, x: n.head(n.attention(x, x, x, need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2),
    )  # fmt: skip


@network(2, 6)
def moved_gamma() -> nn.Module:
    """The scale of a batch norm, reached through slices, flips and a reshape."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = F.batch_norm(n.stem(x), n.mean.value, n.var.value, n.gamma.reshape(2, 4)[1].flip(0), n.beta[4:])
        return n.head(F.relu(h).mean(2))

    return Net(
        run, stem=conv(2, 4, bias=False), gamma=torch.zeros(8), beta=torch.zeros(8), head=nn.Linear(4, 2),
        mean=_buffer(torch.zeros(4)), var=_buffer(torch.ones(4)),
    )  # fmt: skip


@network(8)
def position_shared_dense() -> nn.Module:
    """A dense layer over tokens whose channels come from different layers."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = torch.stack([n.a(x), n.b(x), n.b(x)], 1)
        return n.last(n.inner(F.relu(h)).flatten(1).relu())

    line = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
    return Net(run, a=line(8, 3), b=line(8, 3), inner=line(3, 4), last=line(12, 2))


@network(2, 4)
def sub_pixel() -> nn.Module:
    """Every other position after the transposed convolution has channels of its own, down to the dense layer."""
    return nn.Sequential(
        conv(2, 3), nn.ReLU(), nn.ConvTranspose1d(3, 2, 2, 2, bias=False), nn.ReLU(), conv(2, 3, 1, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(24, 1),
    )  # fmt: skip


@network(2, 4, 4)
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 1),
    )  # fmt: skip


@network(2, 6)
def convolution_over_joined_positions() -> nn.Module:
    """One convolution reads the channels of two layers, one after the other in time."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(torch.cat([n.a(x), n.b(x)], 2))
        return n.last(F.relu(n.inner(h)).flatten(1))

    return Net(
        run, a=conv(2, 3, bias=False), b=conv(2, 3, bias=False), inner=nn.Conv1d(3, 4, 3, bias=False),
        last=nn.Linear(40, 1),
    )  # fmt: skip


@network(6)
def recycled_slices() -> nn.Module:
    """One parameter tensor serves as weights of several layers, by slices, a flip and a repetition."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, n.w[:4]))
        h = F.relu(F.linear(h, n.w[2:, :4].flip(0)))
        return F.linear(h * n.w[0, :2].repeat(2), n.w[:2, 2:])

    return Net(run, w=torch.zeros(6, 6))


@network(4)
def circulant() -> nn.Module:
    """Every entry of a parameter stands in several places of one weight: its channels rescale together alone."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(n.first(x)) @ torch.stack([n.w.roll(k) for k in range(4)])
        return n.last(F.relu(h))

    return Net(run, first=nn.Linear(4, 4), w=torch.zeros(4), last=nn.Linear(4, 2))


@network(6)
def blocks_alike() -> nn.Module:
    """A small matrix repeated as the blocks of a larger one, and of the kernels of a convolution."""

    def run(n: Net, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, n.w.repeat(2, 2)))[:, None]
        return n.last(F.relu(F.conv1d(h, n.k.expand(3, 1, 3))).flatten(1))

    return Net(run, w=torch.zeros(2, 3), k=torch.zeros(3), last=nn.Linear(6, 2))


class _Buffer(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)


def _buffer(value: Tensor) -> nn.Module:
    return _Buffer(value)
