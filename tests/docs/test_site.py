"""The documentation site: it builds without a warning, and asks nothing of any other host."""

from __future__ import annotations

import functools
import http.server
import logging
import re
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a page fetches by itself; links that a reader follows are none of it.
FETCHED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"'\s>]+)|<link[^>]*\shref=[\"']?([^\"'\s>]+)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytest.importorskip("material", reason="needs pip install 'capalloc[docs]'")
pytest.importorskip("mkdocstrings", reason="needs pip install 'capalloc[docs]'")


class Warnings(logging.Handler):
    """Keeps what mkdocs warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, list[str]]:
    """The site and the warnings of its build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    log, kept = logging.getLogger("mkdocs"), Warnings()
    level, propagate = log.level, log.propagate
    log.addHandler(kept)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False))
    finally:
        log.removeHandler(kept)
        log.setLevel(level)
        log.propagate = propagate
    return folder, kept.messages


def test_it_builds_without_a_warning(built):
    assert not built[1]


def test_every_page_of_the_sources_is_there(built):
    for source in [*ROOT.glob("docs/**/*.md")]:
        assert (built[0] / source.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), source


def test_pages_fetch_their_own_files_alone(built):
    for page in built[0].rglob("*.html"):
        for pair in FETCHED.findall(page.read_text(encoding="utf-8")):
            target = pair[0] or pair[1]
            assert not re.match(r"(https?:)?//", target), f"{page.name} fetches {target}"


def test_formulas_with_angle_brackets_stay_whole(built):
    assert "&lt;a, b&gt; = E[(a'X)(b'X)]" in (built[0] / "theory.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_asks_nothing_of_other_hosts_and_finds_no_error(built):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    handler = functools.partial(Quiet, directory=str(built[0]))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    asked, errors = [], []
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
            for page in sorted(built[0].rglob("*.html")):
                if page.name != "404.html":
                    tab.goto(home + page.relative_to(built[0]).as_posix(), wait_until="load")
            tab.goto(home + "index.html")
            tab.fill("input[name=query]", "ridge")
            tab.wait_for_selector(".md-search-result__item", timeout=15_000)
            browser.close()
    finally:
        server.shutdown()
    assert not errors
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""
