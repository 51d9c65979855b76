"""Draw docs/pictures/gallery/*.png and the table of docs/gallery.md: architectures and where their capacity is.

python docs/pictures/gallery.py [NAME ...]
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from PIL import Image
from torch import nn

import capalloc
from capalloc import architectures
from capalloc.results.images import smallest_region
from capalloc.results.plots import plot_field, plot_map

HERE = Path(__file__).parent
PAGE = HERE.parent / "gallery.md"
TABLE = re.compile(r"(<!-- gallery -->\n).*?(<!-- end gallery -->)", re.DOTALL)
HEAD = "| architecture | input | parameters | capacity | constant | map within | 68 % of the field | seconds |"
EXAMPLES = 16


@dataclass(frozen=True)
class Exhibit:
    """An architecture at a size that takes seconds."""

    shape: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    end: str | None = None  # the receptive field is of what this part reads; None: of the output
    position: tuple[int | None, ...] | None = None
    along: str | None = None  # the axis of a sequence: maps are summed over the other
    cell: int = 1  # the map, noisy by pixel, and the field, ragged by strides, are averaged over squares of this size
    by_name: bool = False  # layers by the first part of their names


EXHIBITS = {
    "lenet": Exhibit((1, 28, 28), end="flatten"),
    "vgg11": Exhibit((3, 96, 96), {"width": 16, "hidden": 64, "num_classes": 10}, "flatten", cell=4),
    "resnet18": Exhibit((3, 96, 96), {"width": 16, "num_classes": 10}, "head", cell=4),
    "preact-resnet": Exhibit((3, 48, 48), end="head", cell=2),
    "densenet121": Exhibit((3, 96, 96), {"growth": 8, "depths": (3, 6, 6, 3), "num_classes": 10}, "head", cell=4),
    "mobilenet-v2": Exhibit((3, 96, 96), {"width": 0.25, "last": 80, "num_classes": 10}, "head", cell=4),
    "convnext-tiny": Exhibit((3, 96, 96), {"width": 16, "depths": (1, 1, 3, 1), "num_classes": 10}, "head", cell=4),
    "unet": Exhibit((1, 64, 64), {"width": 8, "depth": 3}),
    "vit-tiny": Exhibit(
        (3, 64, 64), {"width": 48, "depth": 4, "patch": 8, "num_classes": 10}, "head", (28, None), cell=8
    ),
    "mixer": Exhibit(
        (3, 64, 64),
        {"width": 48, "depth": 3, "hidden": (32, 96), "patch": 8, "num_classes": 10},
        "head",
        (27, None),
        cell=8,
    ),
    "wavenet": Exhibit(
        (1, 512), {"width": 16, "layers": 6, "num_classes": 16}, position=(400,), along="column", by_name=True
    ),
    "lstm": Exhibit((50, 8), {"width": 16}, along="row"),
    "gpt-tiny": Exhibit((32, 16), {"depth": 2, "heads": 2, "vocabulary": 50}, "head", (20, None), along="row"),
}


def main(names: list[str]) -> None:
    """Draw the exhibits named, or all and the table."""
    rows = []
    for name in names or EXHIBITS:
        rows.append(row(name, EXHIBITS[name]))
        print(rows[-1], flush=True)
    if not names:
        table = "\n".join([HEAD, "|" + " --- |" * 8, *rows])
        PAGE.write_text(TABLE.sub(rf"\1\n{table}\n\n\2", PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def row(name: str, exhibit: Exhibit) -> str:
    """Draw one exhibit; its line of the table."""
    model = architectures.make(name, shape=exhibit.shape, **exhibit.arguments)
    x = torch.randn(EXAMPLES, *exhibit.shape, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    allocation = capalloc.propagate(model, x)
    seen = capalloc.receptive_field(trunk(model, exhibit.end), x, output_position=exhibit.position)
    seconds = time.perf_counter() - start
    draw(name, exhibit, model, allocation, seen)
    shape = " × ".join(map(str, exhibit.shape))
    flat = over(seen.map, exhibit)
    held = f"{smallest_region(flat.to_numpy(), 0.68).mean():.1%}"
    attrs = allocation.attrs
    within = f"{attrs['missing'] + attrs['noise']:.2f}" if "missing" in attrs else "exact"
    constant = f"{allocation.bias / allocation.total:.1%}"
    numbers = f"{attrs['num_params']} | {allocation.total:.0f} | {constant} | {within}"
    return f"| {name} | {shape} | {numbers} | {held} | {seconds:.1f} |"


def trunk(model: nn.Module, end: str | None) -> nn.Module:
    """The network up to one of its parts."""
    parts = dict(model.named_children())
    return nn.Sequential(*list(parts.values())[: list(parts).index(end)]) if end else model


def over(values: xr.DataArray, exhibit: Exhibit) -> xr.DataArray:
    """A map over the axis of a sequence, or over rows and columns."""
    keep = [exhibit.along] if exhibit.along else ["row", "column"]
    return values.sum([dim for dim in values.dims if dim not in keep])


def draw(
    name: str,
    exhibit: Exhibit,
    model: nn.Module,
    allocation: capalloc.Allocation,
    seen: capalloc.results.ReceptiveField,
) -> None:
    """The three panels."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained", width_ratios=(1, 1, 1.1))
    plot_map(averaged(over(allocation.capacity, exhibit), exhibit.cell), axes[0], "capacity of every input")
    flat = over(seen.map, exhibit)
    box = {str(dim): (seen.axes[str(dim)].start, seen.axes[str(dim)].stop) for dim in flat.dims}
    plot_field(averaged(flat, exhibit.cell), box, "path energy", axes[1], "where one output position looks")
    if legend := axes[1].get_legend():
        legend.set_loc("lower left")
    shares(axes[2], model, allocation, exhibit.by_name)
    target = HERE / "gallery" / f"{name}.png"
    figure.savefig(target, dpi=75, metadata={"Software": None})
    plt.close(figure)
    Image.open(target).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def averaged(flat: xr.DataArray, cell: int) -> xr.DataArray:
    """Every place with the mean of its square."""
    means = flat.coarsen(dict.fromkeys(flat.dims, cell)).mean().to_numpy()
    for axis in range(flat.ndim):
        means = means.repeat(cell, axis)
    return flat.copy(data=means)


def shares(ax: Axes, model: nn.Module, allocation: capalloc.Allocation, by_name: bool) -> None:
    """Capacity and parameters of every layer, each as a share of its total."""
    key = (lambda name: name.split(".")[0]) if by_name else layer
    sizes = pd.Series({name: p.numel() for name, p in model.named_parameters()}).groupby(key, sort=False).sum()
    capacity = allocation.by_parameter.to_series().groupby(key, sort=False).sum()[sizes.index]
    places = range(len(sizes))
    ax.bar(places, capacity / allocation.total, color="#440154", label="capacity")
    edges = [k - 0.5 for k in range(len(sizes) + 1)]
    ax.stairs(sizes / sizes.sum(), edges, color="C1", linewidth=1.5, label="parameters")
    ax.set_xticks(places, sizes.index, rotation=90 if len("".join(sizes.index)) > 36 else 0, fontsize="small")
    ax.set_title("layers' shares", fontsize="medium")
    ax.legend(fontsize="small")


def layer(parameter: str) -> str:
    """The part of the network that a parameter is in: a layer, or a block of a stage."""
    first, second, *_ = parameter.split(".")
    return f"{first}.{second}" if second.isdigit() and first not in ("stem", "head") else first


if __name__ == "__main__":
    torch.set_num_threads(1)  # the same sums in the same order
    main(sys.argv[1:])
