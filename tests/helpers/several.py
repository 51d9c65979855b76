"""Models of several inputs and of tokens, and the models of one tensor that they must agree with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Additive(nn.Module):
    """A x + B y + c."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y.flatten(1))


class Gated(nn.Module):
    """sigmoid(A x) * (B y), mixed; x is (3,), y (2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.a(x)) * torch.tanh(self.b(y.flatten(1))))


class Joined(nn.Module):
    """A model of x (3,) and y (2, 2) as one of a vector, written by hand."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :3], z[:, 3:].reshape(-1, 2, 2))


class AfterEmbedding(nn.Module):
    """A network over token vectors; a mask is 0 where there is no token."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.mix, self.head = nn.Linear(2, 2), nn.Linear(10, 3), nn.Linear(3, 2)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.value(h))
        h = h if mask is None else h * mask[..., None].to(h)
        return self.head(torch.tanh(self.mix(h.flatten(1))))


class Text(nn.Module):
    """Token ids to an `AfterEmbedding`, called as transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(7, 2), AfterEmbedding()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.net(self.embed(input_ids), attention_mask)}


class Encoder(nn.Module):
    """An encoder layer with learnt positions over token vectors; a mask is 0 where there is no token."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(5, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        h = h + self.position(torch.arange(h.shape[1]))
        return self.head(self.layer(h, src_key_padding_mask=None if mask is None else mask == 0)[:, 0])


class Transformer(nn.Module):
    """Token ids to an `Encoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(7, 4), Encoder()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.net(self.embed(ids), mask)
