"""Passes over the examples that many processes share and that a killed run resumes.

A solver names its steps: `fold` is a pass over blocks, `once` any step, and steps may hold others. What is finished is
in the file `path`, which rank 0 writes; where each rank stands in an unfinished step, in a file `path.rank-r` of its
own. A finished step forgets the steps inside it. Every start from nothing draws a name, and files of ranks count only
if they bear it and come from as many ranks, so that what is read always belongs together.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch

from capalloc._runtime.checkpoint import Checkpoint, Clock, Fingerprint, differences
from capalloc._runtime.distributed import Local, Reducer

T = TypeVar("T")


@dataclass
class Journal:
    """What one rank keeps in files: finished steps (rank 0), and where it stands in the present one."""

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

    def stand(self, step: str, state: Any) -> None:
        """Keep where this rank stands, if it is time."""
        if not self.clock():
            return
        began = time.monotonic()
        self.own.save(self.fingerprint, {"name": self.name, "ranks": self.ranks, "step": step, "state": state})
        self.clock.written(began)

    def stood(self, step: str) -> Any:
        """Where this rank stood in that step when the last process ended; None for its beginning."""
        found, self._standing = self._standing, None
        return found["state"] if found is not None and found["step"] == step else None

    def _write(self) -> None:
        self.shared.save(self.fingerprint, {"name": self.name, "finished": self.finished})


def _itself(state: Any) -> Any:
    return state


def _never(state: Any) -> bool:
    return False


@dataclass(frozen=True)
class Pass(Generic[T]):
    """What is done with blocks.

    A state before the first block, the state after one more (which may be the same, changed), how the last state is
    made small, how those of two neighbouring processes become one, and whether more blocks would change nothing.
    """

    begin: T
    advance: Callable[[T, Any], T]
    merge: Callable[[T, T], T]
    finish: Callable[[T], T] = _itself
    enough: Callable[[T], bool] = _never

    def over(self, blocks: Iterable[Any]) -> T:
        """The result, by one process and without files."""
        return cast(T, ALONE.gather("", lambda: blocks, self))


@dataclass(frozen=True)
class Passes:
    """Runs a solver's steps: by one process or many, with or without files."""

    reducer: Reducer = field(default_factory=Local)
    journal: Journal | None = None

    def once(self, step: str, compute: Callable[[], T]) -> T:
        """The value of a step, of rank 0 on all ranks; `compute` runs on all of them, unless a file has the value."""
        share: Callable[[Any], Any] = self.reducer.share
        journal = self.journal
        value: T
        if journal is None:
            value = share(compute())
            return value
        if share(step in journal.finished):
            value = share(journal.finished.get(step))
            return value
        before = set(journal.finished)
        value = share(compute())
        if self.reducer.rank == 0:
            journal.finish(step, value, set(journal.finished) - before)
        return value

    def fold(self, step: str, blocks: Callable[..., Iterable[Any]], work: Pass[T]) -> T:
        """The result of a pass over the blocks of all processes, on all of them.

        Args:
            step: its name.
            blocks: this process's blocks; with a number, from the one of that number on.
            work: what is done with them.

        """
        return self.once(step, lambda: cast(T, self.gather(step, blocks, work)))

    def gather(self, step: str, blocks: Callable[..., Iterable[Any]], work: Pass[T]) -> T | None:
        """The same on rank 0 alone, None elsewhere; not kept."""
        done, state = self.stood(step) or (0, work.begin)
        left = iter(blocks(done) if done else blocks())
        while not work.enough(state) and (block := next(left, None)) is not None:
            state, done = work.advance(state, block), done + 1
            self.stand(step, (done, state))
        merged: T | None = self.reducer.fold(work.finish(state), work.merge)
        return merged

    def close(self) -> None:
        """The run is finished: where it stood in its steps no longer matters."""
        if self.journal is not None:
            self.journal.own.remove()

    def stand(self, step: str, state: Any) -> None:
        """A point to resume at: the state is kept if it is time; other processes' errors are raised."""
        self.reducer.check()
        if self.journal is not None:
            self.journal.stand(step, state)

    def stood(self, step: str) -> Any:
        """The state that this rank last kept in this step before it ended; None if it had not begun."""
        return None if self.journal is None else self.journal.stood(step)


#: One process, no files.
ALONE = Passes()


def passes_of(
    reducer: Reducer,
    path: str | os.PathLike[str] | None,
    fingerprint: Callable[[], Fingerprint],
    seconds: float,
    types: tuple[type, ...],
    device: torch.device,
) -> Passes:
    """The `Passes` of a run.

    Args:
        reducer: the processes that share the run.
        path: of the checkpoint; None for none.
        fingerprint: what tells runs apart; ranks must agree on it.
        seconds: between two writings, at least.
        types: dataclasses that states hold.
        device: of the tensors that are read.

    Raises:
        ValueError: the ranks were given different arguments; the checkpoint is damaged or of another run; `seconds`
            is negative.
        FileNotFoundError: the folder of `path` does not exist.

    """
    if not seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be a number >= 0, got {seconds!r}")
    mark = None if path is None and isinstance(reducer, Local) else fingerprint()
    agree(reducer, mark)
    if path is None or mark is None:
        return Passes(reducer)
    shared, own = (Path(f"{os.fspath(path)}{end}").resolve() for end in ("", f".rank-{reducer.rank}"))
    journal = Journal(
        Checkpoint(shared, types, device), Checkpoint(own, types, device), mark, Clock(seconds), reducer.size
    )
    journal.open(reducer)
    return Passes(reducer, journal)


def agree(reducer: Reducer, mark: Fingerprint | None) -> None:
    """Raise ValueError on a rank that was given other arguments than rank 0."""
    first = reducer.share(None if mark is None else dict(mark))
    if mark is not None and (said := differences(first, mark, "on rank 0", f"on rank {reducer.rank}")):
        raise ValueError(f"all ranks must be given the same arguments ({said})")
