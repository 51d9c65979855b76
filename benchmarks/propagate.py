"""Propagation at real size: time and memory against one forward and backward pass, and growth with depth and pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import capalloc
from benchmarks.fresh_process import peak_memory, report
from benchmarks.table import Table, median_seconds

REPEATS = 5
BLOCKS = (10, 20, 40, 80)
PIXELS = (112, 160, 224, 320, 448)


class Stack(nn.Module):
    """A stem, residual blocks h + conv(relu(norm(conv(relu(norm(h)))))) of one width, a pooled head."""

    def __init__(self, blocks: int, width: int = 32) -> None:
        super().__init__()

        def half() -> list[nn.Module]:
            return [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]

        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(*half(), *half()) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h.mean((2, 3)))


def resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig()).eval()


def image(pixels: int) -> Tensor:
    return torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


def forward_backward(model: nn.Module, x: Tensor) -> None:
    """One pass of training: gradients of all parameters."""
    returned = model(x)
    model.zero_grad()
    getattr(returned, "logits", returned).sum().backward()


def exported(model: nn.Module, x: Tensor) -> ExportedProgram:
    return torch.export.export(model.eval(), (x,), strict=False).run_decompositions({})


def seconds(call: Callable[[], object]) -> float:
    call()  # the first one sets buffers up
    return median_seconds(call, REPEATS)[0]


def propagation_seconds(model: nn.Module, x: Tensor) -> float:
    program = exported(model, x)
    return seconds(lambda: capalloc.propagate(program, x, solver="markov"))


def exponent(sizes: tuple[float, ...], times: list[float]) -> float:
    """Slope of log time over log size, by least squares."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def report_peak(what: str) -> None:
    model, x = resnet50(), image(224)
    run = forward_backward if what == "pass" else partial(capalloc.propagate, solver="markov")
    report(lambda: run(model, x))


def run() -> Table:
    model, x = resnet50(), image(224)
    one_pass = seconds(lambda: forward_backward(model, x))
    walked = propagation_seconds(model, x)
    whole = seconds(lambda: capalloc.propagate(model, x, solver="markov"))
    memory = {what: peak_memory("propagate", what) for what in ("pass", "propagate")}
    depth = [propagation_seconds(Stack(n), image(32)) for n in BLOCKS]
    pixels = [propagation_seconds(model, image(n)) for n in PIXELS]
    rows = [
        ("ResNet-50, one pass forward and backward", f"{one_pass:.2f} s", ""),
        (
            "ResNet-50, `propagate` on its exported program",
            f"{walked:.2f} s",
            f"{walked / one_pass:.1f} times the pass",
        ),
        ("ResNet-50, `propagate` with the export", f"{whole:.2f} s", f"{whole / one_pass:.1f} times the pass"),
        ("peak memory of the pass", f"{memory['pass']:.0f} MiB", ""),
        (
            "peak memory of `propagate`, export and all",
            f"{memory['propagate']:.0f} MiB",
            f"{memory['propagate'] / memory['pass']:.1f} times the pass",
        ),
        (
            f"residual stacks of {BLOCKS} blocks",
            ", ".join(f"{t:.2f}" for t in depth) + " s",
            f"exponent {exponent(BLOCKS, depth):.2f}",
        ),
        (
            f"ResNet-50 at {PIXELS} pixels a side",
            ", ".join(f"{t:.2f}" for t in pixels) + " s",
            f"exponent {exponent(tuple(n * n for n in PIXELS), pixels):.2f} per pixel",
        ),
    ]
    return Table(
        "Propagation at real size",
        f"transformers' ResNet-50 from its config, 23.5 million parameters, one 224 x 224 image, medians of {REPEATS}. "
        "Memory is what one call needs above the loaded model, each in a process of its own. Depth and pixels on "
        "exported programs.",
        ("what", "figure", "ratio"),
        rows,
    )
