"""Peak memory of one call in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


def peak_memory(module: str, *names: str) -> float:
    """MiB that `report_peak(*names)` of a benchmark reports, in a fresh process."""
    script = f"import sys; from benchmarks.{module} import report_peak; report_peak(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *names], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


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
