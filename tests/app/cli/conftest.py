"""A folder where commands are run."""

from __future__ import annotations

import sys

import pytest

from commands import FACTORIES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of factories, where the command is run."""
    (tmp_path / "factories.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("factories", None)
