"""Freed memory stays at hand during long work, and the C library is as it was afterwards."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

#: Whether long tensors are mapped one by one, as the C library counts them.
COUNTS = """
import ctypes, os, torch
from torch import nn
import capalloc
from capalloc._measure import stochastic
from capalloc._runtime.memory import KEPT_FROM, memory_kept

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks".split()]
    _fields_ += [(name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Counts

def mapped(num_bytes):
    before = library.mallinfo2().hblks
    tensor = torch.empty(num_bytes, dtype=torch.uint8)
    return library.mallinfo2().hblks - before
"""
KEPT = """
assert mapped(2**26) == 1
with memory_kept(KEPT_FROM):
    assert mapped(2**26) == 0
assert (mapped(2**26), mapped(2**24)) == (1, 0)
with memory_kept(KEPT_FROM - 1):
    assert mapped(2**26) == 1
try:
    with memory_kept(2 * KEPT_FROM):
        raise ValueError
except ValueError:
    assert mapped(2**26) == 1
"""
IN_A_MEASUREMENT = """
capalloc._runtime.memory.KEPT_FROM = 0
seen, solve = [], stochastic.solve
stochastic.solve = lambda *given: (seen.append(mapped(2**26)), solve(*given))[1]
with torch.random.fork_rng():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(9, 5)
capalloc.measure(net, x, ridge=1e-2, solver=capalloc.solvers.Stochastic(num_probes=2, rtol=0.5))
assert seen == [0], seen
assert mapped(2**26) == 1
"""
OWN_SETTINGS = """
with memory_kept(KEPT_FROM):
    assert mapped(2**26) == 1
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs the counts of glibc 2.33")
@pytest.mark.parametrize(
    ("code", "environment"),
    [
        (KEPT, {}),
        (IN_A_MEASUREMENT, {}),
        (OWN_SETTINGS, {"MALLOC_TRIM_THRESHOLD_": "134217728"}),
        (OWN_SETTINGS, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=134217728"}),
    ],
)
def test_long_tensors_are_kept_and_nothing_stays_changed(code, environment, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COUNTS + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_nothing_is_set(monkeypatch) -> None:
    from capalloc._runtime import memory

    class NoGlibc:
        """A C library with none of its calls."""

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: NoGlibc())
    with memory.memory_kept(2**40):
        memory.give_back(2**40)
