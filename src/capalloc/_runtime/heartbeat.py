"""Signs of life: who among the processes of a group has died, fallen silent or failed, known within bounded time.

Every rank writes a growing number to the group's store, twice a second, and reads those of the others; a number that
does not grow for too long is a rank that is gone. The first error that a rank reports is kept for all to read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

#: Signs of life in the time after which a silent rank is taken for dead.
BEATS = 20


class RankError(RuntimeError):
    """A process of the group has died, fallen silent or failed; `rank` says which, where it is known."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class Heartbeat:
    """The signs of life of this rank, from a thread of its own, and its view of the others'.

    Args:
        store: of the process group.
        rank: of this process.
        size: of the group.
        silence: seconds without a sign after which a rank is taken for dead.
        arrival: seconds that ranks may take to arrive at their first meeting.

    """

    def __init__(self, store: Store, rank: int, size: int, silence: float, arrival: float) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._silence, self._arrival, self._beat = silence, arrival, silence / BEATS
        self._failure: RankError | None = None
        self._stop = threading.Event()
        now = time.monotonic()
        self._seen = {other: (b"", now) for other in range(size) if other != rank}
        self._main = _own_connection(store, self._silence)
        self._meetings = 0
        self._thread = threading.Thread(target=self._run, args=(_own_connection(store, self._silence),), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what is wrong with another rank."""
        if self._failure is not None:
            raise self._failure

    def wait(self, done: Callable[[], bool]) -> None:
        """Return when `done`, or raise what is wrong with another rank."""
        pause = 1e-4
        while not done():
            self.check()
            time.sleep(pause)
            pause = min(1.5 * pause, 0.02)

    def meet(self) -> None:
        """Return when all ranks have come to this point."""
        self._meetings += 1
        key = f"meeting {self._meetings}"
        with store_errors(self.check):
            self._main.add(key, 1)
            self.wait(lambda: self._main.add(key, 0) >= self._size)
            if self._rank == 0 and self._meetings > 2:  # all have left the last but one
                self._main.delete_key(f"meeting {self._meetings - 2}")

    def explain(self, error: Exception) -> RankError:
        """Return why an exchange broke: the signs of life say so after a while."""
        deadline = time.monotonic() + self._silence + 4 * self._beat
        while self._failure is None and time.monotonic() < deadline:
            time.sleep(self._beat / 5)
        return self._failure or RankError(f"an exchange between the ranks failed: {error}; look at the others' output")

    def fail(self, message: str) -> None:
        """Tell the others; the first message is kept."""
        try:
            self._main.compare_set("error", "", f"{self._rank} {message}")
        except RuntimeError:
            return  # the store is gone, and so the others know

    def close(self) -> None:
        """Leave; the process that may hold the store, rank 0, waits until the others have left."""
        self._stop.set()
        self._thread.join()
        try:
            self._main.add("left", 1)
            deadline = time.monotonic() + self._silence / 2
            while self._rank == 0 and self._main.add("left", 0) < self._size and time.monotonic() < deadline:
                time.sleep(self._beat / 20)
        except RuntimeError:
            return

    def _run(self, store: Store) -> None:
        count = 0
        try:
            while not self._stop.wait(self._beat if count else 0):
                count += 1
                store.set(f"beat {self._rank}", str(count))
                for other in self._seen:
                    self._look_at(store, other)
                self._look_for_error(store)
        except RuntimeError as error:
            self._failure = self._failure or _store_is_gone(error)

    def _look_at(self, store: Store, other: int) -> None:
        key, now = f"beat {other}", time.monotonic()
        beat = store.get(key) if store.check([key]) else b""
        before, since = self._seen[other]
        if beat != before:
            self._seen[other] = (beat, now)
        elif now - since > (self._silence if before else self._arrival) and not self._stop.is_set():
            what = "has died or hangs" if before else "has not called with the others"
            way = "" if before else ", or give ranks longer to come with Run(arrival=...)"
            message = f"rank {other} {what}: no sign of life for {now - since:.0f} seconds; look at its output{way}"
            store.compare_set("error", "", f"{other} {message}")

    def _look_for_error(self, store: Store) -> None:
        if self._failure is None and store.check(["error"]):
            rank, message = store.get("error").decode().split(" ", 1)
            self._failure = RankError(message, int(rank))


@contextmanager
def store_errors(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Explain an error of the store, unless `check` knows a better reason."""
    try:
        yield
    except RankError:
        raise
    except RuntimeError as error:
        check()
        raise _store_is_gone(error) from error


def _store_is_gone(error: Exception) -> RankError:
    return RankError(
        "the store of the process group is gone: the process that holds it, rank 0 or torchrun's agent, has died; "
        f"look at its output ({str(error).splitlines()[0]})"
    )


def _own_connection(store: Store, timeout: float) -> Store:
    own: Store = store.clone()  # type: ignore[attr-defined]
    own.set_timeout(timedelta(seconds=timeout))
    return own


def call_store(store: Store, rank: int) -> Store:
    """Return a part of the group's store for this call alone: ranks call in the same order, so they count alike."""
    return PrefixStore(f"capalloc {store.add(f'capalloc calls of {rank}', 1)}", store)
