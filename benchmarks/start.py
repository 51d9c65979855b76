"""What a start costs: processor time of fresh processes."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from benchmarks.table import Table

REPEATS = 7
FIRST_USE = (
    "import torch, capalloc; "
    "capalloc.measure(torch.nn.Linear(4, 2, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64))"
)
STARTS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, capalloc": ["-c", "import torch, capalloc"],
    "capalloc --help": ["-m", "capalloc.app.cli", "--help"],
    "first use of measure": ["-c", FIRST_USE],
}


def run() -> Table:
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(REPEATS):  # interleaved, so that a busy moment falls on all alike
        for name, arguments in STARTS.items():
            taken[name].append(processor_seconds(arguments))
    return Table(
        "Start",
        f"Seconds of processor time of a fresh process, median of {REPEATS}.",
        ("command", "seconds"),
        [(f"`{name}`", f"{statistics.median(seconds):.2f}") for name, seconds in taken.items()],
    )


def processor_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
