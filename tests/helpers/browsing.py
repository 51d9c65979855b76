"""A real browser for tests of pages: skipped where none is installed, and patient on a busy machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 300_000  # ms; a wait ends with what it waits for, and this ends only what hangs


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield running
        running.close()


def new_context(browser: Any, **settings: Any) -> Any:
    """A browser context whose pages wait until what they wait for is there."""
    context = browser.new_context(**settings)
    context.set_default_timeout(PATIENCE)
    return context
