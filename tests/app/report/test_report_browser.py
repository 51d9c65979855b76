"""The report in headless Chromium, from a file: what a person sees, points at, types and prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from allocations import allocation
from browsing import new_context
from capalloc import Allocation
from capalloc.app.report import write_report
from capalloc.app.report.section import exact

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Reports by name."""
    folder = tmp_path_factory.mktemp("reports")
    evil = allocation(notes=[EVIL])
    names = [EVIL, "'\"><b>", "{{ 7 * 7 }}"]
    evil = Allocation(
        evil.capacity,
        evil.bias,
        evil.by_parameter.assign_coords(parameter=names),
        evil.table.assign_coords(parameter=names),
        {},
        {**evil.attrs, EVIL: EVIL},
    )
    shown = {
        "pair": PAIR,
        "line": {"one": LINE},
        "video": {"one": VIDEO},
        "evil": {EVIL: evil},
        "large": {"one": allocation((3, 70, 90))},
    }
    for name, results in shown.items():
        write_report(folder / f"{name}.html", results, title=EVIL if name == "evil" else name)
    return {name: folder / f"{name}.html" for name in shown}


@pytest.fixture
def visit(browser, pages) -> Iterator[Open]:
    """Open a report; whatever it says on the console or asks of the network fails the test."""
    opened, said = [], []

    def opener(name: str, **settings: Any) -> Any:
        context = new_context(browser, **settings)
        opened.append(context)
        page = context.new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(("data:", address)) else said.append(request.url)
        )
        page.goto(address)
        return page

    yield opener
    for context in opened:
        context.close()
    assert said == []


def with_errors() -> Allocation:
    a = allocation(seed=1)
    errors = np.random.default_rng(2).random(a.capacity.shape)
    return Allocation(
        a.capacity.assign_coords(standard_error=(a.capacity.dims, errors)), a.bias, a.by_parameter, a.table
    )


PAIR = {"measured": allocation(seed=0), "predicted": with_errors()}
LINE = allocation((40,), ("lag",))
LINE = Allocation(
    LINE.capacity.assign_coords(lag=np.arange(40) * 2), LINE.bias, LINE.by_parameter,
    LINE.table.assign_coords(lag=np.arange(40) * 2),
)  # fmt: skip
VIDEO = allocation((2, 11, 6, 5), ("channel", "depth", "row", "column"))


def point(page: Any, row: float, column: float, rows: int, columns: int, canvas: int = 0) -> None:
    """Put the pointer on the middle of a cell."""
    page.locator("canvas").nth(canvas).scroll_into_view_if_needed()
    box = page.locator("canvas").nth(canvas).bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)


def readout(page: Any) -> str:
    return re.sub(r"\s+", " ", page.locator(".readout").first.inner_text()).strip()


def shown_for(name: str, text: str) -> float:
    """The number that the readout gives for a result."""
    return float(re.search(rf"{name} ([−\d.,]+)", text)[1].replace("−", "-").replace(",", ""))


def pixels(page: Any, canvas: int = 0) -> str:
    return page.locator("canvas").nth(canvas).evaluate("canvas => canvas.toDataURL()")


def test_pointing_at_a_pixel_reads_its_values(visit):
    page = visit("pair")
    a, b = (PAIR[name].capacity.sum("channel") for name in PAIR)
    for row, column in ((0, 0), (2, 3), (3, 5)):
        point(page, row, column, 4, 6, canvas=1)
        text = readout(page)
        assert text.startswith(f"row {row}, column {column} ")
        assert shown_for("measured", text) == float(a[row, column])
        assert shown_for("predicted", text) == float(b[row, column])
        assert shown_for("difference", text.replace("+", "")) == float(b[row, column] - a[row, column])
        error = PAIR["predicted"].capacity.coords["standard_error"][0, row, column]
        assert f"± {exact(float(error))}" in text


def test_arrow_keys_move_through_the_map(visit):
    page = visit("pair")
    values = PAIR["measured"].capacity.sum("channel")
    canvas = page.locator("canvas").first
    canvas.focus()
    row, column = np.unravel_index(int(values.argmax(...)["row"]) * 6 + int(values.argmax(...)["column"]), (4, 6))
    assert readout(page).startswith(f"row {row}, column {column} ")  # focus starts at the largest
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    for _ in range(5):
        page.keyboard.press("ArrowUp")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    text = readout(page)
    assert text.startswith("row 2, column 1 ")
    assert shown_for("measured", text) == float(values[2, 1])
    page.keyboard.press("End")
    assert readout(page).startswith("row 2, column 5 ")


def test_the_tab_key_goes_through_all_that_can_be_used_and_shows_where_it_is(visit):
    page = visit("pair")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if reached[-1] == "CANVAS":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached[0] == "skip"
    order = [reached.index(name) for name in ("A", "INPUT", "SELECT", "CANVAS", "scroll", "pick")]
    assert order == sorted(order)


@pytest.mark.parametrize("way", ["list", "table"])
def test_choosing_a_layer_shows_its_share(visit, way):
    page = visit("pair")
    before = pixels(page)
    if way == "list":
        page.get_by_label("Layer").select_option(label="conv.bias (" + page_total("conv.bias") + ")")
    else:
        page.get_by_role("button", name="conv.bias").click()
        assert page.get_by_role("button", name="conv.bias").get_attribute("aria-pressed") == "true"
        assert page.get_by_label("Layer").input_value() == "1"
    assert pixels(page) != before
    text = readout(page)
    assert text.startswith("conv.bias")
    assert shown_for("measured", text) == float(PAIR["measured"].by_parameter[1])
    point(page, 1, 2, 4, 6)
    text = readout(page)
    for name, a in PAIR.items():
        assert shown_for(name, text) == float(a.table[1, 0, 1, 2])
    assert "±" not in text  # errors are known of the sum alone
    page.get_by_label("Layer").select_option(value="")
    assert shown_for("measured", readout(page)) == float(PAIR["measured"].capacity[0, 1, 2])


def page_total(name: str) -> str:
    return exact(float(PAIR["measured"].by_parameter.sel(parameter=name)))


def test_the_canvas_shows_the_colours_of_the_values(visit):
    """The cell of the largest value has viridis' last colour, in a corner that the numbers leave free."""
    page = visit("pair")
    top = max(float(a.capacity.max()) for a in PAIR.values())
    name = next(k for k, a in enumerate(PAIR.values()) if float(a.capacity.max()) == top)
    flat = list(PAIR.values())[name].capacity[0].to_numpy()
    row, column = np.unravel_index(flat.argmax(), flat.shape)
    colour = (
        page.locator("canvas")
        .nth(name)
        .evaluate(
            "(c, [x, y]) => [...c.getContext('2d').getImageData(c.width * x, c.height * y, 1, 1).data]",
            [(column + 0.1) / 6, (row + 0.1) / 4],
        )
    )
    assert colour == [0xFD, 0xE7, 0x25, 255]


def test_channels_and_slices(visit):
    page = visit("video")
    point(page, 4, 2, 6, 5)
    assert shown_for("one", readout(page)) == float(VIDEO.capacity[:, :, 4, 2].sum())
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "depth 3"
    text = readout(page)
    one, two = (float(VIDEO.capacity[k, 3, 4, 2]) for k in range(2))
    assert shown_for("one", text) == one + two
    assert f"= {exact(one)} + {exact(two)}" in text
    page.get_by_label("channel").select_option("1")
    assert shown_for("one", readout(page)) == two
    page.get_by_label("Layer").select_option("2")
    assert shown_for("one", readout(page)) == float(VIDEO.table[2, 1, 3, 4, 2])


def test_a_sequence_is_read_by_its_coordinates(visit):
    page = visit("line")
    point(page, 0, 7, 1, 40)
    text = readout(page)
    assert text.startswith("lag 14 ")
    assert shown_for("one", text) == float(LINE.capacity[7])
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    assert shown_for("one", readout(page)) == float(LINE.capacity[8])


def test_tables_sort_by_their_columns(visit):
    page = visit("pair")
    names = lambda: page.locator(".regions tbody th").all_inner_texts()  # noqa: E731
    before = names()
    head = page.locator(".regions thead th").nth(1)
    a = PAIR["measured"].by_parameter.sortby(PAIR["measured"].by_parameter)
    rising = list(map(str, a["parameter"].values))
    for way, expected in (("descending", rising[::-1]), ("ascending", rising), (None, before)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == way
        assert names() == expected
    assert page.locator(".regions tfoot th").inner_text() == "all"


@pytest.mark.parametrize("name", ["pair", "line", "video", "evil", "large"])
def test_a_phone_needs_no_scrolling_sideways(visit, name):
    page = visit(name, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("canvas").first.tap()
    assert "Point at" not in readout(page)


def test_a_table_wider_than_the_page_says_so(visit):
    """It fades on the side on which it goes on, and a line before it says that it scrolls."""
    for width, wide in ((360, True), (1500, False)):
        page = visit("large", viewport={"width": width, "height": 700})
        box, hint = page.locator(".scroll:has(.regions)"), page.locator(".goes-on:has(+ .scroll .regions)")
        assert hint.is_visible() == wide
        assert ("more-right" in box.get_attribute("class")) == wide
    page = visit("large", viewport={"width": 360, "height": 700})
    page.locator(".scroll:has(.regions)").evaluate("box => (box.scrollLeft = box.scrollWidth)")
    page.locator(".scroll.more-left:not(.more-right)").wait_for()
    page = visit("large", viewport={"width": 1500, "height": 700})
    page.locator(".scroll:has(.regions)").evaluate("box => (box.style.maxHeight = '60px')")
    page.get_by_text("Scroll the table: it goes on below ↓").first.wait_for()


def test_the_page_takes_the_width_of_the_screen(visit):
    page = visit("pair", viewport={"width": 1800, "height": 900})
    assert page.locator("main").bounding_box()["width"] >= 1750


def test_dark_and_light_by_preference_and_by_choice(visit):
    ground = "getComputedStyle(document.body).backgroundColor"
    page = visit("pair", color_scheme="dark")
    assert page.evaluate(ground) == "rgb(20, 24, 29)"
    page.get_by_text("Light", exact=True).click()
    assert page.evaluate(ground) == "rgb(251, 251, 249)"
    page.get_by_text("Auto", exact=True).click()
    assert page.evaluate(ground) == "rgb(20, 24, 29)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == "rgb(251, 251, 249)"


def test_a_line_takes_the_colours_of_the_theme(visit):
    page = visit("line")
    before = pixels(page)
    page.get_by_text("Dark", exact=True).click()
    assert pixels(page) != before


def test_nothing_moves(visit):
    page = visit("pair", reduced_motion="reduce")
    moving = "[...document.querySelectorAll('*')].filter(e => e.getAnimations().length || " \
             "parseFloat(getComputedStyle(e).transitionDuration) > 0).length"  # fmt: skip
    assert page.evaluate(moving) == 0
    point(page, 0, 0, 4, 6)
    assert readout(page).startswith("row 0, column 0")


def test_paper_holds_all_maps_and_no_controls(visit):
    page = visit("pair", color_scheme="dark")
    page.emulate_media(media="print")
    for gone in ("canvas", ".controls", ".readout", "header"):
        assert not page.locator(gone).first.is_visible()
    stills = page.locator(".still svg")
    assert stills.count() == 4
    assert all(stills.nth(k).is_visible() for k in range(4))
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 36, 48)"  # dark on light
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 within Chromium's margins
    assert page.evaluate("document.documentElement.scrollWidth") == 718
    assert len(page.pdf(format="A4")) > 10_000


@pytest.mark.parametrize("name", ["pair", "line", "large"])
def test_without_a_script_maps_and_tables_are_there(visit, name):
    page = visit(name, java_script_enabled=False)
    assert page.locator("canvas").count() == 0
    assert not page.locator(".controls").first.is_visible()
    assert not page.locator(".theme").is_visible()
    box = page.locator(".still svg").first.bounding_box()
    assert box["width"] > 150
    assert box["height"] > 50
    assert page.locator(".regions").is_visible()
    assert page.locator(".settings table").first.is_visible()


def test_hostile_names_are_text(visit):
    page = visit("evil")
    assert page.title() == EVIL
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    page.get_by_label("Layer").select_option("0")
    assert readout(page).startswith(EVIL)
    assert page.locator(".notes li").inner_text() == f"{EVIL}."
    assert page.get_by_role("button", name=EVIL).count() == 1


def test_no_other_script_could_run_nor_anything_be_fetched(browser, pages):
    """The policy refuses what would be put into the page."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(pages["pair"].as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.bad = 1'}))"
    )
    failed = page.evaluate("fetch('https://example.org/').then(() => false, () => true)")
    assert failed
    assert page.evaluate("window.bad === undefined")
    assert sum("Content Security Policy" in line for line in said) >= 2
    page.close()


def test_a_screen_reader_hears_the_map_and_the_readout(visit):
    page = visit("pair")
    tree = page.locator("main").aria_snapshot()
    assert re.search(
        r'application "measured: [\d.]+ parameters over 4 rows × 6 columns; most for each pixel in the region', tree
    )
    assert "status" in tree
    assert 'combobox "Layer"' in tree
    assert 'table "Capacity by parameter tensor and region of the input"' in tree
    assert 'columnheader "constant input"' in tree
    assert 'rowheader "conv.weight"' in tree
    assert page.locator("th:not([scope])").count() == 0


def test_large_maps_are_sharp_and_right(visit):
    page = visit("large")
    large = xr.DataArray(allocation((3, 70, 90)).capacity)
    point(page, 33, 71, 70, 90)
    text = readout(page)
    assert text.startswith("row 33, column 71 ")
    assert shown_for("one", text) == float(large[:, 33, 71].sum())
    assert page.locator(".still image").count() == 1  # one picture, not a rectangle for each pixel
