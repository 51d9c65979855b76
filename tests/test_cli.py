"""The command: its words, exit codes and errors."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import version

import pytest
from rich.console import Console
from typer.testing import CliRunner

import capalloc.cli
from allocations import allocation
from capalloc.cli import app, summary
from capalloc.demo import Demo

RUNNER = CliRunner()


def found(**changes: object) -> Demo:
    """What a demo could have found."""
    result = Demo(
        accuracy=0.967,
        num_hidden=16,
        measured=allocation(seed=0),
        predicted=allocation(seed=1, kind="propagated", unused_params=3),
        seconds={"train": 1.0, "measure": 20.25, "predict": 0.5},
    )
    return replace(result, **changes)


@pytest.fixture
def quick(monkeypatch):
    """A demo that finds the same at once."""
    seeds = []
    monkeypatch.setattr(capalloc.cli, "run_demo", lambda seed: seeds.append(seed) or found())
    return seeds


def failing(monkeypatch, error: BaseException) -> None:
    def fail(seed):
        raise error

    monkeypatch.setattr(capalloc.cli, "run_demo", fail)


def test_version():
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"capalloc {version('capalloc')}\n"


def test_help_lists_the_commands():
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("demo", "decoupling-study", "linear-study"):
        assert command in result.stdout


def test_no_command_shows_the_help():
    assert "demo" in RUNNER.invoke(app, []).output


def test_demo_writes_the_page_and_says_so(tmp_path, quick):
    page = tmp_path / "page.html"
    result = RUNNER.invoke(app, ["demo", "--out", str(page), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert quick == [3]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "page.html" in result.stdout
    assert os.listdir(tmp_path) == ["page.html"]


def test_summary_holds_every_number():
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary(found()))
    text = capture.get()
    a, b = found().measured, found().predicted
    for piece in (
        "200 parameters",
        "96.7%",
        f"{a.total:.2f}",
        f"{b.total:.2f}",
        "184",  # parameters - hidden channels
        f"{found().correlation:.3f}",
        f"{found().total_variation:.3f}",
        "20.2",
        "0.5",
    ):
        assert piece in text


def test_demo_refuses_a_missing_folder_before_it_works(tmp_path, quick):
    result = RUNNER.invoke(app, ["demo", "--out", str(tmp_path / "nowhere" / "page.html")])
    assert result.exit_code == 1
    assert quick == []
    assert result.stderr.startswith("capalloc: the folder ")
    assert result.stderr.count("\n") == 1


def test_demo_refuses_a_folder_in_place_of_a_file(tmp_path, quick):
    result = RUNNER.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "is a folder; give the name of a file" in result.stderr
    assert quick == []


def test_errors_are_one_line(monkeypatch):
    failing(monkeypatch, ValueError("inputs hold\n  NaN [red]or[/red] inf"))
    result = RUNNER.invoke(app, ["demo"])
    assert result.exit_code == 1
    assert result.stderr == "capalloc: inputs hold NaN [red]or[/red] inf\n"


def test_debug_shows_where_an_error_comes_from(monkeypatch):
    failing(monkeypatch, ValueError("inputs hold NaN"))
    result = RUNNER.invoke(app, ["--debug", "demo"])
    assert result.exit_code != 0
    assert isinstance(result.exception, ValueError)


def test_a_defect_is_not_dressed_up(monkeypatch):
    failing(monkeypatch, ZeroDivisionError("a defect"))
    assert isinstance(RUNNER.invoke(app, ["demo"]).exception, ZeroDivisionError)


@pytest.mark.parametrize("arguments", [["demo", "--seed", "-1"], ["demo", "--unknown"], ["unknown"]])
def test_wrong_usage_exits_with_2(arguments):
    assert RUNNER.invoke(app, arguments).exit_code == 2
