"""Text on a terminal, which obeys some characters; light, so that errors need nothing more."""

from __future__ import annotations

import sys


def is_watched() -> bool:
    """Tell whether the standard error is a terminal: a program without one has none, or has it closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def printable(text: str) -> str:
    """Replace what a terminal would obey, not show, by its escape: names come from files of anyone."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
