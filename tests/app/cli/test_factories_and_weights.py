"""Factories in files, weights from files, and the endings of what is written."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from capalloc._measure import forecast
from capalloc.app.cli.errors import UsageError, in_words
from capalloc.app.cli.lines_in_a_log import lines_in_a_log
from capalloc.app.cli.model_source import read_model
from capalloc.app.cli.named_model import NamedModel
from capalloc.app.cli.options import Verbosity
from capalloc.app.cli.sources import device_of
from capalloc.app.cli.tables import largest
from capalloc.results.view import Table
from commands import misused, refused, run

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

class Forward(torch.nn.Module):
    def __init__(self, wrong="KeyError"):
        super().__init__()
        self.one, self.wrong = torch.nn.Linear(4, 2), wrong

    def forward(self, x):
        raise {"KeyError": KeyError, "RuntimeError": RuntimeError, "ValueError": ValueError}[self.wrong](
            "of the user's: give outputs= or outputs='one'")

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


def test_arguments_of_the_library_are_told_as_the_options_that_the_command_has():
    options = {"outputs": "--output", "params": "--params", "picture": "--picture"}

    def told(text: str, cause: Exception | None = None) -> str:
        error = ValueError(text)
        error.__cause__ = cause
        return in_words(error, options)

    assert told("fewer with params= or outputs=, batch_size= too") == "fewer with --params or --output, batch_size= too"
    assert told("for example outputs='one'; or outputs=1.") == "for example --output 'one'; or --output 1."
    assert told("params must be names") == "--params must be names"
    assert told("params names ['a']") == "--params names ['a']"
    for whole in (
        "that params must be names",
        "seconds must be positive",
        "f(outputs=1)",
        "my_outputs=1 x.params= (params=)",
        "outputs=x[0] outputs=1e-3 params=a/b",
        "a=outputs=1",
    ):
        assert told(whole) == whole
    user = KeyError("no params= here")
    assert told(f"forward said {user}; leave out params=", user) == f"forward said {user}; leave out --params"


@pytest.mark.parametrize("kind", ["ValueError", "RuntimeError"])
def test_what_users_say_in_their_errors_stays_as_it_is(file: str, kind: str) -> None:
    line = refused("propagate", f"{file}:Forward", "--shape", "4", "--arg", f"wrong={kind}")
    assert "of the user's: give outputs= or outputs='one'" in line


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
    assert "0.weight is torch.int32 for torch.float32" in told({**state, "0.weight": torch.ones(3, 4).int()})
    assert "0.weight is torch.complex64 for torch.float32" in told({**state, "0.weight": torch.ones(3, 4) * 1j})
    assert "w.pt does not fit: While copying the parameter" in told({**state, "0.weight": torch.ones(3, 4).to_sparse()})
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
    assert "--weights are for a factory" in misused("propagate", "a.pt2", "--weights", str(tmp_path / "w.pt"))
    assert "is no code that makes a model" in refused("propagate", str(tmp_path / "w.pt"), "--shape", "4")


@pytest.mark.parametrize("wrong", ["KeyError", "RuntimeError"])
def test_an_error_of_the_users_forward_names_its_place(file: str, wrong: str) -> None:
    line = refused("propagate", f"{file}:Forward", "--shape", "4", "--arg", f"wrong={wrong}")
    number = NET[: NET.index("raise {")].count("\n") + 1
    assert "of the user's" in line
    assert line.rstrip().endswith(f"({file}, line {number})")


def test_parameters_by_names_and_patterns(file: str) -> None:
    told = ("propagate", f"{file}:net", "--shape", "4", "--json", "-q", "--params")
    for text, number in (("2.*", 8), ("0.weight,2.bias", 14), ("all", 23)):
        found = json.loads(run(*told, text).stdout)
        assert found["settings"]["num_params"] == number
        assert sum(row["parameters"] for row in found["params"]) == number
        for row in found["params"]:
            assert row["use"] == pytest.approx(row["capacity"] / row["parameters"])
    assert "params names ['head.*'], which the model lacks; it has 0.weight, 0.bias, 2.weight and 1 more" in refused(
        *told[:4], "--params", "0.*,head.*"
    )


def test_devices(file: str) -> None:
    told = ("measure", f"{file}:net", "--shape", "4", "--examples", "6")
    found = [json.loads(run(*told, *device, "--json", "-q").stdout)["params"] for device in ((), ("--device", "cpu"))]
    assert found[0] == found[1]
    for name in ("abacus", "cuda:99" if torch.cuda.is_available() else "cuda"):
        said = misused(*told, "--device", name)
        assert re.search(rf"--device must be one that torch finds on this machine \(cpu.*\), got '{name}'", said)
    assert "--device meta holds no values" in misused(*told, "--device", "meta")


def test_an_exported_program_stays_where_it_is(file: str) -> None:
    class Elsewhere:
        type = "cuda"

    program = torch.export.export(read_net(), (torch.zeros(2, 4),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "device", lambda name: Elsewhere())
        patch.setattr(torch, "empty", lambda *_, **__: None)
        with pytest.raises(UsageError, match=r"a \.pt2 file runs where it was exported for"):
            device_of("cuda", NamedModel(program))


def test_tables_tell_parameters_and_use(file: str) -> None:
    lines = run("propagate", f"{file}:net", "--shape", "4").stdout.splitlines()
    rows = {cells[0]: cells for line in lines if (cells := re.sub("[┃│]", " ", line).split())}
    assert rows["tensor"] == ["tensor", "capacity", "share", "parameters", "use"]
    row = rows["0.weight"]
    assert row[3] == "12"
    assert float(row[4]) == pytest.approx(float(row[1]) / 12, abs=0.01)


def test_fields_of_layers(file: str) -> None:
    told = ("receptive-field", "tcn", "--shape", "1,64", "--arg", "width=4", "--arg", "depth=3")
    assert "theoretical fields, at the layers that change them" in run(*told, "--layers").stdout
    found = json.loads(run(*told, "--layers", "--json", "-q").stdout)
    assert {row["axis"] for row in found["layers"]} == {"row", "column"}
    name = found["layers"][0]["layer"]
    one = json.loads(run(*told, "--layer", name, "--json", "-q").stdout)
    sizes = {row["axis"]: row["size"] for row in one["axes"]}
    assert sizes == {row["axis"]: row["size"] for row in found["layers"] if row["layer"] == name}
    assert "the model has no layer 'head.9'" in refused(*told, "--layer", "head.9")


def test_a_log_gets_a_line_each_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with lines_in_a_log(Verbosity(), every=0.2):
        for _ in tqdm(range(10), desc="path energy"):
            for _ in tqdm(range(2), desc="path energy", leave=False):  # a bar below another moves the cursor
                time.sleep(0.03)
        sys.stderr.write("a whole line\n")
    said = capsys.readouterr().err.splitlines()
    assert all(re.fullmatch(r"capalloc: \d+ s: path energy: +\d+% \d+/\d+ \[.*\]", line) for line in said[:-1]), said
    assert 2 <= len(said) <= 2 + (time.monotonic() - start) / 0.2
    assert said[-1] == "a whole line"
    with lines_in_a_log(Verbosity(quiet=True), every=0.01):
        time.sleep(0.05)
    with lines_in_a_log(Verbosity(), every=0.04):
        time.sleep(0.06)
    assert set(capsys.readouterr().err.splitlines()) == {"capalloc: 0 s: at work"}


def test_forecasts_stand_in_a_log(file: str) -> None:
    told = ("--shape", "4", "--examples", "6")
    assert "audit: about " in run("audit", f"{file}:net", *told).stderr
    assert "measure: forecast " in run("measure", f"{file}:net", *told).stderr
    assert run("audit", f"{file}:net", *told, "--quiet").stderr == ""


FORECAST = [(c,) for c in ("rank", "diagnose", "receptive-field", "propagate")]
FORECAST += [("propagate", "--solver", name) for name in ("markov", "block")]


@pytest.mark.parametrize(("command", "solver"), [(told[0], told[1:]) for told in FORECAST])
def test_what_takes_long_is_forecast_and_what_does_not_is_not(command, solver, file, monkeypatch) -> None:
    told = (command, f"{file}:net", "--shape", "4", "--examples", "6", *solver)
    assert "forecast" not in run(*told).stderr
    monkeypatch.setattr(forecast, "SHORT_WAIT", 0.0)
    assert re.search(rf"^{command}: forecast about [\d.e-]+ seconds$", run(*told).stderr, re.MULTILINE)
    assert run(*told, "--quiet").stderr == ""


def test_endings_say_the_format(file: str, tmp_path: Path) -> None:
    run("propagate", f"{file}:net", "--shape", "4", "--picture", str(tmp_path / "p.svg"))
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert "--picture must end in .png" in misused("propagate", f"{file}:net", "--shape", "4", "--picture", "p.gif")
    assert "--out must end in .nc" in misused("propagate", f"{file}:net", "--shape", "4", "--out", "r.json")


def test_a_long_table_of_many_columns_sums_the_rest() -> None:
    """Rows beyond the largest become one, as wide as the table is."""
    table = Table(
        "layers", ["layer", "size", "use", "units"], [[f"l{k}", f"{k}", "1", "2"] for k in range(14)], range(14)
    )
    assert largest(table)[-1] == ["4 more", "6", "", ""]
    assert largest(replace(table, head=["a", "b", "share", "d"]))[-1] == ["4 more", "6.00", "6.6%", ""]


def test_weights_that_changed_since_they_were_written_are_refused(file: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(weights(), path)
    content = bytearray(path.read_bytes())
    content[content.index(weights()["0.weight"].numpy().tobytes()) + 3] ^= 64
    path.write_bytes(content)
    told = refused("propagate", f"{file}:net", "--shape", "4", "--weights", str(path))
    assert "w.pt is damaged, or no file of weights: the checksum of w/data/" in told


def test_a_file_may_import_from_its_folder_by_a_point(tmp_path):
    (tmp_path / "sizes.py").write_text("WIDTH = 3", encoding="utf-8")
    code = "import torch\nfrom .sizes import WIDTH\n\ndef net(depth):\n    return torch.nn.Linear(4, WIDTH)\n"
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    assert read_model(f"{tmp_path}/net.py:net", ["depth=1"]).model.out_features == 3
    with pytest.raises(ValueError, match=r"missing 1 required .* 'depth' \(its call; .* --arg name=value\)"):
        read_model(f"{tmp_path}/net.py:net")
    (tmp_path / "net.py").write_text("def net(:", encoding="utf-8")
    with pytest.raises(ValueError, match=r"net\.py failed with SyntaxError: .*\(net\.py, line 1\)$"):
        read_model(f"{tmp_path}/net.py:net")
