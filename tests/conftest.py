"""Every test starts with the library's own records, one random state and one torch thread: a process a core."""

import gc
import importlib
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import settings

from browsing import chromium
from capalloc._operators.records import RECORDS

gc.disable()  # until all is collected: looking through what is imported takes a third of the start
torch.set_num_threads(1)
settings.register_profile("steady", deadline=None)  # no test depends on a clock it does not own
settings.load_profile("steady")
for records in ("capalloc._energy.rules", "capalloc._operators.decompositions"):
    importlib.import_module(records)  # the library's are there before a test adds its own


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again with every captured graph."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Layers drawn outside `seeded_module` do not depend on which tests ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for the tests of one file: while Playwright runs, no other event loop can."""
    with chromium() as running:
        yield running


@pytest.fixture(autouse=True)
def _figures_are_closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def _records_are_restored() -> Iterator[None]:
    with mock.patch.dict(RECORDS):
        yield
