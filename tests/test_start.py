"""A light start: what `import capalloc` loads, and that every name of the package is there when it is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import subprocess
import sys

import pytest

import capalloc

#: Packages that take long to load, and come when they are used.
HEAVY = ("torch", "numpy", "xarray", "pandas", "matplotlib", "scipy", "jinja2", "dash", "sklearn")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh process has loaded after some code."""
    script = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    told = os.environ | {"EAGER_IMPORT": ""}
    done = subprocess.run([sys.executable, "-c", script], env=told, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import capalloc", "import capalloc.app.cli", "import capalloc.results"])
def test_importing_loads_nothing_heavy(code):
    assert loaded_by(code) == set()


def test_beside_torch_nothing_else_comes():
    assert loaded_by("import torch, capalloc") <= {"torch", "numpy"}


@pytest.fixture(scope="module")
def eager() -> subprocess.CompletedProcess[str]:
    """A fresh process in which all names are looked up at once, as `EAGER_IMPORT` asks of lazy_loader."""
    code = (
        "import capalloc, capalloc.results, sys; "
        "print([n for n, m in sys.modules.items() if n.startswith('torch') and type(m).__name__ == '_LazyModule'])"
    )
    told = os.environ | {"EAGER_IMPORT": "1"}
    return subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)


def test_every_name_of_the_stub_is_there(eager):
    assert eager.returncode == 0, eager.stderr
    assert all(hasattr(capalloc, name) for name in capalloc.__all__)
    assert set(capalloc.__all__) <= set(dir(capalloc))


def test_no_part_of_torch_stands_in_as_a_lazy_module(eager):
    """`inspect.getmodule` touches every known module: a lazy one would import half of torch inside another import."""
    assert eager.stdout.strip() == "[]"


def test_every_module_imports():
    names = [found.name for found in pkgutil.walk_packages(capalloc.__path__, "capalloc.")]
    assert len(names) > 150
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_the_version_is_that_of_the_distribution():
    assert capalloc.__version__ == importlib.metadata.version("capalloc")
