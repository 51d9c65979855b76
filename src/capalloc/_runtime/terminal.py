"""Text on a terminal, which obeys some characters; light, so that errors need nothing more."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace what a terminal would obey, not show, by its escape: names come from files of anyone."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
