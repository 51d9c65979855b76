"""Dense Gram matrices of the output Jacobian beside hooks by hand, torch.func and four packages."""

from __future__ import annotations

import statistics
import time
import warnings

import torch
from torch import Tensor, nn

from benchmarks.fresh_process import peak_memory, report
from benchmarks.gram_contenders import CONTENDERS, OURS, installed
from benchmarks.table import Table
from capalloc._model.problem import seeded

EXAMPLES = 64
REPEATS = 7
#: Nobody is run again after this many seconds in all.
PATIENCE = 20.0
SIDES = {"outputs": "J J'", "params": "J' J"}
#: Largest difference to our float64 answer over its largest entry, up to which an answer counts as the same.
SAME = 1e-5


def problem() -> tuple[nn.Module, Tensor]:
    """A convolutional classifier of 28 x 28 images with 9718 parameters, and random images."""
    with seeded(0, torch.device("cpu")):
        net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 36, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(324, 10)),
        )
        return net.eval(), torch.randn(EXAMPLES, 1, 28, 28)


def run() -> Table:
    """Times in one process on one thread, contenders in turn; peak memory in a fresh process each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for side in SIDES for row in compare(side)]
    finally:
        torch.set_num_threads(threads)
    params = sum(p.numel() for p in problem()[0].parameters())
    return Table(
        "Gram matrices of the output Jacobian",
        f"Three convolutions and a linear layer, {params} parameters, {EXAMPLES} random images of 28 x 28, 10 outputs, "
        f"float32, one thread. Medians of {REPEATS} rounds in which all take turns, fewer for the slow. Error: largest "
        "difference to our float64 answer over its largest entry. Memory: what one call needs at its peak above the "
        "loaded model after a call on two images, the result included, in a process of its own.",
        ("matrix", "by", "time", "over ours", "over hooks", "peak memory", "error"),
        rows,
    )


def compare(side: str) -> list[tuple[str, ...]]:
    """All contenders for one of the two matrices."""
    net, x = problem()
    reference = CONTENDERS[OURS][0](net.double(), x.double(), side)
    here = [name for name in CONTENDERS if installed(name)]
    seconds: dict[str, list[float]] = {name: [] for name in here}
    errors = {}
    for turn in range(REPEATS + 1):
        for name in here:
            if sum(seconds[name]) > PATIENCE:
                continue
            net, x = problem()
            start = time.perf_counter()
            gram = CONTENDERS[name][0](net, x, side).detach()
            if turn:  # the first one sets buffers up
                seconds[name].append(time.perf_counter() - start)
            else:
                errors[name] = relative_error(gram, reference)
            del gram
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name in CONTENDERS:
        if name not in here:
            rows.append((SIDES[side], name, "not installed", "", "", "", ""))
            continue
        assert errors[name] < SAME, f"{name} gives another {SIDES[side]}: relative error {errors[name]:.1e}"
        t = medians[name]
        ratios = (f"{t / medians[OURS]:.2f}", f"{t / medians['hooks by hand']:.2f}")
        rows.append(
            (
                SIDES[side],
                name,
                f"{t:.3f} s",
                *ratios,
                f"{peak_memory('gram', name, side):.0f} MiB",
                f"{errors[name]:.0e}",
            )
        )
    return rows


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference over largest entry, a block of rows at a time."""
    difference = max(float((p.double() - q).abs().max()) for p, q in zip(a.split(512), b.split(512), strict=True))
    return difference / float(b.abs().max())


def report_peak(name: str, side: str) -> None:
    """Above the loaded model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net, x = problem()
    CONTENDERS[name][0](net, x[:2], side)  # loads what is loaded once
    report(lambda: CONTENDERS[name][0](net, x, side))
