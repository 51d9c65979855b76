"""Runs with a checkpoint that are killed at any moment, and go on to the answer of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fuzz.outcome import CLEAR, CRASH, SILENT, UNCLEAR, Case, Verdict

RUN = """
import json, sys, torch
from capalloc import Run, measure
from capalloc.solvers import Stochastic
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).double()
x = torch.randn(60, 8, dtype=torch.float64)
print("begun", flush=True)
found = measure(model, x, ridge=1e-3, solver=Stochastic(num_probes=40, rtol=1e-6),
                generator=torch.Generator().manual_seed(0),
                run=Run(checkpoint=sys.argv[1], checkpoint_seconds=0.0, progress=False))
print(json.dumps(found.capacity.values.tolist()))
"""
LONGEST = 300.0


def cases(rng: random.Random) -> Iterator[Case]:
    """One run after another, killed up to three times."""
    while True:
        moments = [rng.uniform(0.0, 1.5) for _ in range(rng.randint(1, 3))]
        yield Case(f"killed after {', '.join(f'{m:.2f}' for m in moments)} s", lambda m=moments: _try(m))


def _start(path: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", RUN, str(path)], text=True, **pipes)


@cache
def _unbroken() -> list[float]:
    out, _ = _start(Path(tempfile.mkdtemp()) / "run.safetensors").communicate(timeout=LONGEST)
    return json.loads(out.splitlines()[-1])


def _try(moments: list[float]) -> Verdict:
    path = Path(tempfile.mkdtemp()) / "run.safetensors"
    for moment in moments:
        process = _start(path)
        process.stdout.readline()  # its imports are over
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = _start(path)
    out, said = process.communicate(timeout=LONGEST)
    if process.returncode < 0:
        return CRASH, f"signal {-process.returncode}"
    if process.returncode:
        return UNCLEAR, said[-200:]
    return (CLEAR, "") if json.loads(out.splitlines()[-1]) == _unbroken() else (SILENT, "another answer")
