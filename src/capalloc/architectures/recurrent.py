"""Recurrent networks over (time, features)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from capalloc.architectures.catalogue import register


class RecurrentClassifier(nn.Module):
    """Recurrent layers and a linear layer that reads the last state."""

    def __init__(self, recurrence: nn.LSTM | nn.GRU, num_classes: int) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.head = nn.Linear(recurrence.hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """One label a sequence."""
        scores: Tensor = self.head(self.recurrence(x)[0][:, -1])
        return scores


@register(
    "lstm", "Long short-term memory; one label a sequence.", "Hochreiter, Schmidhuber, Neural Computation 9, 1997"
)
def lstm(width: int = 128, depth: int = 1, num_classes: int = 10, shape: Sequence[int] = (50, 16)) -> nn.Module:
    """`depth` layers of `width` units over `shape` = (time, features)."""
    return RecurrentClassifier(nn.LSTM(shape[1], width, depth, batch_first=True), num_classes)


@register("gru", "Gated recurrent units; one label a sequence.", "Cho et al., arXiv 1406.1078")
def gru(width: int = 128, depth: int = 1, num_classes: int = 10, shape: Sequence[int] = (50, 16)) -> nn.Module:
    """`depth` layers of `width` units over `shape` = (time, features)."""
    return RecurrentClassifier(nn.GRU(shape[1], width, depth, batch_first=True), num_classes)
