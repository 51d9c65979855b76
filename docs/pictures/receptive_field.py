"""Draw docs/pictures/receptive-field.png: one output position of a plain and of a residual stack.

python docs/pictures/receptive_field.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import capalloc

HERE = Path(__file__).parent
DEPTH, CHANNELS, SIZE = 16, 8, 45


class Residual(nn.Module):
    """h + relu(conv(h))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return x + torch.relu(self.conv(x))


def networks() -> dict[str, nn.Module]:
    """The two stacks, of one depth and one theoretical field."""
    stem = lambda: nn.Conv2d(1, CHANNELS, 3, padding=1)  # noqa: E731
    plain = [layer for _ in range(DEPTH) for layer in (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())]
    return {
        "plain": nn.Sequential(stem(), *plain),
        "residual": nn.Sequential(stem(), *(Residual() for _ in range(DEPTH))),
    }


def main() -> None:
    """Walk from the central position of both, and save the picture."""
    torch.manual_seed(0)
    images = torch.randn(8, 1, SIZE, SIZE)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for ax, (name, model) in zip(axes, networks().items(), strict=True):
        field = capalloc.receptive_field(model, images)
        row = field.axes["row"]
        field.plot(ax, title=f"{name}: {row.size} theoretical, standard deviation {row.deviation:.2f}")
    figure.savefig(HERE / "receptive-field.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
