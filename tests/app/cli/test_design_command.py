"""`capalloc design`: designs by target on the command line, and what the page starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from capalloc.app.cli import design_command
from capalloc.app.design import Design, code, find_designs, search
from capalloc.app.design.query import from_query
from commands import misused, refused, run


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for name, values in {"KERNELS": (3, 5), "DILATIONS": (1, 2), "CYCLES": (1, 2), "STRIDES": ((1, 1), (2, 1))}.items():
        monkeypatch.setattr(find_designs, name, values)


TARGET = ("--field", "17", "--flat", "9", "--max-parameters", "2k", "--set", "ndim=1", "--set", "size=40")


def test_designs_and_code_are_those_of_the_search():
    result = run("design", *TARGET, "--most", "3", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    wanted = search(17, flat=9, max_params=2000, like=Design(ndim=1, size=40), most=3)
    assert [Design(**found["settings"]) for found in told["designs"]] == [reading.design for reading in wanted]
    assert [from_query(found["query"])[0] for found in told["designs"]] == [reading.design for reading in wanted]
    assert told["code"] == code(wanted[0].design)


def test_the_table_ends_in_code_that_is_python(folder):
    result = run("design", *TARGET)
    assert result.exit_code == 0, result.output
    shown, _, text = result.stdout.partition("PyTorch code of the first:\n\n")
    assert "parameters" in shown
    compile(text, "shown", "exec")
    assert run("design", *TARGET, "--out", "net.py").exit_code == 0
    assert Path("net.py").read_text(encoding="utf-8") == text


def test_the_page_starts_from_the_settings(monkeypatch):
    served: list[tuple] = []
    monkeypatch.setattr(design_command, "serve", lambda *given: served.append(given))
    assert run("design", "--set", "depth=3", "--set", "activation=gelu", "--no-browser", "--port", "0").exit_code == 0
    assert served == [(0, False, "depth=3&activation=gelu")]


def test_the_page_starts_near_to_a_model(monkeypatch, folder):
    served: list[tuple] = []
    monkeypatch.setattr(design_command, "serve", lambda *given: served.append(given))
    result = run("design", "factories:convs", "--shape", "1,24", "--set", "width=5", "--no-browser")
    assert result.exit_code == 0, result.output
    near, second = from_query(served[0][2])
    wanted = {"depth": 1, "kernel": 3, "width": 5, "ndim": 1, "size": 24, "residual": "none", "bias": True, "stride": 2}
    assert {name: getattr(near, name) for name in wanted} == wanted
    assert second is None
    assert "near to factories:convs: depth=1" in result.stderr
    assert "at least two convolutions" in refused("design", "factories:net", "--shape", "1,6,6", "--no-browser")


def test_the_page_starts_near_to_no_exported_program(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), path)
    said = misused("design", str(path), "--no-browser")
    assert "a design cannot start from a .pt2 file; name what makes the model" in said


@pytest.mark.parametrize(
    ("text", "number"), [("20000", 20_000), ("100k", 100_000), ("1.5M", 1_500_000), ("20,000", 20_000)]
)
def test_numbers_of_parameters(text, number):
    assert design_command.number(text) == number


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--arg", "width=3"), "--arg and --shape are of a model: name one"),
        (("--flat", "9", "--json"), "--flat, --json is of a search: say with --field"),
        (("--field", "2"), "field must lie from 3 to 512, got 2"),
        (("--field", "9", "--max-parameters", "many"), "--max-parameters must be a number such as 20000"),
        (("--field", "9", "--max-parameters", "0"), "--max-parameters must be a number such as 20000"),
        (("--field", "9", "--max-parameters", "2"), "--max-parameters = 2 are too few"),
        (("--field", "9", "--out", "net.txt"), "--out must end in .py"),
        (("--set", "depth"), "a setting must be name=value, got 'depth'"),
        (("--set", "depth=2", "--set", "depth=3"), "depth is set twice; keep one"),
        (("--set", "depth=999"), "depth must lie from 1 to 100, got 999"),
    ],
)
def test_values_that_cannot_be_are_refused(given, said):
    assert said in misused("design", *given)
