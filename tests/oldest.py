"""Print the lower bound of every dependency in pyproject.toml as a constraint, for `make oldest`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
#: What the suite needs; the tools that check and build are not run by users.
EXTRAS = ("demo", "study", "design", "images", "pruning", "tensorboard", "lightning", "transformers", "test")
BOUND = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\d.]+)")


def constraints() -> dict[str, str]:
    """Give the lower bound of each dependency, the highest where it is named twice."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    named = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found: dict[str, str] = {}
    for line in named:
        if not line.startswith("capalloc["):
            bound = BOUND.match(line)
            assert bound is not None, f"{line!r} has no lower bound"
            found[bound["name"]] = max(found.get(bound["name"], "0"), bound["version"], key=_numbers)
    return found


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    for name, version in constraints().items():
        print(f"{name}=={version}")
