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
from multiprocessing.connection import Connection
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
    cases: Callable[[random.Random], Iterator[Case]], seed: int, seconds: float, patience: float = PATIENCE
) -> Tally:
    """Run cases for a while in a process of their own, which is started again after a hang or a crash."""
    found, end, skipped = Tally(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=_serve, args=(cases, seed, skipped, theirs))
        child.start()
        theirs.close()
        ended = _listen(ours, child, found, end, patience)
        child.kill()
        child.join()
        if ended is None:
            break
        skipped += ended
    return found


def _listen(
    ours: Connection, child: multiprocessing.process.BaseProcess, found: Tally, end: float, patience: float
) -> int | None:
    """Count what a child says; the number of cases it began, or None where there is no more to do."""
    begun, name = 0, ""
    while True:
        try:
            if not ours.poll(patience):
                found.add(name, HANG, f"no answer within {patience:.0f} s")
                return begun
            said = json.loads(ours.recv_bytes())
        except (EOFError, ConnectionError):
            child.join(5)
            if child.exitcode == 0:
                return None
            found.add(name, CRASH, f"the process ended with {child.exitcode}")
            return begun
        if len(said) == 1:
            begun, name = begun + 1, said[0]
        else:
            found.add(name, *said)
            if time.monotonic() > end:
                return None


def _serve(cases: Callable[[random.Random], Iterator[Case]], seed: int, skipped: int, pipe: Connection) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.chdir(tempfile.mkdtemp())  # an odd name of a file may be written to
    for k, case in enumerate(cases(random.Random(seed))):
        if k >= skipped:
            pipe.send_bytes(json.dumps([case.name]).encode())
            pipe.send_bytes(json.dumps(case.run()).encode())
    pipe.close()
    os._exit(0)
