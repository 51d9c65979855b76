"""Factories in files, weights from files, and the endings of what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from capalloc.app.cli.model_source import read_model
from capalloc.app.cli.tables import largest
from capalloc.results.view import Table
from commands import refused, run

NET = """
import torch
from dataclasses import dataclass
import beside

@dataclass
class Settings:
    width: int = 3

def net(width=Settings().width):
    return torch.nn.Sequential(torch.nn.Linear(beside.INPUTS, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))

def broken():
    return 1 / 0

def program():
    return torch.export.export(net(), (torch.zeros(2, 4),))
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "net.py").write_text(NET)
    (tmp_path / "deep" / "beside.py").write_text("INPUTS = 4\n")
    return str(tmp_path / "deep" / "net.py")


def weights() -> dict[str, torch.Tensor]:
    return {name: torch.full_like(p, 0.5) for name, p in read_net().state_dict().items()}


def read_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_a_factory_in_a_file(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = read_model(f"{file}:net", ["width=5"]).model
    assert made[0].weight.shape == (5, 4)
    monkeypatch.chdir(tmp_path)
    assert "capacity" in run("propagate", "deep/net.py:net", "--shape", "4").stdout


def test_what_fails_in_a_factory_is_told_with_its_place(file: str, tmp_path: Path) -> None:
    line = refused("propagate", f"{file}:broken", "--shape", "4")
    assert "failed with ZeroDivisionError: division by zero" in line
    assert "net.py, line 14)" in line.replace("\n", " ")
    (tmp_path / "bad.py").write_text("x = 1\nraise RuntimeError('no')\n")
    assert "bad.py, line 2)" in refused("propagate", f"{tmp_path}/bad.py:net", "--shape", "4")
    assert "net() got an unexpected keyword argument" in refused(
        "propagate", f"{file}:net", "--arg", "depth=3", "--shape", "4"
    )
    assert "there is no file" in refused("propagate", f"{tmp_path}/none.py:net", "--shape", "4")


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped", "compiled"])
def test_weights_from_a_file(file: str, tmp_path: Path, form: str) -> None:
    state = weights()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    else:
        torch.save({"model": {f"_orig_mod.{name}": value for name, value in state.items()}}, path)
    model = read_model(f"{file}:net", weights=path).model
    assert all(bool((p == 0.5).all()) for p in model.parameters())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_weights_that_are_none(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(state: object, name: str = "w.pt", source: str = f"{file}:net") -> str:
        torch.save(state, tmp_path / name)
        return refused("propagate", source, "--shape", "4", "--weights", str(tmp_path / name))

    state = weights()
    assert "it lacks 0.bias" in told({name: value for name, value in state.items() if name != "0.bias"})
    assert "it has besides extra" in told({**state, "extra": torch.zeros(1)})
    assert "0.weight is (3, 5) for (3, 4)" in told({**state, "0.weight": torch.zeros(3, 5)})
    assert "holds no state_dict" in told([1, 2])
    assert "would have to be executed" in told({"0.weight": Evil()})
    assert "run" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert "is damaged" in refused(
        "propagate", f"{file}:net", "--shape", "4", "--weights", str(tmp_path / "cut.safetensors")
    )
    assert "there is no file" in refused(
        "propagate", f"{file}:net", "--shape", "4", "--weights", str(tmp_path / "no.pt")
    )
    assert "an exported program has its own" in told(state, source=f"{file}:program")
    assert "--weights are for a factory" in refused("propagate", "a.pt2", "--weights", str(tmp_path / "w.pt"))
    assert "holds weights and no model" in refused("propagate", str(tmp_path / "w.pt"), "--shape", "4")


def test_endings_say_the_format(file: str, tmp_path: Path) -> None:
    run("propagate", f"{file}:net", "--shape", "4", "--picture", str(tmp_path / "p.svg"))
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert "--picture must end in .png" in refused("propagate", f"{file}:net", "--shape", "4", "--picture", "p.gif")
    assert "--out must end in .nc" in refused("propagate", f"{file}:net", "--shape", "4", "--out", "r.json")


def test_a_long_table_of_many_columns_sums_the_rest() -> None:
    """Rows beyond the largest become one, as wide as the table is."""
    table = Table(
        "layers", ["layer", "size", "use", "units"], [[f"l{k}", f"{k}", "1", "2"] for k in range(14)], range(14)
    )
    assert largest(table)[-1] == ["4 more", "6", "", ""]
    assert largest(replace(table, head=["a", "b", "c"]))[-1] == ["4 more", "6.00", "6.6%"]
