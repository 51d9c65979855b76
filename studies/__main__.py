"""Run every study of this folder, or those named, and write figures and tables into docs.

A study is a module with a function `run(quick: bool = False) -> Study`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable

import studies
from studies.study import Study


def main() -> None:
    """The command line."""
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--quick", action="store_true", help="at a small size, printed and not written into docs")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - known.keys())
    if unknown:
        parser.error(f"no study {', '.join(unknown)}; there are {', '.join(known)}")
    for name in options.names or known:
        study = known[name](quick=options.quick)
        for mark, text in study.tables.items():
            print(f"## {name}: {mark}\n\n{text}\n", flush=True)
        if not options.quick:
            study.write()


def discover() -> dict[str, Callable[..., Study]]:
    """The studies of this folder by name; modules without `run` only help them."""
    names = sorted(info.name for info in pkgutil.iter_modules(studies.__path__) if info.name != "__main__")
    modules = {name: importlib.import_module(f"studies.{name}") for name in names}
    return {name: module.run for name, module in modules.items() if hasattr(module, "run")}


if __name__ == "__main__":
    main()
