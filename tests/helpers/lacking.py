"""An interpreter that lacks some packages."""

from __future__ import annotations

import sys

import pytest


def lack(monkeypatch: pytest.MonkeyPatch, *names: str, unload: str | None = None) -> None:
    """Make imports of some packages fail as if they were not installed, until the test ends.

    What needs them may be loaded already: `unload` is the package or module that is to be imported again.
    """
    gone = [*names, *([unload] if unload else [])]
    for loaded in list(sys.modules):
        if any(loaded == name or loaded.startswith(f"{name}.") for name in gone):
            monkeypatch.delitem(sys.modules, loaded)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
