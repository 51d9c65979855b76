"""The command line: `commands` declares every command, `options` what they share; the rest is imported when one runs.

Models and inputs are read by `sources`, from `model_source` and `input_source`; `compute` runs the methods on them and
`deliver` writes and prints what they return.
"""

from capalloc.app.cli.commands import app
from capalloc.app.cli.errors import PROGRAM

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app(prog_name=PROGRAM)
