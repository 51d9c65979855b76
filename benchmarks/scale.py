"""Measured capacity beyond the dense solver: time, memory, and how both grow."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.fresh_process import print_rows, rows_of
from benchmarks.table import Table
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import plan_examples
from capalloc._measure.measure import measure
from capalloc._measure.ridge import mean_eigenvalue
from capalloc._measure.task import make_task
from capalloc._runtime.steps import Steps
from capalloc._settings import Stochastic

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
#: Ridge in units of the mean eigenvalue of G, and where rows are fewer than parameters.
RELATIVE_RIDGE, RIDGE_OF_ROWS = 1e-2, 1e-1


def cnn(width: int = 64) -> nn.Module:
    """Four convolutions on 32 x 32 x 3 inputs and a linear head: 93,898 parameters at width 64."""
    return nn.Sequential(
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def resnet18() -> nn.Module:
    """transformers' ResNet-18 with ten classes."""
    import transformers

    from benchmarks.models import Logits
    from benchmarks.models import resnet18 as configuration

    config = configuration()
    config.num_labels = 10
    return Logits(transformers.ResNetForImageClassification(config)).eval()


def images(count: int, size: int) -> Tensor:
    """Smoothed noise of unit variance."""
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    x = nn.functional.avg_pool2d(nn.functional.pad(x, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    return x / x.std()


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """The same weights on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


#: Name, width (0: not ours), pixels a side, examples, settings of the solver.
CASES: list[tuple[str, int, int, int, dict[str, Any]]] = [
    ("CNN", 64, 32, 128, {}),
    ("CNN, rtol 0.005", 64, 32, 128, {"rtol": 0.005, "num_probes": 4}),
    ("ResNet-18", 0, 64, 2, {"num_probes": 4, "rtol": 0.05, "max_seconds": 570}),
]
EXAMPLES, WIDTHS = (16, 32, 64, 128), (48, 64, 96, 128)


def run() -> Table:
    about = (
        "Stochastic solver, plain coordinates, float32 products, "
        f"ridge {RELATIVE_RIDGE:g} of the mean eigenvalue of G, "
        f"{RIDGE_OF_ROWS:g} of it where rows are fewer than parameters, 10 outputs, "
        f"{THREADS} threads, untrained weights, smoothed noise for images. Error: the largest relative standard error "
        "of a patch of 4 x 4 inputs. Memory: peak resident size of a fresh process that does this alone. Growth: CPU "
        f"time of one product with G and four vectors at {EXAMPLES} examples, and of the CNN at widths {WIDTHS} on 16."
    )
    header = ("network", "parameters", "inputs", "examples", "total", "probes", "iterations", "error", "time", "memory")
    rows = [row for name, *_ in CASES for row in rows_of("scale", name)]
    rows += [growth("examples", [(64, n) for n in EXAMPLES]), growth("parameters", [(w, 16) for w in WIDTHS])]
    return Table("Measured capacity at scale", about, header, rows)


def case(name: str, width: int, size: int, examples: int, settings: dict[str, Any]) -> tuple[str, ...]:
    """One row: the map of one network."""
    torch.set_num_threads(THREADS)
    model = built(resnet18 if width == 0 else lambda: cnn(width))
    x = images(examples, size)
    params, rows = sum(p.numel() for p in model.parameters()), examples * 10 * (3 * size**2 + 1)
    relative = RELATIVE_RIDGE if rows >= params else RIDGE_OF_ROWS
    ridge = relative * mean_eigenvalue(model, x, num_probes=4, coordinates="plain")
    start, cpu = time.perf_counter(), time.process_time()
    found = measure(model, x, ridge=ridge, solver=Stochastic(coordinates="plain", **settings))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return (
        name,
        f"{found.attrs['num_params']:,}",
        f"{size} x {size} x 3",
        f"{examples}",
        f"{found.total:.0f} ± {found.attrs['total_standard_error']:.0f}",
        f"{found.attrs['num_probes']}",
        f"{found.attrs['iterations']}, solve error {found.attrs['solve_error']:.2g}",
        f"{found.attrs['relative_standard_error']:.2%}",
        f"{seconds:.0f} s ({cpu:.0f} s of CPU)",
        f"{peak_mib():.0f} MiB",
    )


def growth(what: str, cases: list[tuple[int, int]]) -> tuple[str, ...]:
    """One row: the fitted exponent of a product's time."""
    figures = [product_seconds(width, examples) for width, examples in cases]
    sizes, seconds = zip(
        *[(p if what == "parameters" else n, s) for (_, n), (p, s) in zip(cases, figures, strict=True)], strict=True
    )
    exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    times = ", ".join(f"{s:.2f}" for s in seconds)
    return (f"growth with {what}", *[""] * 7, f"{times} s: exponent {exponent:.2f}", "")


def product_seconds(width: int, examples: int) -> tuple[int, float]:
    """Parameters, and CPU seconds of one product with G and four vectors: the fastest of three."""
    with torch.no_grad():
        task = make_task(built(lambda: cnn(width)), images(examples, 32))
        found, _ = plan_examples(task, Stochastic(num_probes=4))
        sums = ExampleSums(found, Steps(found))
        w = found.normal_params(0, 4)
        seconds = []
        for _ in range(3):
            start = time.process_time()
            sums.gram(w)
            seconds.append(time.process_time() - start)
    return found.num_params, min(seconds)


def peak_mib() -> float:
    """Peak resident memory of this process."""
    with contextlib.suppress(OSError):  # Linux: ru_maxrss would include the parent's peak
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)


if __name__ == "__main__":
    print_rows(case(*one) for one in CASES if one[0] in sys.argv[1:])
