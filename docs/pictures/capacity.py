"""Draw docs/pictures/capacity.png: the demo's two maps and their difference.

python docs/pictures/capacity.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from capalloc.app.demo import run_demo
from capalloc.results.images import limits
from capalloc.results.plots import plot_map

HERE = Path(__file__).parent


def main() -> None:
    """Run the demo and save the picture."""
    result = run_demo(seed=0)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    maps = {"measured": result.measured.capacity, "predicted": result.predicted.capacity}
    high = max(limits(values)[1] for values in maps.values())
    for ax, (name, values) in zip(axes, maps.items(), strict=False):
        plot_map(values, ax, title=name).images[0].set_clim(0, high)
    plot_map(maps["predicted"] - maps["measured"], axes[2], title="predicted − measured", signed=True)
    figure.savefig(HERE / "capacity.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
