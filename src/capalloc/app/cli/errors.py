"""Errors in one line, exit codes and Ctrl-C, the same for all commands."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer
from typer.core import TyperGroup

from capalloc._runtime.memory_limits import ran_out
from capalloc._runtime.terminal import printable
from capalloc.app.cli.told import place_of

PROGRAM = "capalloc"
#: Errors that the user can mend: reported in one line, without a traceback.
EXPECTED = (ValueError, TypeError, OSError, MemoryError, ModuleNotFoundError, NotImplementedError)
#: The command that runs, as it was typed.
TYPED: ContextVar[str | None] = ContextVar("typed", default=None)
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
#: Options that are arguments of another name in the library.
CALLED = {"outputs": "output", "output_position": "position"}
#: An argument as messages of the library name it, with its value or without one, and no part of an expression; or one
#: that a message opens with.
ARGUMENT = re.compile(r"(?<!\S)([a-z_]+)=('[^'\s]*'|\d+)?(?=[\s,;.:)]|$)|\A([a-z_]+)(?= (?:must|names|has)\b)")


class UsageError(ValueError):
    """A value that an argument or option of the command line cannot have."""


class CommandGroup(TyperGroup):
    """Commands whose expected errors, and the user's own, are one line on stderr; with --debug, a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed, for results to say."""
        TYPED.set(shlex.join([PROGRAM, *args]))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        debug = bool(ctx.params.get("debug"))
        try:
            with warnings_in_one_line(debug):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted; files are whole or as they were")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever read the output has left: nothing to tell
            raise
        except Exception as error:
            if debug or not (is_expected(error) or place_of(error)):
                raise
            say(in_words(error, options_of(self.get_command(ctx, ctx.invoked_subcommand or ""))))
            raise typer.Exit(WRONG_USAGE if isinstance(error, UsageError) else FAILED) from None


def is_expected(error: Exception) -> bool:
    """Tell errors that the user can mend from defects, which show their traceback."""
    return isinstance(error, EXPECTED) or ran_out(error)


def options_of(command: Any) -> dict[str, str]:
    """Return the options of a command by the arguments of the library that they are."""
    named = {} if command is None else {p.name: p.opts[0] for p in command.params if p.opts[0].startswith("--")}
    return named | {theirs: named[ours] for theirs, ours in CALLED.items() if ours in named}


def in_words(error: Exception, options: Mapping[str, str]) -> str:
    """Return the message of an error, with its place in the user's code, or advice where memory is short.

    Arguments that it speaks of are named as the command's options; what the user's own code said stays as it is.
    """
    text = str(error) or type(error).__name__
    if not place_of(error):
        said = str(error.__cause__ or "") or text + " "  # which the text does not hold
        text = said.join(ARGUMENT.sub(lambda m: _option(m, options), part) for part in text.split(said))
    if not is_expected(error):
        told = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        return f"{told}{type(error).__name__}: {text} ({place_of(error)})"
    if isinstance(error.__cause__, Exception) and not isinstance(error, UsageError):
        place = place_of(error.__cause__)
        return f"{text} ({place})" if place and place not in text else text
    if isinstance(error, RuntimeError) and not isinstance(error, EXPECTED):
        return f"memory is short; take a smaller --shape, fewer --examples or a smaller model ({text})"
    return text


def _option(argument: re.Match[str], options: Mapping[str, str]) -> str:
    """Return an argument as an option; as it stands where the command has none such."""
    name, value = argument[1] or argument[3], argument[2]
    return " ".join(filter(None, (options[name], value))) if name in options else argument[0]


def say(text: str) -> None:
    """Write one line on stderr."""
    typer.echo(f"{PROGRAM}: {printable(' '.join(text.split()))}", err=True)


@contextmanager
def warnings_in_one_line(debug: bool) -> Iterator[None]:
    """Show warnings of capalloc as one line on stderr; those of other packages appear with --debug alone."""
    if debug:
        yield
        return

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__module__.startswith(PROGRAM):
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
