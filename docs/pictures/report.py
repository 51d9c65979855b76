"""Draw docs/pictures/report.png and report-phone.png: the report as a browser shows it.

python docs/pictures/report.py

A network that reads digits: measured, predicted, its receptive field and its scaling. It needs playwright, and a
Chromium on the PATH.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import sync_playwright

import capalloc
from capalloc.app.demo import EXAMPLES, build, load_digits, train
from capalloc.app.report import write_report

HERE = Path(__file__).parent


def results() -> dict[str, Any]:
    """What the page is about."""
    digits = load_digits(seed=0)
    model = train(digits, seed=0)
    images = digits.test_images[:EXAMPLES]
    features = torch.nn.Sequential(*list(build(seed=0).children())[:4])
    return {
        "measured": capalloc.measure(model, images),
        "predicted": capalloc.propagate(model, images, solver="markov"),
        "second convolution": capalloc.receptive_field(features, images),
        "depth": capalloc.diagnose(model, images, trained=True),
    }


def main() -> None:
    """Write the page, and take its pictures on a desk and on a phone."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        path = Path(folder) / "report.html"
        write_report(path, results(), title="Where a network that reads digits spends its capacity")
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, width, height, scheme in (("report", 1300, 1560, "light"), ("report-phone", 360, 780, "dark")):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(path.as_uri())
            page.locator("[data-role=layer]").select_option("1")
            if name == "report-phone":
                page.locator(".explorer").first.evaluate("element => element.scrollIntoView()")
            box = page.locator("canvas").first.bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.4 * box["height"])
            page.screenshot(path=HERE / f"{name}.png")
            picture = Image.open(HERE / f"{name}.png").convert("RGB")
            picture.quantize(192, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
