"""List every `raise` of src that the last run under coverage did not reach, and fail if there is one.

make coverage
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from coverage import Coverage

SRC = Path(__file__).parents[1] / "src" / "capalloc"


def unreached(coverage: Coverage) -> list[str]:
    """Path and line of the statements that raise an error and were never run."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        lines = {node.lineno for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Raise)}
        if lines:
            _, _, _, missing, _ = coverage.analysis2(str(path))
            found += [f"{path.relative_to(SRC.parent)}:{line}" for line in sorted(lines.intersection(missing))]
    return found


if __name__ == "__main__":
    data = Coverage()
    data.load()
    places = unreached(data)
    print("\n".join(["no test reaches:", *places]) if places else "every raise is reached")
    sys.exit(bool(places))
