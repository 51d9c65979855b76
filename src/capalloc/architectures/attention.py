"""Transformers over tokens, ids or vectors: causal with norms first (GPT), two-sided with norms last (BERT)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc.architectures.catalogue import register
from capalloc.architectures.layers import chain, named, small_normal

#: Seed of the vectors of token ids.
TABLE_SEED = 0


class SelfAttention(nn.Module):
    """Self-attention of several heads, over (examples, tokens, width)."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width must be a multiple of heads = {heads}, got {width}")
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """Replace every token by weighted means of the values of all."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        mixed: Tensor = self.out(h.transpose(1, 2).flatten(2))
        return mixed


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers with GELU between them."""
    return chain(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class PreNormBlock(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h))."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = SelfAttention(width, heads, causal), mlp(width, hidden)

    def forward(self, h: Tensor) -> Tensor:
        """The stream after both branches."""
        h = h + self.attention(self.norm1(h))
        summed: Tensor = h + self.mlp(self.norm2(h))
        return summed


class PostNormBlock(PreNormBlock):
    """norm(h + attention(h)), then norm(h + mlp(h))."""

    def forward(self, h: Tensor) -> Tensor:
        """The stream, normalised after each branch."""
        h = self.norm1(h + self.attention(h))
        normed: Tensor = self.norm2(h + self.mlp(h))
        return normed


class LearntPositions(nn.Module):
    """Learnt positions, added; in front of a text model to token ids too, by a fixed table of Gaussian vectors.

    The table is no parameter: it stands before the inputs that capacity is of.
    """

    table: Tensor | None

    def __init__(self, tokens: int, width: int, vocabulary: int = 0) -> None:
        super().__init__()
        drawn = None
        if vocabulary:
            generator = torch.Generator().manual_seed(TABLE_SEED)  # its own: weights are those of a model without
            drawn = torch.randn(vocabulary, width, generator=generator, device="cpu")
        self.register_buffer("table", drawn, persistent=False)
        self.position = nn.Parameter(torch.empty(tokens, width))
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add its position to every token, a vector or an id."""
        if self.table is not None and not x.dtype.is_floating_point:
            x = F.embedding(x, self.table)
        return x + self.position


def token_table(model: nn.Module) -> Tensor | None:
    """The vectors of token ids of a text model; None for any other."""
    return next((m.table for m in model.modules() if isinstance(m, LearntPositions) and m.table is not None), None)


class FirstToken(nn.Module):
    """The first token."""

    def forward(self, h: Tensor) -> Tensor:
        """The first entry of the tokens axis."""
        return h[:, 0]


@register(
    "gpt-tiny",
    "Causal transformer over tokens; scores of the next token at every position.",
    "Radford et al., Language models are unsupervised multitask learners, 2019",
)
def gpt_tiny(depth: int = 4, heads: int = 4, vocabulary: int = 1000, shape: Sequence[int] = (64, 128)) -> nn.Module:
    """`shape` is (tokens, width); inputs are token ids (examples, tokens), or vectors in their place."""
    tokens, width = shape
    blocks = nn.Sequential(*(PreNormBlock(width, heads, 4 * width, causal=True) for _ in range(depth)))
    head = chain(nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False))
    return small_normal(named(positions=LearntPositions(tokens, width, vocabulary), blocks=blocks, head=head))


@register(
    "bert-tiny",
    "Two-sided transformer over tokens; one label a sequence.",
    "Devlin et al., arXiv 1810.04805; Turc et al., arXiv 1908.08962",
)
def bert_tiny(
    depth: int = 2, heads: int = 2, num_classes: int = 2, vocabulary: int = 1000, shape: Sequence[int] = (64, 128)
) -> nn.Module:
    """`shape` is (tokens, width); inputs are token ids (examples, tokens), or vectors in their place."""
    tokens, width = shape
    blocks = nn.Sequential(*(PostNormBlock(width, heads, 4 * width) for _ in range(depth)))
    head = chain(FirstToken(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, num_classes))
    start = named(positions=LearntPositions(tokens, width, vocabulary), norm=nn.LayerNorm(width))
    return small_normal(named(start=start, blocks=blocks, head=head))
