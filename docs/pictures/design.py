"""Draw docs/pictures/design.png: the design page with a plain and a residual stack side by side.

python docs/pictures/design.py

It needs Playwright and an installed Chromium.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from capalloc.app.design.dash_app import make_server
from capalloc.app.design.server import bound

HERE = Path(__file__).parent
#: A plain stack of 30 layers, and one with branches times 1/sqrt(30).
QUERY = "?depth=30&residual=none&b.depth=30"


def main() -> None:
    """Serve the page, open it in a browser without a window, and save what it shows."""
    with bound(0) as listening:
        server = make_server(listening)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme="light")
            page.goto(f"http://127.0.0.1:{server.port}/{QUERY}")
            for drawn in ("#a-map", "#b-map", "#profile", "#gradient"):
                page.wait_for_selector(f"{drawn} .main-svg")
            page.wait_for_selector("#gradient .scatterlayer .trace:nth-child(2)")
            for hidden in ("#meaning", "#a-time", "#b-time"):  # the time differs from run to run
                page.evaluate(f"document.querySelector('{hidden}').remove()")
            page.screenshot(path=HERE / "design.png", full_page=True)
            browser.close()
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
