"""`capalloc report`: one page about saved results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capalloc._runtime.files import check_target
from capalloc.app.cli.deliver import show
from capalloc.app.cli.options import Verbosity
from capalloc.app.report import write_report
from capalloc.results import load


def run_report(files: Sequence[Path], verbosity: Verbosity, out: Path, title: str) -> None:
    """`capalloc report`."""
    check_target(out)
    if any(path.exists() and out.exists() and path.samefile(out) for path in files):
        raise ValueError(f"the page would be written over the result {out}; give --out another name")
    results = {name: load(path) for name, path in names(files).items()}
    write_report(out, results, title=title)
    show(verbosity, {"results": list(results), "out": out})
    verbosity.tell(f"wrote {out}")


def names(files: Sequence[Path]) -> dict[str, Path]:
    """Name each file for the page: its stem, with the folder where two have one stem.

    Raises:
        ValueError: a file is given twice.

    """
    stems = [path.stem for path in files]
    named = {path.stem if stems.count(path.stem) == 1 else str(path.with_suffix("")): path for path in files}
    if len(named) < len(files):
        raise ValueError("a file is given twice; give each once")
    return named
