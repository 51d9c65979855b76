"""The command line: `commands` declares every command, `options` what they share; the rest is imported when one runs.

Models and inputs are read by `sources`, from `model_source` and `input_source`; `compute` runs the methods on them and
`deliver` writes and prints what they return.
"""

import os
import sys

from capalloc.app.cli.commands import app
from capalloc.app.cli.errors import INTERRUPTED, PROGRAM

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    if sys.stderr is None:  # closed by what started this
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        app(prog_name=PROGRAM)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        # CPython would end `python -m` by the signal, where the interrupt came while a text was evaluated.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
