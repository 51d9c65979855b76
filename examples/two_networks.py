"""Where do two networks of about the same size spend their parameters? Draws two_networks.png.

python examples/two_networks.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from torch import nn

import capalloc
from capalloc.results.plots import plot_map


def convolutional() -> nn.Module:
    """Two convolutions without padding: pixels at the border are read less often."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


def dense() -> nn.Module:
    """One hidden layer: every pixel is read alike."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))


def main() -> None:
    """Predict the capacity of both, print it and draw the maps side by side."""
    torch.manual_seed(0)
    images = torch.randn(100, 1, 8, 8)
    allocations = {make.__name__: capalloc.propagate(make(), images) for make in (convolutional, dense)}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, (name, allocation) in zip(axes, allocations.items(), strict=True):
        print(name, allocation, sep="\n")
        plot_map(allocation.capacity, ax, title=f"{name}: {allocation.total:.0f} parameters")
    first, second = allocations.values()
    print("total-variation distance", capalloc.total_variation(first, second))
    figure.savefig("two_networks.png")


if __name__ == "__main__":
    main()
