"""Write tests/PROOFS.md: what tests prove of docs/theory.md, and against which independent oracle.

A test says so by `@pytest.mark.proves("4", "Hessian identity", oracle="leverage scores in the list of all paths")`:
the section, the claim and what the library is held against. Marks are read from the source, nothing is imported.

    python tests/proofs.py
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "PROOFS.md"
THEORY = TESTS.parent / "docs" / "theory.md"
CHECKED = re.compile(r"\*\*([^*]+?)\*\*\s+\(checked\b[^:)]*\)|\(checked: ([^)]+)\)")


@dataclass(frozen=True, order=True)
class Proof:
    """A test that proves a claim of a section against an oracle."""

    section: str
    claim: str
    file: str
    test: str
    oracle: str


def marks(test: ast.FunctionDef) -> list[tuple[str, str, str]]:
    """(section, claim, oracle) of each mark of a test."""
    found = []
    for call in test.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.proves":
            section, claim = (ast.literal_eval(argument) for argument in call.args)
            (oracle,) = (ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "oracle")
            found.append((section, claim, oracle))
    return found


@cache
def proofs() -> list[Proof]:
    """Every mark of every test, by section and claim."""
    found = []
    for path in TESTS.rglob("test_*.py"):
        name = path.relative_to(TESTS).as_posix()
        for test in ast.parse(path.read_text("utf-8")).body:
            if isinstance(test, ast.FunctionDef):
                found += [Proof(section, claim, name, test.name, oracle) for section, claim, oracle in marks(test)]
    return sorted(found)


def sections() -> dict[str, tuple[str, str]]:
    """Number -> (title, text) of the sections of the theory."""
    parts = re.split(r"^## (\d+)\. (.*)$", THEORY.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {number: (title, text) for number, title, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def checked() -> set[tuple[str, str]]:
    """(section, claim) of every "(checked)": named within, "(checked: clocks)", or by the bold words before it."""
    return {
        (number, " ".join((match[1] or match[2]).split()))
        for number, (_, text) in sections().items()
        for match in CHECKED.finditer(text)
    }


def page() -> str:
    """The text of PROOFS.md."""
    named, lines = (
        checked(),
        [
            "# Proofs",
            "",
            "Which test proves which claim of [docs/theory.md](../docs/theory.md), against what independent oracle.",
            "Claims in bold are marked (checked) there. `python tests/proofs.py` writes this page from the",
            "`@pytest.mark.proves` of the tests; a test fails when it is stale. `pytest -m proves` runs them alone.",
        ],
    )
    known = proofs()
    for number, (title, _) in sections().items():
        lines += ["", f"## {number}. {title}", "", "| claim | test | oracle |", "| --- | --- | --- |"]
        for proof in (proof for proof in known if proof.section == number):
            claim = f"**{proof.claim}**" if (number, proof.claim) in named else proof.claim
            lines.append(f"| {claim} | [`{proof.test}`]({proof.file}) | {proof.oracle} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
