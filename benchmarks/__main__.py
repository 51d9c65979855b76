"""Run every benchmark of this folder, or those named, and print Markdown.

A benchmark is a module with a function `run() -> Table`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
from pathlib import Path

import torch

import benchmarks
from benchmarks.table import Table

HELPERS = {"__main__", "table"}


def main() -> None:
    known = sorted(info.name for info in pkgutil.iter_modules(benchmarks.__path__) if info.name not in HELPERS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--output", type=Path, help="write the report there too")
    options = parser.parse_args()
    unknown = sorted(set(options.modules) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    report = ["# Benchmarks", "", f"One run of `python -m benchmarks`: {machine()}.", ""]
    print("\n".join(report))
    for name in options.modules or known:
        table: Table = importlib.import_module(f"benchmarks.{name}").run()
        print(table.markdown(), end="\n\n", flush=True)
        report += [table.markdown(), ""]
    if options.output:
        options.output.write_text("\n".join(report))


def machine() -> str:
    """What the figures were taken on."""
    load = f"load {os.getloadavg()[0]:.1f} before the run"
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads, {load}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
