"""Run every benchmark of this folder, or those named, and print Markdown.

A benchmark is a module with a function `run() -> Table`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.table import Table

#: Not among all: they take an hour and more, and the first needs packages that nothing else does.
ON_REQUEST = ("coverage", "at_size")


def main() -> None:
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(known)}; {', '.join(ON_REQUEST)} only if named")
    parser.add_argument("--output", type=Path, help="write the report there too")
    options = parser.parse_args()
    unknown = sorted(set(options.modules) - known.keys())
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    report = ["# Benchmarks", "", f"One run of `python -m benchmarks`: {machine()}.", ""]
    print("\n".join(report))
    for name in options.modules or [name for name in known if name not in ON_REQUEST]:
        table = known[name]()
        print(table.markdown(), end="\n\n", flush=True)
        report += [table.markdown(), ""]
    if options.output:
        options.output.write_text("\n".join(report))


def discover() -> dict[str, Callable[[], Table]]:
    """The benchmarks of this folder by name, each imported once it runs; modules without `run` only help them."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("[!_]*.py") if "\ndef run(" in path.read_text())
    return {name: partial(_run, name) for name in names}


def _run(name: str) -> Table:
    found: Table = importlib.import_module(f"benchmarks.{name}").run()
    return found


def machine() -> str:
    """What the figures were taken on."""
    load = f"load {os.getloadavg()[0]:.1f} before the run"
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads, {load}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
