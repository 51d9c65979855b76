"""The design page in a real browser: controls, comparison, copying, and that nothing leaves this machine."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from browsing import new_context
from capalloc.app.design import Design, code, read, search
from capalloc.app.design.starts import STARTS

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("dash")
#: Longest wait for what the page is to show, in ms: it ends as soon as that is there, however busy the machine is.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from capalloc.app.design.dash_app import make_server
    from capalloc.app.design.server import bound

    with bound(0) as listening:
        server = make_server(listening)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.port}/"
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def context(browser: sync_api.Browser, address: str) -> sync_api.BrowserContext:
    """One for all pages, which then find plotly in its cache; they may use the clipboard."""
    found = new_context(browser, base_url=address, viewport={"width": 1300, "height": 900})
    found.grant_permissions(["clipboard-read", "clipboard-write"])
    found.set_default_timeout(PATIENCE)
    sync_api.expect.set_options(timeout=PATIENCE)
    return found


@pytest.fixture
def page(context: sync_api.BrowserContext, address: str) -> Iterator[sync_api.Page]:
    """A page; at the end no error was logged and every request went to the server."""
    found = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    found.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    found.on("websocket", lambda socket: asked.append(socket.url))
    yield found
    found.close()
    assert said == []
    assert asked
    assert {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {
        urlsplit(address).netloc
    }


def opened(page: sync_api.Page, query: str = "") -> sync_api.Page:
    page.goto(query or "/")
    page.wait_for_selector("#a-map .main-svg")
    page.wait_for_selector("#a-numbers td")
    page.wait_for_selector("#profile .scatterlayer .trace")  # the last that the server fills in, with the query
    return page


def expect_fact(page: sync_api.Page, name: str, value: str, design: str = "a") -> None:
    row = page.locator(f"#{design}-numbers tr", has=page.get_by_role("rowheader", name=name)).locator("td").first
    sync_api.expect(row).to_have_text(value)


def test_a_slider_moved_by_keys_changes_the_reading_and_the_address(page: sync_api.Page) -> None:
    opened(page)
    expect_fact(page, "Predicted capacity", f"{read(Design()).total:,}")
    slider = page.get_by_role("slider", name="Depth of design A")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    now = read(Design(depth=19))
    expect_fact(page, "Predicted capacity", f"{now.total:,}")
    expect_fact(page, "Total change T", f"{now.T:.3g}, {now.phase}")
    expect_fact(page, "Effective field", f"standard deviation {now.deviation:.3g}")
    sync_api.expect(page).to_have_url(re.compile(r"/\?depth=19$"))
    assert "ms on the server" in page.inner_text("#a-time")


def test_an_address_opens_two_designs_and_compares_them_with_a_name_for_every_control(page: sync_api.Page) -> None:
    opened(page, "/?residual=none&depth=30&b.depth=30&b.activation=gelu")
    second = read(Design(depth=30, activation="gelu"))
    expect_fact(page, "Gradient correlation", f"{second.correlation:.3g} at independent inputs", "b")
    expect_fact(page, "Total change T", "no skip connections")
    for figure in ("profile", "gradient"):
        sync_api.expect(page.locator(f"#{figure} .scatterlayer .trace")).to_have_count(2)
    assert page.locator("#a-residual").inner_text().startswith("none")
    unnamed = ", ".join(f"[data-label] {part}:not([aria-label])" for part in ("[role=slider]", "input[type=number]"))
    sync_api.expect(page.locator(unnamed)).to_have_count(0)
    for role in ("slider", "spinbutton"):
        names = [page.get_by_role(role).nth(k).get_attribute("aria-label") for k in range(24)]
        assert all(names)
        assert len(set(names)) == 24  # twelve for each design, the size of the other number of axes being hidden
    for activation in ("relu", "gelu"):
        assert page.get_by_role("button", name=f"Activation {activation}").count() == 1


def test_a_bad_address_is_reported_and_a_number_out_of_range_beside_its_field(page: sync_api.Page) -> None:
    opened(page, "/?depth=1000")
    assert page.inner_text("#address-error").startswith("depth must lie from 1 to 100, got 1000")
    expect_fact(page, "Parameters", f"{Design().num_params:,}")
    number = page.get_by_role("spinbutton", name="Depth of design A")
    told = page.locator("#a-depth-field .range")
    number.press("ControlOrMeta+a")
    number.press_sequentially("59")
    number.press("Enter")
    expect_fact(page, "Predicted capacity", f"{read(Design(depth=59)).total:,}")
    number.press_sequentially("9")
    sync_api.expect(told).to_have_text("Refused: a whole number from 1 to 100. Numbers are still those of the slider.")
    number.press("Enter")
    page.get_by_text("Logarithmic colours").click()  # which reads the design anew
    page.wait_for_selector("#a-map .heatmaplayer")
    expect_fact(page, "Predicted capacity", f"{read(Design(depth=59)).total:,}")
    assert page.get_by_role("slider", name="Depth of design A").get_attribute("aria-valuenow") == "59"
    assert number.input_value() == "599"
    number.fill("20")
    sync_api.expect(told).not_to_be_visible()
    expect_fact(page, "Predicted capacity", f"{read(Design(depth=20)).total:,}")


def test_a_second_design_is_shown_and_an_architecture_started_from_when_asked_for(page: sync_api.Page) -> None:
    opened(page)
    assert not page.locator("#b-card").is_visible()
    page.get_by_text("Compare with a second design").click()
    expect_fact(page, "Parameters", f"{Design().num_params:,}", "b")
    sync_api.expect(page).to_have_url(re.compile(r"/\?b\.depth=16$"))
    page.locator("#b-ndim").get_by_text("1-D").click()
    one = read(Design(ndim=1, size=129))
    expect_fact(page, "Predicted capacity", f"{one.total:,}", "b")
    page.locator("#start").click()
    page.get_by_text("wavenet").click()
    expect_fact(page, "Parameters", f"{STARTS['wavenet'].num_params:,}")


def test_code_is_copied_and_saved_and_so_are_pictures(page: sync_api.Page) -> None:
    opened(page, "/?depth=7&size=12&stride=2&activation=tanh")
    wanted = code(Design(depth=7, size=12, stride=2, activation="tanh"))
    page.get_by_text("PyTorch code").first.click()
    page.locator("#a-copy").click()
    sync_api.expect(page.locator("#a-copied")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == wanted
    assert page.locator("#a-code").text_content() == wanted
    with page.expect_download() as saved:
        page.locator("#a-save").click()
    assert saved.value.suggested_filename == "network.py"
    assert saved.value.path().read_text(encoding="utf-8") == wanted
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<svg")):
        with page.expect_download() as saved:
            page.locator(f"#a-{kind}").click()
        assert saved.value.suggested_filename == f"capacity.{kind}"
        assert saved.value.path().read_bytes().startswith(begins)


def test_settings_that_do_not_go_together_and_wrong_free_widths_are_refused(page: sync_api.Page) -> None:
    opened(page, "/?depth=4&stride=2&strided=4&size=16")
    slider = page.get_by_role("slider", name="Depth of design A")
    slider.focus()
    slider.press("ArrowLeft")
    refused = page.locator("#a-strided-refused")
    sync_api.expect(refused).to_contain_text("strided must be at most the depth, 3, got 4")
    sync_api.expect(page.locator("#a-error")).to_contain_text("Shown is the design before")
    slider.press("ArrowRight")
    sync_api.expect(page.locator("#a-error")).to_have_text("")
    sync_api.expect(refused).to_have_text("")
    widths = page.get_by_role("textbox", name="Free widths of design A")
    widths.fill("4, 4, 8, 8")
    widths.press("Enter")
    now = Design(depth=4, stride=2, strided=4, size=16, stages=(4, 4, 8, 8))
    expect_fact(page, "Parameters", f"{now.num_params:,}")
    sync_api.expect(page).to_have_url(re.compile("stages=4,4,8,8"))
    widths.fill("4, 8, 9")
    widths.press("Enter")
    sync_api.expect(page.locator("#a-stages-refused")).to_contain_text(
        "stages must be 4 widths, one for each resolution"
    )
    expect_fact(page, "Parameters", f"{now.num_params:,}")


def test_a_design_is_found_by_its_target_and_opened(page: sync_api.Page) -> None:
    opened(page, "/?ndim=1&size=40&b.depth=3")
    page.get_by_text("Find a design by its target").click()
    for name, value in (("field", "9"), ("flat", "5"), ("params", "2000")):
        page.locator(f"#find-{name}").fill(value)
    page.locator("#find").click()
    page.wait_for_selector("#found table")
    best = search(9, flat=5, max_params=2000, like=Design(ndim=1, size=40), most=1)[0]
    sync_api.expect(page.locator("#found tbody tr").first).to_contain_text(f"{best.num_params:,}")
    page.get_by_text("open as A").first.click()
    expect_fact(page, "Parameters", f"{best.num_params:,}")
    expect_fact(page, "Parameters", f"{Design(depth=3).num_params:,}", "b")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_the_dark_and_in_the_light(page: sync_api.Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, "/?b.depth=20&ndim=1&size=100")
    page.wait_for_selector("#b-map .main-svg")
    page.wait_for_selector("#a-map text")
    for _ in range(
        2400
    ):  # the plots find their width; asked from outside, as the page's policy lets no script be evaluated
        if page.evaluate("document.documentElement.scrollWidth") == 390:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('#a-map text')).fill")
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
    assert (light[0] > 600 and light[1] < 200) if scheme == "light" else (light[0] < 200 and light[1] > 600)
