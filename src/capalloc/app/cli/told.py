"""Errors of a user's own code, told with their place."""

from __future__ import annotations

import site
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parents[2]


@contextmanager
def told(what: str, otherwise: str = "") -> Iterator[None]:
    """Give an error of code that is not capalloc's its name, file and line; a missing module says enough.

    Args:
        what: whose code it is.
        otherwise: what stands in the place of file and line where the error went through none.

    Raises:
        ValueError: the code inside failed.

    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the user's own code may raise anything
        place = place_of(error) or otherwise
        where = f" ({place})" if place else ""
        raise ValueError(f"{what} failed with {type(error).__name__}: {error}{where}") from error


def place_of(error: BaseException) -> str | None:
    """The innermost line of the user's own code that an error went through; None where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in _not_of_users()):
            return f"{file}, line {frame.lineno}"
    return None


def _not_of_users() -> tuple[str | Path, ...]:
    paths = sysconfig.get_paths()
    return (PACKAGE, paths["stdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages())
