"""Every test starts with the library's own rules and one torch thread: the suite runs one process a core."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from browsing import chromium
from capalloc._energy.rules import RULES

torch.set_num_threads(1)


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
def _registered_rules_are_restored() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)
