"""The driver of long runs: many processes share a solver's passes over the examples, and a killed run resumes.

A solver is a function on rank 0 that names its steps: `fold` is a pass over blocks, `once` any step, and steps may hold
others. The other ranks take part in its passes: rank 0 sends them each `Fold`, a plain value, and what they find is
merged.
What is finished is in the file `path`, which rank 0 writes; where each rank stands in an unfinished step, in a file
`path.rank-r` of its own. A finished step forgets the steps inside it. Every start from nothing draws a name, and files
of ranks count only if they bear it and come from as many ranks, so that what is read always belongs together.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from capalloc._linalg.fold import Fold, Total
from capalloc._runtime.checkpoint import DOUBTS, Checkpoint, Clock, Fingerprint, differences
from capalloc._runtime.distributed import Local, Reducer

S = TypeVar("S")
T = TypeVar("T")

#: The blocks of this process, from one on.
Source = Callable[[int], Iterable[Any]]


@dataclass
class Journal:
    """The files of one rank: finished steps (rank 0), and where it stands in the present one."""

    shared: Checkpoint
    own: Checkpoint
    fingerprint: Fingerprint
    clock: Clock
    ranks: int = 1
    name: str = ""
    finished: dict[str, Any] = field(default_factory=dict)
    _standing: dict[str, Any] | None = None

    def open(self, reducer: Reducer) -> None:
        """Read what there is, or begin with no file of a rank left."""
        found = self.shared.load(self.fingerprint) if reducer.rank == 0 else None
        if found is not None:
            self.name, self.finished = found["name"], found["finished"]
        self.name = reducer.share(self.name)
        if not self.name:
            self.own.remove()
            self.name = reducer.share(secrets.token_hex(8))
            if reducer.rank == 0:
                self._write()
        standing = self.own.load(self.fingerprint)
        if standing is not None and (standing["name"], standing["ranks"]) == (self.name, self.ranks):
            self._standing = standing

    def finish(self, step: str, value: Any, inner: set[str]) -> None:
        """Keep the value of a step in the place of those inside it."""
        self.finished = {key: old for key, old in self.finished.items() if key not in inner} | {step: value}
        self._write()

    def pause(self, step: str, state: Any) -> None:
        """Keep where this rank stands, if it is time."""
        if not self.clock():
            return
        began = time.monotonic()
        self.own.save(self.fingerprint, {"name": self.name, "ranks": self.ranks, "step": step, "state": state})
        self.clock.written(began)

    def resume(self, step: str) -> Any:
        """Return where this rank stood in that step when the last process ended; None for its beginning."""
        found, self._standing = self._standing, None
        return found["state"] if found is not None and found["step"] == step else None

    def _write(self) -> None:
        self.shared.save(self.fingerprint, {"name": self.name, "finished": self.finished})


@dataclass(frozen=True)
class Steps:
    """The steps of a solver over the blocks of a source: by one process or many, with or without files."""

    source: Source = lambda start: ()
    reducer: Reducer = field(default_factory=Local)
    journal: Journal | None = None

    @property
    def alone(self) -> bool:
        """True for one process that writes no file: states may be large."""
        return self.reducer.size == 1 and self.journal is None

    def over(self, source: Source) -> Steps:
        """Return the driver for other blocks."""
        return replace(self, source=source)

    def agree(self, step: str, compute: Callable[[], T]) -> T:
        """Return the value of a step on rank 0, on all; `compute` runs on all, but not where a file has the value."""
        return cast(T, self.reducer.share(self.once(step, compute)))

    def lead(self, step: str, solve: Callable[[], T]) -> T:
        """Return what `solve` finds on rank 0, on all; the others take part in the passes that it asks for."""
        share = self.reducer.share
        if self.reducer.rank == 0:
            answer = self.once(step, solve)
            share(None)
        else:
            while (asked := share(None)) is not None:
                self._part(*asked)
            answer = cast(T, None)
        return cast(T, share(answer))

    def once(self, step: str, compute: Callable[[], T]) -> T:
        """Return the value of a step of this rank, which rank 0 keeps in a file."""
        journal = self.journal
        if journal is None or self.reducer.rank:
            return compute()
        if step not in journal.finished:
            before = set(journal.finished)
            value = compute()
            journal.finish(step, value, set(journal.finished) - before)
        return cast(T, journal.finished[step])

    def fold(self, step: str, work: Fold[S]) -> S:
        """Return the result of a pass over the blocks of all ranks, which is kept; on rank 0."""
        return self.once(step, lambda: self.gather(work, step))

    def gather(self, work: Fold[S], step: str = "") -> S:
        """Return the result of a pass, which is not kept; where a step is named, it resumes in the middle."""
        self.reducer.share((step, work))
        return self._part(step, work)

    def pause(self, step: str, state: Any) -> None:
        """Keep the state to resume at, if it is time; raise what is wrong with another rank."""
        self.reducer.check()
        if self.journal is not None and step:
            self.journal.pause(step, state)

    def resume(self, step: str) -> Any:
        """Return the state that this rank last kept in this step before it ended; None if it had not begun."""
        return None if self.journal is None or not step else self.journal.resume(step)

    def close(self) -> None:
        """Forget where the finished run stood in its steps."""
        if self.journal is not None:
            self.journal.own.remove()

    def _part(self, step: str, work: Fold[S]) -> S:
        done, state = self.resume(step) or (0, work.begin(self.source))
        if not work.enough(state):
            for block in self.source(done):
                state, done = work.advance(state, block), done + 1
                self.pause(step, (done, state))
                if work.enough(state):
                    break
        part = work.finish(state)
        if isinstance(work, Total):
            return cast(S, tuple(map(self.reducer.sum, cast(Any, part))))
        return cast(S, self.reducer.fold(part, work.merge))


def open_steps(
    reducer: Reducer,
    path: str | os.PathLike[str] | None,
    fingerprint: Callable[[], Fingerprint],
    seconds: float,
    types: tuple[type, ...],
    device: torch.device,
) -> Steps:
    """Return the driver of a run.

    Args:
        reducer: the processes that share the run.
        path: of the checkpoint; None for none.
        fingerprint: what tells runs apart; ranks must agree on it.
        seconds: between two writings, at least.
        types: dataclasses that states hold.
        device: of the tensors that are read.

    Raises:
        ValueError: the ranks were given different arguments; the checkpoint is damaged, of another run, or could not be
            told from one.
        FileNotFoundError: the folder of `path` does not exist.

    """
    if path is None and isinstance(reducer, Local):
        return Steps(reducer=reducer)
    mark = fingerprint()
    own = dict(mark) if path is None else {"checkpoint": "a file", **mark}
    if said := differences(reducer.share(own), own, "on rank 0", f"on rank {reducer.rank}"):
        raise ValueError(f"all ranks must be given the same arguments ({said})")
    if path is None:
        return Steps(reducer=reducer)
    if doubts := mark.get(DOUBTS):
        raise ValueError(
            f"a checkpoint could not be told from that of another run: the state of {doubts} in the model or in "
            "outputs= cannot be seen; hand it over otherwise, or leave out checkpoint="
        )
    shared, beside = (Path(f"{os.fspath(path)}{end}").resolve() for end in ("", f".rank-{reducer.rank}"))
    journal = Journal(
        Checkpoint(shared, types, device), Checkpoint(beside, types, device), mark, Clock(seconds), reducer.size
    )
    journal.open(reducer)
    return Steps(reducer=reducer, journal=journal)
