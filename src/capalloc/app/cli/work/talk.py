"""What a command says beside its result: lines on stderr, and bars on a terminal."""

from __future__ import annotations

import sys

from capalloc.app.cli.group import say
from capalloc.app.cli.options import Talk


def tell(talk: Talk, text: str) -> None:
    """A line on stderr, unless quiet."""
    if not talk.quiet:
        say(text)


def bars(talk: Talk) -> bool:
    """Whether to draw progress bars: on a terminal, unless quiet."""
    return not talk.quiet and sys.stderr.isatty()
