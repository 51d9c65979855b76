"""Blocks of README and docs run and print what the page shows; links lead somewhere; every public name is listed."""

from __future__ import annotations

import contextlib
import io
import pkgutil
import re
import runpy
import shlex
import types
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from typer.testing import CliRunner

import capalloc
from capalloc import architectures
from capalloc.app.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"(?P<why><!-- not run: .+? -->\s*)?^```(?P<kind>python|sh)\n(?P<code>.*?)^```$", re.M | re.S)
OUTPUT = re.compile(r"\n\n```text\n(.*?)^```$", re.M | re.S)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
#: Files and names that prose mentions; files stand in the repository, in `src/capalloc` or by the page.
FILE = re.compile(r"(?<![\w/.<-])((?:[\w-]+/)+[\w-]+\.(?:py|pyi|md|png))\b")
DOTTED = re.compile(r"(?<![\w/.-])capalloc(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\(([\w./-]+\.\w+)(?:#[^)]*)?\)")
NUMBER = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)")
WITHOUT = re.compile(NUMBER.pattern.replace("(", "(?:", 1))
#: Shell commands that are shown and not run, and why.
SETUP = {
    "make": "makes the environment that this test runs in",
    "pip": "changes the environment that this test runs in",
    "torchrun": "starts processes; tests/test_distributed.py runs ranks",
}
#: Blocks with `<!-- not run: why -->` in front of them, on all pages together.
NOT_RUN = 0
TOLERANCE = 0.02  # of numbers in shown output: sums differ from machine to machine
TRAINED = 0.1  # of numbers that scripts show of networks that they train


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty folder, seeded draws and pictures without a screen; all as before afterwards."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]), matplotlib.rc_context({"backend": "agg"}):
        torch.manual_seed(0)
        yield tmp_path


def run_python(code: str, names: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def run_script(script: Path) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()


def run_shell(code: str) -> str:
    """What `capalloc` prints, run in this process; what SETUP names is left out."""
    printed = ""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or ["make"]
        if program == "python":
            printed += run_script(ROOT / arguments[0])
        elif program not in SETUP:
            assert program == "capalloc", f"{line!r}: put '<!-- not run: why -->' in front of the block"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
            printed += result.output
    return printed


def check_output(shown: str, printed: str, tolerance: float = TOLERANCE) -> None:
    """The same words, with numbers to a tolerance or their last digit; "..." stands for anything."""
    match = re.fullmatch(r"\s*" + r"\s+".join(map(any_number, shown.split())) + r"\s*", printed, re.S)
    assert match, f"shown:\n{shown}\nprinted:\n{printed}"
    for told, found in zip(NUMBER.findall(shown), match.groups(), strict=True):
        last_digit = 10.0 ** -len(told.partition(".")[2])
        assert number(found) == pytest.approx(number(told), rel=tolerance, abs=last_digit), f"{told}\n{printed}"


def any_number(word: str) -> str:
    """A pattern of the word with other numbers in it."""
    return ".*?" if word == "..." else NUMBER.pattern.join(map(re.escape, WITHOUT.split(word)))


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(read(page))], ids=name)
def test_blocks_run_in_order(page, scratch):
    """Blocks of a page share their names and their folder, as for a reader who types them in one session."""
    text = read(page)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        if block["why"]:
            continue
        line = text[: block.start("code")].count("\n")
        if block["kind"] == "sh":
            printed = run_shell(block["code"])
        else:
            printed = run_python(compile("\n" * line + block["code"], str(page), "exec"), names)
        if shown := OUTPUT.match(text, block.end()):
            check_output(shown[1], printed, TRAINED if block["code"].startswith("python ") else TOLERANCE)


def test_output_that_differs_is_told():
    check_output("total 30.1, ...\n  a   2", "total 30.14, more of it\na 2\n")
    for printed in ("total 31, x\na 2", "total 30.1, x\nb 2", "total 30.1, x\na 2 3"):
        with pytest.raises(AssertionError):
            check_output("total 30.1, ...\n  a   2", printed)


def test_blocks_that_do_not_run_are_counted():
    """A block is left out with a reason in front of it, or because all of its commands set something up."""
    left_out = [name(page) for page in PAGES for block in BLOCK.finditer(read(page)) if block["why"]]
    assert len(left_out) == NOT_RUN, left_out


def told(example: Path) -> bool:
    """Whether a page shows what the script prints, and so has it run."""
    return any(f"```sh\npython {name(example)}\n" in read(page) for page in PAGES)


@pytest.mark.parametrize("example", [path for path in sorted(ROOT.glob("examples/*.py")) if not told(path)], ids=name)
def test_examples_run(example, scratch):
    assert run_script(example)


@pytest.mark.parametrize("script", sorted(ROOT.glob("docs/pictures/*.py")), ids=name)
def test_scripts_of_pictures_find_what_they_import(script):
    assert runpy.run_path(str(script), run_name="imported")["__doc__"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_local_links_lead_somewhere(page):
    for target in LINK.findall(read(page)):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}, which does not exist"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_files_names_and_targets_that_prose_mentions_exist(page):
    """The changelog alone tells of what was."""
    text = read(page)
    for path in FILE.findall(text):
        places = (ROOT, ROOT / "src/capalloc", page.parent)
        assert any((place / path).exists() for place in places), f"{name(page)} speaks of {path}, which does not exist"
    if page.name == "how-it-works.md":
        for path in re.findall(r"`([\w-]+/[\w/-]+)`", text):
            assert (ROOT / "src/capalloc" / path).exists() or (ROOT / path).exists(), path
    for dotted in DOTTED.findall(text):
        assert pkgutil.resolve_name(dotted) is not None, dotted
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:", read(ROOT / "Makefile"), re.M), f"{name(page)} speaks of make {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON.search(read(page))], ids=name)
def test_blocks_import_public_paths(page):
    for block in PYTHON.findall(read(page)):
        assert not re.search(r"capalloc[\w.]*\._[a-z]", block), f"{name(page)}: {block}"


def test_every_room_of_the_house_is_described():
    page = read(ROOT / "docs/how-it-works.md")
    rooms = {
        path.stem
        for path in (ROOT / "src/capalloc").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    missing = [room for room in rooms - {"__init__"} if not re.search(rf"^\|.*`{room}`.*\|", page, re.M)]
    assert not missing, f"the table of docs/how-it-works.md lacks {missing}"


def test_readme_starts_with_the_two_commands():
    first = re.search(r"^```sh\n(.*?)^```$", read(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]


def test_the_reference_has_every_public_name():
    """A module's page stands for its names; a name that two modules hand on is listed once."""
    paths = [path for page in ROOT.glob("docs/reference/*.md") for path in re.findall(r"^::: (\S+)$", read(page), re.M)]
    assert not [path for path in paths if "._" in path], "a reader imports from public paths"
    listed = [value for path in paths for value in names_of(pkgutil.resolve_name(path), path).values()]
    public = {path: value for name in dir(capalloc) for path, value in names_of(getattr(capalloc, name), name).items()}
    missing = [path for path, value in public.items() if not any(value is found for found in listed)]
    assert not missing, f"add '::: capalloc.{missing[0]}' to a page of docs/reference, and so for {missing}"


def names_of(value: object, path: str) -> dict[str, object]:
    """The names that a module hands on; a module that lists none and any other object stand for themselves."""
    if isinstance(value, types.ModuleType) and hasattr(value, "__all__"):
        return {f"{path}.{name}": getattr(value, name) for name in value.__all__}
    return {path: value}


def test_the_gallery_shows_eight_architectures_or_more():
    shown = re.findall(r"\]\(pictures/gallery/([\w-]+)\.png\)", read(ROOT / "docs/gallery.md"))
    assert len(shown) >= 8
    assert set(shown) <= set(architectures.names())
    assert set(shown) == {path.stem for path in ROOT.glob("docs/pictures/gallery/*.png")}
