"""Runs with a checkpoint that are killed at any moment, and go on to the answer of one that was not."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import capalloc
from fuzz.outcome import CLEAR, CRASH, HANG, SILENT, UNCLEAR, Case, Verdict

#: Seconds that a run goes on from its checkpoint for, at most.
LONGEST = 200.0
#: Seconds after a start before which it is killed: the run takes about as long.
LATEST = 0.8


def cases(rng: random.Random) -> Iterator[Case]:
    """One run after another, killed up to three times."""
    while True:
        moments = [rng.uniform(0.0, LATEST) for _ in range(rng.randint(1, 3))]
        yield Case(f"killed after {', '.join(f'{m:.2f}' for m in moments)} s", lambda m=moments: _try(m))


def _run(path: Path, pipe: Connection) -> None:
    try:
        pipe.send(_measured(path))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _measured(path: Path) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).double()
    x = torch.randn(60, 8, dtype=torch.float64)
    solver = capalloc.solvers.Stochastic(num_probes=40, rtol=1e-6)
    run = capalloc.Run(checkpoint=path, checkpoint_seconds=0.0)
    found = capalloc.measure(model, x, ridge=1e-3, solver=solver, generator=torch.Generator().manual_seed(0), run=run)
    return found.capacity.values.tolist()


def _try(moments: list[float]) -> Verdict:
    path = Path(tempfile.mkdtemp()) / "run.safetensors"
    for moment in moments:
        process, _ = _start(path)
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    found = _finish(path)
    if isinstance(found, tuple):
        return found
    return (CLEAR, "") if found == unbroken() else (SILENT, "another answer")


def _start(path: Path) -> tuple[object, Connection]:
    """A run in a process of its own, which is forked so that its imports take no time."""
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_run, args=(path, theirs))
    process.start()
    theirs.close()
    return process, ours


def _finish(path: Path) -> list[float] | Verdict:
    process, pipe = _start(path)
    try:
        found = pipe.recv() if pipe.poll(LONGEST) else None
    except EOFError:
        process.join()
        return CRASH, f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    if found is None:
        return HANG, f"no answer within {LONGEST:.0f} s"
    return (UNCLEAR, found[-200:]) if isinstance(found, str) else found


@cache
def unbroken() -> list[float]:
    """The answer of a run in this process, whose imports are then those of all that it forks: they take most of it."""
    return _measured(Path(tempfile.mkdtemp()) / "run.safetensors")
