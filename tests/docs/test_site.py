"""The documentation site: it builds without a warning, and asks nothing of any other host."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import new_context

ROOT = Path(__file__).parents[2]
#: What the site is made of.
SOURCES = ("zensical.toml", "docs", "examples", "benchmarks", *(path.name for path in ROOT.glob("*.md")))
#: What a page fetches by itself; links that a reader follows are none of it.
FETCHED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"'\s>]+)|<link[^>]*\shref=[\"']?([^\"'\s>]+)")

markdown = pytest.importorskip("markdown", reason="needs pip install 'capalloc[docs]'")
pytest.importorskip("zensical", reason="needs pip install 'capalloc[docs]'")
pytest.importorskip("mkdocstrings", reason="needs pip install 'capalloc[docs]'")
pytest.importorskip("latex2mathml", reason="needs pip install 'capalloc[docs]'")
site_markdown = pytest.importorskip("docs.site_markdown", reason="needs pip install 'capalloc[docs]'")


def copy_sources(folder: Path) -> None:
    for name in SOURCES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "src").symlink_to(ROOT / "src")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what `make docs` runs, in a copy of the sources."""
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The site, built once; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    copy_sources(folder)
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.parametrize(
    ("stray", "why"),
    [
        ("[x](nowhere.md)", "page does not exist"),
        ("[x](theory.md#none)", "anchor"),
        ("::: capalloc.none", "Could not collect 'capalloc.none'"),
        ("$\\kappa \\nosuch$", "no MathML for \\nosuch in the formula \\kappa \\nosuch"),
    ],
)
def test_a_page_that_points_nowhere_stops_the_build(tmp_path, stray, why):
    copy_sources(tmp_path)
    for page in (tmp_path / "docs").rglob("*.md"):
        page.write_text("# A page\n", encoding="utf-8")
    (tmp_path / "docs/limits.md").write_text(f"# Limits\n\n{stray}\n", encoding="utf-8")
    done = build(tmp_path)
    assert done.returncode != 0
    assert why in done.stdout + done.stderr


def test_every_page_has_its_place_in_the_navigation():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(pages_in(nav)) == sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")
    )


def pages_in(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_in(entry)


def test_every_page_of_the_sources_is_there(built):
    for source in [*ROOT.glob("docs/**/*.md")]:
        assert (built / source.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), source


def test_links_between_pages_lead_somewhere(built):
    """The build checks links of docs/, and not those of files that pages include."""
    for page in built.rglob("*.html"):
        for target in re.findall(r'<a [^>]*href="([^"#:]+)(?:#[^"]*)?"', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pages_fetch_their_own_files_alone(built):
    for page in built.rglob("*.html"):
        for pair in FETCHED.findall(page.read_text(encoding="utf-8")):
            target = pair[0] or pair[1]
            assert not re.match(r"(https?:)?//", target), f"{page.name} fetches {target}"


def test_text_with_angle_brackets_and_underscores_stays_whole():
    page = markdown.Markdown(extensions=["docs.site_markdown"]).convert(
        "<a, b> of (P)_(t, t), for $5 or `$x$`, is $x_i$"
    )
    assert page.startswith("<p>&lt;a, b&gt; of (P)_(t, t), for $5 or <code>$x$</code>, is ")
    assert page.count("<math") == 1


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("0.51 ± 0.02", "whole"),
        ("**94.4 ± 0.2** !", "whole"),
        ("32 x 1 x 28 x 28", "whole"),
        ("6e-02", "whole"),
        ("7.2 s", "whole"),
        ("3 passes", "whole"),
        ("dense", None),
        ("", None),
        ("`x` of 3", None),
        ("super-resolution", "words"),
        ("a limit that is told in a sentence of its own, which is wrapped", "prose"),
    ],
)
def test_cells_of_numbers_stay_on_one_line_and_words_keep_some_width(cell, kind):
    page = markdown.Markdown(extensions=["docs.site_markdown", "tables", "md_in_html"]).convert(
        f"|a|b|\n|-|-|\n|x|{cell}|"
    )
    assert re.findall(r'<td(?: class="(\w+)")?>', page) == ["", kind or ""]


def test_formulas_and_pictures_are_drawn_and_none_is_left_as_it_was_written(built):
    drawn = 0
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        drawn += text.count("<math ")
        prose = re.sub(r"<(code|script|style|textarea)\b.*?</\1>", "", text, flags=re.S)
        assert "$" not in prose, f"{page.name}: {prose[prose.index('$') - 80 :][:160]}"
        assert not re.search(r"language-math|<code>math\s*\\", text), page.name
        assert "&lt;img" not in prose, f"{page.name} shows HTML that it was to draw"
        shown = re.sub(r"<math\b.*?</math>|<[^>]+>", "", prose, flags=re.S)
        bare = re.search(r".{0,30}(?:\w\^-?[\w(]|\bsqrt\().{0,20}", shown)
        assert bare is None, f"{page.name}: {bare[0]}"
    assert drawn > 500
    assert (built / "reference" / "capacity.html").read_text(encoding="utf-8").count("<math ") > 30


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("kappa_i = trace(G^+ M_i)", r"\kappa_i = \mathrm{trace}(G^+ M_i)"),
        ("[G^(+1/2) M]_(theta, theta)", r"[G^{+1/2} M]_{\theta, \theta}"),
        ("w_jk'^2 e_k' / sum_k' A^(l)", r"w_{j k'}^2 e_{k'} / \sum_{k'} A^{(l)}"),
        ("<prod_l (1 - d_l)> ~ S_|i-j|", r"\langle \prod_l (1 - d_l) \rangle \sim S_{\lvert i-j \rvert}"),
        ("lambda = branch energy / sqrt(L x 2)", r"\lambda =\text{branch energy}/ \sqrt{L \times 2}"),
        ("P(Z_0 = i | path uses theta) <= 1", r"P(Z_0 = i |\text{ path uses }\theta) \le 1"),
        ("g_o = delta_o (x) h ... r^-1/2", r"g_o = \delta_o \otimes h \dots r^{-1/2}"),
        ("log|theta| / sqrt(depth) E_rows", r"\log \lvert \theta \rvert / \sqrt{\text{depth}} E_{\text{rows}}"),
        (r"\kappa_i + x", r"\kappa_i + x"),
    ],
)
def test_a_formula_of_a_docstring_is_drawn_as_its_latex(written, meant):
    drawn, same = (
        re.sub(r"<mrow>((?:<m[ion]>[^<]*</m[ion]>)?)</mrow>", r"\1", site_markdown.mathml(formula, "inline"))
        for formula in (written, meant)
    )
    assert drawn == same


@pytest.fixture
def tab(browser):
    """A page of the browser, with what it asked for and the errors it met."""
    context = new_context(browser)
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("response", lambda response: page.errors.append(response.url) if response.status >= 400 else None)
    yield page
    context.close()


def check_search(tab, home: str) -> None:
    """The search finds the ridge, and nothing was asked of another host."""
    tab.goto(home + "index.html")
    tab.click(".md-search__button")
    tab.keyboard.type("ridge_from_noise")
    tab.wait_for_selector("a[href*='capalloc.solvers.ridge_from_noise']")
    assert not tab.errors
    assert [url for url in tab.asked if not url.startswith((home, "data:", "blob:"))] == []


def test_a_browser_asks_nothing_of_other_hosts_and_finds_no_error(built, tab):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    try:
        pages = sorted(page for page in built.rglob("*.html") if page.name != "404.html")
        for page in pages[::3]:  # what makes requests and runs is one theme's
            tab.goto(home + page.relative_to(built).as_posix(), wait_until="load")
        check_search(tab, home)
    finally:
        server.shutdown()


def test_the_site_is_searched_from_a_disk(built, tab):
    check_search(tab, f"{built.as_uri()}/")


@pytest.mark.parametrize("stray", ["nowhere.html", "no/such/page.html"])
def test_an_address_without_a_page_leads_home_below_any_path(built, browser, stray):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/site/"
    context = new_context(browser)
    try:
        page = context.new_page()
        assert page.goto(home + stray).status == 404
        page.wait_for_function("document.querySelector('a').href.endsWith('/site/index.html')")
        page.click("a")
        page.wait_for_selector(".md-search__button")
        assert page.url == f"{home}index.html"
    finally:
        context.close()
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as hosts of sites do, with the site's own page for what is not there, and says nothing."""

    def send_error(self, code: int, *_: object, **__: object) -> None:
        """Answer with the site's page."""
        body = next(Path(self.directory).rglob("404.html")).read_bytes()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
