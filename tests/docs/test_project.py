"""What the project says of itself in several files is the same in all: versions, Pythons, commands, dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import capalloc

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
NAME = re.compile(r"^[\w-]+")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def requirements() -> list[str]:
    """Names of all packages that capalloc and its extras ask for."""
    extras = PROJECT["optional-dependencies"].values()
    asked = [NAME.match(line)[0] for group in (PROJECT["dependencies"], *extras) for line in group]
    return sorted({name for name in asked if name != "capalloc"})


def test_the_version_is_one():
    assert capalloc.__version__ == PROJECT["version"]
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.M)[1] == PROJECT["version"]


def test_the_pythons_that_are_tested_are_those_that_are_promised():
    promised = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    tested = re.search(r"python: \[(.+?)\]", read(".github/workflows/ci.yml"))[1]
    assert re.findall(r"[\d.]+", tested) == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


@pytest.mark.parametrize("name", requirements())
def test_a_requirement_is_pinned_and_has_its_reason(name):
    pins = [line.split("==")[0].lower().replace("_", "-") for line in read("constraints.txt").splitlines()]
    assert name in pins
    assert re.search(rf"^\|.*\b{name}\b.*\|", read("docs/dependencies.md"), re.M)


@pytest.mark.parametrize(
    "path", [*WORKFLOWS, ROOT / ".ci/run", ROOT / ".github/pull_request_template.md"], ids=lambda path: path.name
)
def test_targets_that_others_call_are_in_the_makefile(path):
    for target in re.findall(r"\bmake ([a-z-]+)", path.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", read("Makefile"), re.M), target


def test_the_changelog_begins_with_what_is_unreleased():
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.M)
    kinds = re.findall(r"^### (.+)$", read("CHANGELOG.md"), re.M)
    assert headings[0] == "[Unreleased]"
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_types_and_stubs_are_shipped():
    """A package whose names are loaded when used has a stub, and the wheel takes all files of the package."""
    package = ROOT / "src/capalloc"
    assert (package / "py.typed").is_file()
    lazy = [path for path in package.rglob("__init__.py") if "attach_stub" in path.read_text(encoding="utf-8")]
    assert all(path.with_suffix(".pyi").is_file() for path in lazy)
    assert SETTINGS["tool"]["hatch"]["build"]["targets"] == {"wheel": {"packages": ["src/capalloc"]}}
