"""`capalloc propagate`, `measure` and `receptive-field`: what they take, write and refuse."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import capalloc
import capalloc.commands
from allocations import allocation
from capalloc.cli import app
from capalloc.commands import summary
from capalloc.model_source import read_array, read_model

RUNNER = CliRunner()
FACTORIES = """
import torch
from torch import nn

def net(channels=2, act="ReLU"):
    flat = channels * 16
    layers = [nn.Conv2d(1, channels, 3, bias=False), getattr(nn, act)(), nn.Flatten(), nn.Linear(flat, 2, bias=False)]
    return nn.Sequential(*layers)

def convs():
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 1, 3, stride=2))

class Holder:
    double = staticmethod(lambda: net().double())

made = net()
number = 3

def nothing():
    return number
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of factories, where the command is run."""
    (tmp_path / "factories.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("factories", None)


def run(*arguments: str):
    return RUNNER.invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """The one line that a command refuses its arguments with."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("capalloc: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_propagate_prints_and_writes_what_the_function_returns(folder):
    result = run("propagate", "factories:net", "--arg", "channels=3", "--shape", "1,6,6", "--out", "result.nc")
    assert result.exit_code == 0, result.output
    written = capalloc.Allocation.load("result.nc")
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = capalloc.propagate(read_model("factories:net", ["channels=3"]), x)
    np.testing.assert_allclose(written.capacity, expected.capacity)
    for piece in ("propagated capacity, 123 parameters", "3.weight", f"{expected.total:.2f}", "symmetries"):
        assert piece in result.stdout
    assert "wrote result.nc" in result.stdout
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["factories.py", "result.nc"]


def test_propagate_reads_a_program(folder):
    model = read_model("factories:net").eval()
    torch.export.save(torch.export.export(model, (torch.randn(4, 1, 6, 6),)), "net.pt2")
    live, saved = (
        run("propagate", source, "--shape", "1,6,6", "--gates", "unit", "--solver", "hessian", "--out", out)
        for source, out in (("factories:net", "live.nc"), ("net.pt2", "saved.nc"))
    )
    assert (live.exit_code, saved.exit_code) == (0, 0), saved.output
    maps = [capalloc.Allocation.load(out).capacity for out in ("live.nc", "saved.nc")]
    np.testing.assert_allclose(*maps, atol=1e-8)


def test_measure(folder):
    result = run("measure", "factories:net", "--shape", "1,6,6", "--examples", "20", "--ridge", "0.01")
    assert result.exit_code == 0, result.output
    assert "measured capacity, 82 parameters" in result.stdout


def test_receptive_field(folder):
    result = run("receptive-field", "factories:convs", "--shape", "1,20", "--position", "3", "--of", "capacity")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "column" in line and "│" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:6] == ["column", "5", "6", "10", "2", "no"]
    assert "68 % of capacity in" in result.stdout
    cut = run("receptive-field", "factories:convs", "--shape", "1,5")
    assert cut.exit_code == 0
    cut = run("receptive-field", "factories:convs", "--shape", "1,20", "--position", "0")
    assert "note:" not in cut.stdout


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_data_from_a_file(folder, suffix):
    x = np.random.default_rng(0).normal(size=(5, 1, 6, 6))
    if suffix == "npy":
        np.save("x.npy", x)
    elif suffix == "npz":
        np.savez("x.npz", inputs=x, labels=np.arange(5))
    else:
        pytest.importorskip("safetensors.torch").save_file({"images": torch.tensor(x)}, "x.safetensors")
    result = run("propagate", "factories:Holder.double", "--data", f"x.{suffix}", "--out", "result.nc")
    assert result.exit_code == 0, result.output
    expected = capalloc.propagate(read_model("factories:Holder.double"), torch.tensor(x))
    np.testing.assert_allclose(capalloc.Allocation.load("result.nc").capacity, expected.capacity)


def test_the_seed_makes_weights_and_inputs(folder):
    state = torch.random.get_rng_state()
    for seed, out in (("1", "a.nc"), ("1", "b.nc"), ("2", "c.nc")):
        assert run("propagate", "factories:net", "--shape", "1,6,6", "--seed", seed, "--out", out).exit_code == 0
    a, b, c = (capalloc.Allocation.load(f"{name}.nc").capacity for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_made_model_and_words_as_arguments(folder):
    assert isinstance(read_model("factories:made"), torch.nn.Module)
    assert isinstance(read_model("factories:net", ["act=Tanh"])[1], torch.nn.Tanh)


def test_sources_that_make_no_model(folder):
    shape = ("--shape", "1,6,6")
    assert "MODEL must be a .pt2 file or package.module:factory, got 'factories'" in refused(
        "propagate", "factories", *shape
    )
    assert "No module named 'missing'" in refused("propagate", "missing:net", *shape)
    assert "module factories has no nets" in refused("propagate", "factories:nets", *shape)
    assert "factories:number is a int; name a function or class" in refused("propagate", "factories:number", *shape)
    assert "factories:nothing made a int; it must return" in refused("propagate", "factories:nothing", *shape)
    assert "unexpected keyword argument 'depth'" in refused("propagate", "factories:net", "--arg", "depth=2", *shape)
    assert "--arg must be name=value, got 'depth'" in refused("propagate", "factories:net", "--arg", "depth", *shape)
    assert "a .pt2 file takes no arguments" in refused("propagate", "net.pt2", "--arg", "depth=2", *shape)
    assert "there is no file net.pt2" in refused("propagate", "net.pt2", *shape)


def test_inputs_that_are_none(folder):
    assert "give either --shape, for Gaussian inputs, or --data" in refused("measure", "factories:net")
    assert "--shape must be integers >= 1" in refused("measure", "factories:net", "--shape", "1,a")
    assert "--position must be integers >= 0" in refused(
        "receptive-field", "factories:convs", "--shape", "1,9", "--position", "x"
    )
    assert "there is no file x.npy" in refused("measure", "factories:net", "--data", "x.npy")
    (folder / "x.txt").write_text("1")
    assert "--data must be a file .npy, .npz, .safetensors, got x.txt" in refused(
        "measure", "factories:net", "--data", "x.txt"
    )
    (folder / "x.npy").write_bytes(b"noise")
    assert "x.npy cannot be read" in refused("measure", "factories:net", "--data", "x.npy")
    np.savez("x.npz", a=np.zeros(1), b=np.zeros(1))
    assert "name the examples 'inputs', or keep one array" in refused("measure", "factories:net", "--data", "x.npz")
    assert "model does not accept inputs" in refused("propagate", "factories:net", "--shape", "2,6,6")
    assert "solver must be one of" in refused("propagate", "factories:net", "--shape", "1,6,6", "--solver", "best")


def test_objects_in_an_array_are_not_unpickled(folder):
    np.save("x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read: Object arrays cannot be loaded"):
        read_array(folder / "x.npy")


def test_safetensors_is_asked_for_where_it_is_missing(folder, monkeypatch):
    (folder / "x.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package safetensors: pip install safetensors"):
        read_array(folder / "x.safetensors")


def test_the_target_is_checked_before_the_work(folder, monkeypatch):
    monkeypatch.setattr(capalloc.commands, "propagate", lambda *_, **__: pytest.fail("it worked"))
    line = refused("propagate", "factories:net", "--shape", "1,6,6", "--out", str(folder / "nowhere" / "result.nc"))
    assert "does not exist; make it first" in line


def test_nothing_is_written_where_the_work_fails(folder):
    refused("propagate", "factories:net", "--shape", "2,6,6", "--out", "result.nc")
    assert not (folder / "result.nc").exists()


def test_summary_names_the_largest_and_sums_the_rest(monkeypatch):
    monkeypatch.setattr(capalloc.commands, "TOP", 1)
    result = allocation(seed=0, notes=["symmetries: lower bound"])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary(result))
    text = capture.get()
    largest = float(result.by_parameter.max())
    for piece in (f"{largest:.2f}", f"{result.total:.2f}", f"{result.bias:.2f}", "more"):
        assert piece in text


def test_help_lists_the_commands():
    text = run("--help").stdout
    assert all(command in text for command in ("propagate", "measure", "receptive-field"))
