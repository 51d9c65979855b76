"""Run the timings of this folder, or the groups and benchmarks named, and print Markdown.

A benchmark is a module with a function `run() -> Table`. "timings" is one run of what a call costs, "accuracy" what an
answer is worth beside an exact one, which no busy machine changes.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.table import Table

GROUPS = {
    "timings": (
        *("propagate", "models", "limits", "real_size", "stated", "scale", "measure", "dense", "gram", "side_by_side"),
        *("linear", "depth", "design", "start", "forecasts"),
    ),
    "accuracy": ("architectures", "correction", "steps", "few_constraints", "metric", "segments", "calibration"),
}
#: In no group: they take an hour and more, and the first needs packages that nothing else does.
ON_REQUEST = ("coverage", "at_size")


def main() -> None:
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = f"{', '.join(GROUPS)}, or of {', '.join(known)}"
    parser.add_argument("modules", nargs="*", default=["timings"], help=f"of {names}")
    parser.add_argument("--output", type=Path, help="write the report there too, section by section")
    options = parser.parse_args()
    wanted = [name for asked in options.modules for name in GROUPS.get(asked, (asked,))]
    unknown = sorted(set(wanted) - known.keys())
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {names}")
    report = ["# Benchmarks", "", f"One run of `python -m benchmarks {' '.join(options.modules)}`: {machine()}.", ""]
    print("\n".join(report))
    failed: list[str] = []
    for name in wanted:
        load, began = os.getloadavg()[0], time.perf_counter()
        try:
            section = known[name]().markdown()
        except Exception as error:  # the others' hour is not lost
            failed.append(name)
            section = f"## {name}\n\nFailed: {error!r}"
        took = f"{name}: {time.perf_counter() - began:.0f} s in all, load {load:.1f} before."
        report += [section, "", took, ""]
        print(section, "", took, "", sep="\n", flush=True)
        if options.output:
            options.output.write_text("\n".join(report))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


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
