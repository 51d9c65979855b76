"""What a case can come to, and a process that runs cases so that hangs and crashes are seen."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path

import capalloc

CLEAR, UNCLEAR, SILENT, HANG, CRASH = OUTCOMES = ("clear", "unclear", "silent", "hang", "crash")
#: Seconds without an answer that count as a hang; a case that starts processes has several of them.
PATIENCE, PATIENCE_WITH_PROCESSES = 60.0, 240.0
PACKAGE = str(Path(capalloc.__file__).parent)
#: Errors that say what the user can do; any other is a leak.
SPOKEN = (ValueError, TypeError, OSError, ModuleNotFoundError, capalloc.RankError, MemoryError)

Verdict = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One thing to try: it returns its outcome and a line on it."""

    name: str
    run: Callable[[], Verdict]


@dataclass
class Tally:
    """Counts of outcomes, and the cases that did not end well."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    bad: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, name: str, outcome: str, detail: str) -> None:
        """Count a case."""
        self.counts[outcome] += 1
        if outcome != CLEAR:
            self.bad.append((outcome, name, detail))


def judge(error: BaseException, *words: str) -> Verdict:
    """An error is clear if this package raised it, as one of its own kinds, and it names what is wrong.

    So is one of a function that the caller gave, if a note says which.
    """
    frames = traceback.extract_tb(error.__traceback__)
    notes = getattr(error, "__notes__", [])
    text = f"{type(error).__name__}: {' '.join([str(error), *notes])}"[:300].replace("\n", " ")
    own = notes or any(frame.filename.startswith(PACKAGE) for frame in frames[-1:])
    return (
        CLEAR if own and (notes or isinstance(error, SPOKEN)) and any(map(text.__contains__, words)) else UNCLEAR
    ), text


def tally(
    cases: Callable[[random.Random], Iterator[Case]],
    seed: int,
    seconds: float,
    patience: float = PATIENCE,
    lanes: int = 1,
) -> Tally:
    """Run cases for a while in processes of their own, `lanes` side by side, started again after a hang or a crash."""
    found, end = Tally(), time.monotonic() + seconds
    running = [Lane(partial(_serve, cases, seed, lane, lanes), found, patience) for lane in range(lanes)]
    while running:
        ready = wait(
            [lane.pipe for lane in running], max(0.0, min(lane.deadline for lane in running) - time.monotonic())
        )
        for lane in running[:]:
            if lane.pipe in ready:
                goes_on = lane.hear() and not (time.monotonic() > end and lane.between)
            else:
                goes_on = time.monotonic() < lane.deadline or lane.hung(end)
            if not goes_on:
                lane.stop()
                running.remove(lane)
    return found


class Lane:
    """A process that runs every n-th case, one after the other."""

    def __init__(self, serve: Callable[[int, Connection], None], found: Tally, patience: float) -> None:
        self.serve, self.found, self.patience = serve, found, patience
        self.begun, self.name = 0, ""
        self._start()

    @property
    def between(self) -> bool:
        """Whether no case is running."""
        return not self.name

    def hear(self) -> bool:
        """Count what the process says; False where there is no more to do."""
        self.deadline = time.monotonic() + self.patience
        try:
            said = json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self.child.join(5)
            if self.child.exitcode == 0:
                return False
            self.found.add(self.name, CRASH, f"the process ended with {self.child.exitcode}")
            self.stop()
            self._start()
            return True
        if len(said) == 1:
            self.begun, self.name = self.begun + 1, said[0]
        else:
            self.found.add(self.name, *said)
            self.name = ""
        return True

    def hung(self, end: float) -> bool:
        """Count a hang, and go on after it; False where there is no time left."""
        self.found.add(self.name, HANG, f"no answer within {self.patience:.0f} s")
        self.stop()
        if time.monotonic() > end:
            return False
        self._start()
        return True

    def stop(self) -> None:
        """End the process."""
        self.child.kill()
        self.child.join()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.get_context("fork").Pipe()
        self.child = multiprocessing.get_context("fork").Process(target=self.serve, args=(self.begun, theirs))
        self.child.start()
        theirs.close()
        self.name, self.deadline = "", time.monotonic() + self.patience


def _serve(
    cases: Callable[[random.Random], Iterator[Case]], seed: int, lane: int, lanes: int, skipped: int, pipe: Connection
) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.chdir(tempfile.mkdtemp())  # an odd name of a file may be written to
    for case in islice(cases(random.Random(seed)), lane + skipped * lanes, None, lanes):
        pipe.send_bytes(json.dumps([case.name]).encode())
        pipe.send_bytes(json.dumps(case.run()).encode())
    pipe.close()
    os._exit(0)
