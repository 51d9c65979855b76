"""Calls in processes of their own: after others in one process, whose memory is in pieces, each takes more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable


def peak_memory(module: str, *names: str) -> float:
    """MiB that `report_peak(*names)` of a benchmark reports, in a fresh process."""
    script = f"import sys; from benchmarks.{module} import report_peak; report_peak(*sys.argv[1:])"
    return float(_printed("-c", script, *names).split()[-1])


def rows_of(module: str, part: str) -> list[tuple[str, ...]]:
    """What `python -m benchmarks.module part` prints, cells between bars."""
    return [tuple(line.split(" | ")) for line in _printed("-m", f"benchmarks.{module}", part).splitlines()]


def print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    for row in rows:
        print(*row, sep=" | ", flush=True)


def report(call: Callable[[], object]) -> None:
    """Print how many MiB a call takes at its peak above what the process holds before it."""
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # start the peak anew
    call()
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _printed(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
