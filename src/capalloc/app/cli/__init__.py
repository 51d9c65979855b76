"""The command line of capalloc: what every command takes, its words and exit codes.

It stands beside the package so that help and completion answer without importing torch; the work of a command lies in
`capalloc.app.cli.work`, and is imported when the command runs.
"""

from capalloc.app.cli.declarations import app
from capalloc.app.cli.group import PROGRAM

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app(prog_name=PROGRAM)
