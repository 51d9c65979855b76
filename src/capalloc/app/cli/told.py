"""Errors of a user's own code, told with their place."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told(what: str) -> Iterator[None]:
    """Give an error of code that is not capalloc's its name, file and line; a missing module says enough.

    Raises:
        ValueError: the code inside failed.

    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the user's own code may raise anything
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}" if len(frames) > 1 else "its call"
        raise ValueError(f"{what} failed with {type(error).__name__}: {error} ({place})") from error
