"""Optional packages: found, named with what to install, or not blamed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from capalloc._runtime.extras import EXTRAS, load_extra
from lacking import lack


def test_the_first_module_that_is_there_is_taken():
    assert load_extra("a test", "no_such_package", "json").__name__ == "json"


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    lack(monkeypatch, "PIL")
    with pytest.raises(ModuleNotFoundError, match=r"a test needs the package Pillow: pip install 'capalloc\[images\]'"):
        load_extra("a test", "PIL.Image")


def test_another_missing_module_is_told_as_it_came():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        load_extra("a test", "no_such_package")


def test_every_extra_is_declared():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {f"capalloc[{extra}]" for extra in project["optional-dependencies"]}
    assert {what for _, what in EXTRAS.values() if what.startswith("capalloc")} <= declared
