"""Progress where there is no terminal: one line each half minute in place of bars that rewrite theirs."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

from capalloc._runtime.terminal import is_watched
from capalloc.app.cli.errors import PROGRAM
from capalloc.app.cli.options import Verbosity

EVERY = 30.0
#: The picture of a bar, and what moves the cursor.
DRAWN = re.compile(r"\|[^|]*\||\x1b\[[0-9;]*[A-Za-z]")


class Lines(io.TextIOBase):
    """A stream that hands whole lines on, and keeps the last state of a bar for the next line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._state, self._began = stream, "", time.monotonic()

    def write(self, text: str) -> int:
        """Hand on text that ends a line, and keep what rewrites one."""
        if text.startswith("\r"):
            self._state = " ".join(DRAWN.sub(" ", text).split()) or self._state
        elif DRAWN.sub("", text).strip():
            self._stream.write(text if text.endswith("\n") else f"{text}\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream itself."""
        self._stream.flush()

    def tell_state(self) -> None:
        """Write how far it is."""
        self._stream.write(f"{PROGRAM}: {time.monotonic() - self._began:.0f} s: {self._state or 'at work'}\n")
        self._stream.flush()


@contextmanager
def lines_in_a_log(verbosity: Verbosity, every: float = EVERY) -> Iterator[None]:
    """Turn bars on the standard error into a line each half minute, unless it is a terminal or all is quiet."""
    if verbosity.quiet or is_watched():
        yield
        return
    lines, over = Lines(sys.stderr), threading.Event()

    def tick() -> None:
        while not over.wait(every):
            lines.tell_state()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        with redirect_stderr(lines):
            yield
    finally:
        over.set()
        ticking.join()
