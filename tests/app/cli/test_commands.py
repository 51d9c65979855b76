"""Commands that compute: what they take, print, write and refuse."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
import xarray as xr

import capalloc
import capalloc.app.cli.compute
from allocations import allocation
from capalloc import architectures
from capalloc.app.cli.as_json import as_dict, plain
from capalloc.app.cli.model_source import read_model
from capalloc.app.cli.sources import select
from capalloc.app.cli.tables import largest, print_view
from capalloc.results import load
from capalloc.results.view import Table, View, counted
from commands import misused, refused, run


def strict(text: str):
    """JSON without the literals that JSON does not have."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_propagate_prints_and_writes_what_the_function_returns(folder):
    result = run("propagate", "factories:net", "--arg", "channels=3", "--shape", "1,6,6", "--out", "result.nc")
    assert result.exit_code == 0, result.output
    written = capalloc.Allocation.load("result.nc")
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = capalloc.propagate(read_model("factories:net", ["channels=3"]).model, x)
    np.testing.assert_allclose(written.capacity, expected.capacity)
    for piece in ("exact", "of 123 parameters", "3.weight", counted(expected.total)):
        assert piece in result.stdout
    assert result.stderr == (
        "capalloc: factories:net: 123 parameters; 8 Gaussian inputs of 1 x 6 x 6\ncapalloc: wrote result.nc\n"
    )
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["factories.py", "result.nc"]


def test_propagate_reads_a_program_and_its_shape(folder):
    model = read_model("factories:net").model.eval()
    torch.export.save(torch.export.export(model, (torch.randn(4, 1, 6, 6),)), "net.pt2")
    live = run("propagate", "factories:net", "--shape", "1,6,6", "--gates", "unit", "--out", "live.nc")
    saved = run("propagate", "net.pt2", "--gates", "unit", "--out", "saved.nc")
    assert (live.exit_code, saved.exit_code) == (0, 0), saved.output
    maps = [capalloc.Allocation.load(out).capacity for out in ("live.nc", "saved.nc")]
    np.testing.assert_allclose(*maps, rtol=1e-6)


def test_solvers_and_probes_are_passed_on(folder):
    said = {}
    own = {"block": ["--num-probes", "3", "--seconds", "9"], "segments": ["--num-probes", "3"], "hessian": []}
    for solver, options in own.items():
        result = run("propagate", "factories:net", "--shape", "1,6,6", "--solver", solver, *options, "--json")
        assert result.exit_code == 0, result.output
        said[solver] = strict(result.stdout)
    assert said["block"]["settings"]["num_probes"] == 3
    steps = strict(run("propagate", "factories:net", "--shape", "1,6,6", "--num-steps", "2", "--json").stdout)
    assert steps["settings"]["num_steps"] == 2
    assert said["hessian"]["settings"]["solver"] == "hessian"
    for solver, option in (("hessian", "--num-probes"), ("segments", "--num-steps"), ("markov", "--seconds")):
        line = misused("propagate", "factories:net", "--shape", "1,6,6", "--solver", solver, option, "3")
        assert f"{option} is for --solver block, and --solver {solver} has none" in line


def test_a_table_asks_for_paths(folder):
    result = run("propagate", "factories:net", "--shape", "1,6,6", "--table", "--out", "result.nc", "--json")
    assert strict(result.stdout)["settings"]["solver"] == "markov"
    assert capalloc.load("result.nc").table is not None


def test_measure(folder):
    result = run("measure", "factories:net", "--shape", "1,6,6", "--examples", "20", "--ridge", "0.01")
    assert result.exit_code == 0, result.output
    assert "Capacity, exact" in result.stdout
    assert "of 82 parameters" in result.stdout


def test_measure_stochastically_with_a_checkpoint(folder):
    told = ["--shape", "1,6,6", "--examples", "4", "--ridge", "1", "--solver", "stochastic", "--rtol", "0.5"]
    result = run("measure", "factories:net", *told, "--checkpoint", "run.h5", "--max-seconds", "20", "--json")
    assert result.exit_code == 0, result.output
    assert strict(result.stdout)["settings"]["solver"] == "stochastic"
    assert (folder / "run.h5").exists()


def test_too_few_examples_are_warned_of_in_one_line(folder):
    with pytest.MonkeyPatch.context() as patch:  # the suite makes errors of capalloc's warnings
        patch.setattr("warnings.filters", [])
        result = run("measure", "factories:net", "--arg", "channels=9", "--shape", "1,6,6", "--examples", "1", "-q")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("capalloc: warning: 1 examples x 2 outputs")
    assert result.stderr.count("\n") == 1


def test_receptive_field(folder):
    told = ["receptive-field", "factories:convs", "--shape", "1,20", "--position", "3", "--of", "capacity"]
    result = run(*told, "--out", "field.nc", "--picture", "field.png")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "position" in line and "│" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:6] == ["position", "5", "6", "10", "8", "2"]
    assert "68 % of capacity" in result.stdout
    assert load("field.nc").sizes["column"] == 5
    assert (folder / "field.png").read_bytes().startswith(b"\x89PNG")
    said = strict(run(*told, "--json").stdout)
    assert said["axes"][1]["size"] == 5
    assert said["of"] == "capacity"


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ("decoupling", "Decoupling", "1 gate on 6 examples"),
        ("scaling", "Scaling", "layers"),
        ("shattering", "Shattering", "correlation of gradients"),
        ("diagnose", "Diagnosis", "receptive field"),
    ],
)
def test_other_results_are_printed_written_drawn_and_said(folder, command, kind, words):
    told = [command, "factories:net", "--shape", "1,6,6", "--examples", "6", "--out", "x.nc", "--picture", "x.png"]
    result = run(*told)
    assert result.exit_code == 0, result.output
    assert words in result.stdout
    written = load("x.nc")
    assert type(written).__name__ == kind
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")
    said = plain(as_dict(written))
    assert said["result"] == kind
    assert all(said[rows] for rows in type(written).ROWS if len(written.to_pandas(rows)))
    assert strict(json.dumps(said, allow_nan=False)) == said


def test_json_is_all_that_stdout_holds(folder):
    result = run("propagate", "factories:net", "--shape", "1,6,6", "--json")
    said = strict(result.stdout)
    assert said["model"] == "factories:net"
    assert said["total"] == pytest.approx(sum(row["capacity"] for row in said["params"]))
    assert [row["parameter"] for row in said["params"]] == ["0.weight", "3.weight"]
    assert result.stderr.startswith("capalloc: factories:net: 82 parameters")
    assert run("propagate", "factories:net", "--shape", "1,6,6", "--json", "--quiet").stderr == ""


def test_numbers_that_json_lacks_are_null():
    values = {"a": float("nan"), "b": [np.float32(1), -float("inf")], 3: (np.int64(2), np.bool_(True), None)}
    assert plain(values) == {"a": None, "b": [1.0, None], "3": [2, True, None]}


def test_a_built_in_architecture_has_its_own_shape():
    small = ("--arg", "width=2", "--arg", "hidden=[5]", "--solver", "markov")
    said = strict(run("propagate", "lenet", *small, "--json", "-q").stdout)
    expected = capalloc.propagate(
        architectures.make("lenet", width=2, hidden=[5]),
        torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        solver="markov",
    )
    assert said["total"] == pytest.approx(expected.total)


def test_the_shape_makes_the_architecture_fit():
    result = run(*("propagate", "lenet", "--shape", "3,12,16", "--arg", "hidden=[5]", "--solver", "markov", "--json"))
    assert result.exit_code == 0, result.output
    assert "8 Gaussian inputs of 3 x 12 x 16" in result.stderr


def test_the_seed_makes_weights_and_inputs(folder):
    state = torch.random.get_rng_state()
    for seed, out in (("1", "a.nc"), ("1", "b.nc"), ("2", "c.nc")):
        assert run("propagate", "factories:net", "--shape", "1,6,6", "--seed", seed, "--out", out).exit_code == 0
    a, b, c = (capalloc.Allocation.load(f"{name}.nc").capacity for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_output_of_several(folder):
    told = ["propagate", "factories:Two", "--shape", "3", "--json", "-q", "--solver", "markov"]
    assert strict(run(*told, "--output", "two").stdout)["settings"]["unused_params"] == 8
    assert "without the output 'three'; it has one, two" in refused(*told[:4], "--output", "three")
    assert "say which tensor to constrain, for example --output 'one'" in refused(*told[:4])
    assert "the model returns one tensor, which has no output 1" in refused(
        "propagate", "factories:net", "--shape", "1,6,6", "--output", "1"
    )


def test_outputs_by_position_and_by_name():
    assert [select(text) for text in (None, "1", "logits")] == [None, 1, "logits"]


@pytest.mark.parametrize(("option", "name"), [("--out", "result.nc"), ("--picture", "result.png")])
def test_the_target_is_checked_before_the_work(folder, monkeypatch, option, name):
    monkeypatch.setattr(capalloc.app.cli.compute, "read_sources", lambda *_, **__: pytest.fail("it worked"))
    for command in ("propagate", "measure", "decoupling", "receptive-field", "diagnose", "scaling", "shattering"):
        line = refused(command, "factories:net", "--shape", "1,6,6", option, str(folder / "nowhere" / name))
        assert "does not exist; make it first" in line


def test_nothing_is_written_where_the_work_fails(folder):
    assert "model does not accept inputs" in refused(
        "propagate", "factories:net", "--shape", "2,6,6", "--out", "result.nc"
    )
    assert not (folder / "result.nc").exists()
    assert "--position must be integers >= 0, or : for a whole axis" in misused(
        "receptive-field", "factories:convs", "--shape", "1,9", "--position", "x"
    )


def test_the_largest_tensors_are_named_and_the_rest_summed():
    a = allocation(seed=0)
    *_, table = a.view().tables
    values = sorted(a.by_parameter.to_numpy(), reverse=True)
    first, rest = largest(table, 1)
    assert first[1] == f"{values[0]:.2f}"
    assert rest == ["2 more", f"{sum(values[1:]):.2f}", f"{sum(values[1:]) / a.total:.1%}"]
    assert [row[1] for row in largest(table, 3)] == [f"{value:.2f}" for value in values]


def test_totals_and_notes_are_printed(capsys):
    result = allocation(seed=0, notes=["symmetries: lower bound"], total_standard_error=0.25)
    print_view(result.view())
    text = capsys.readouterr().out
    for piece in ("conv.weight", counted(result.total, 0.25), counted(result.bias), "note: symmetries: lower bound"):
        assert piece in text


def test_columns_that_a_narrow_terminal_has_no_room_for_are_left_out(capsys, monkeypatch):
    table = Table("gates", ["gate", "share", "spare"], [["relu", "0.5", "1" * 60]], spare=("spare",))
    for width, there in ((60, False), (100, True)):
        monkeypatch.setenv("COLUMNS", str(width))
        print_view(View("capalloc.Kind", "Kind", "short", tables=[table]))
        text = capsys.readouterr().out
        assert "relu" in text
        assert ("1" * 60 in text) is there
        assert ("no room for spare" in text) is not there


@pytest.mark.parametrize("width", ["0", "1"])
def test_a_terminal_without_columns_is_shown_all(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    print_view(View("capalloc.Kind", "Kind", "short", tables=[Table("gates", ["gate", "share"], [["relu", "0.5"]])]))
    text = capsys.readouterr().out
    assert "relu" in text
    assert "0.5" in text


def test_a_ridge_and_its_coordinates(folder):
    told = ["measure", "factories:net", "--shape", "1,6,6", "--examples", "20", "--json"]
    found = [strict(run(*told, "--ridge", "auto", "--coordinates", kind).stdout) for kind in ("log", "plain")]
    assert [one["settings"]["coordinates"] for one in found] == ["log", "plain"]
    assert 0 < found[0]["settings"]["ridge"] < found[1]["settings"]["ridge"]


@pytest.mark.parametrize("ridge", ["-1", "nan", "big"])
def test_a_ridge_is_a_number_or_auto(folder, ridge):
    result = run("measure", "factories:net", "--ridge", ridge)
    assert result.exit_code == 2
    assert "is neither a number >= 0 nor auto" in " ".join(result.output.replace("│", " ").split())


def test_a_terminal_shows_names_and_obeys_none(folder):
    names = ["\x1b[31mred\x1b]0;title\x1b\\", "\u202egnp.exe"]
    found = capalloc.Allocation(
        xr.DataArray(np.ones(4), dims="input"),
        0.0,
        xr.DataArray([2.0, 2.0], dims="parameter", coords={"parameter": names}),
        attrs={"kind": "measured", "num_params": 2, "notes": ["\x1b[2J"]},
    )
    found.save("a.nc")
    shown = run("compare", "a.nc", "a.nc").output + repr(capalloc.load("a.nc"))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[31mred" in shown
    assert r"\u202egnp.exe" in shown
    missing = run("compare", "\x1b[31m.nc", "a.nc")
    assert r"there is no file \x1b[31m.nc" in missing.output
    assert "\x1b" not in missing.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("propagate", "--solver", "block", "--gates", "unit"), "--gates is for --solver markov, and block has none"),
        (("propagate", "--solver", "block", "--table"), "--table is for --solver markov, and block has none"),
        (("measure", "--rtol", "0.1"), "--rtol is for --solver stochastic"),
        (("measure", "--seconds", "9"), "--seconds is for --solver stochastic"),
        (("measure", "--ridge", "1", "--solver", "dense", "--rtol", "0.1"), "--rtol is for --solver stochastic"),
        (("measure", "--solver", "stochastic"), "--solver stochastic needs a --ridge"),
    ],
)
def test_options_that_the_others_leave_without_use_are_refused(folder, given, said):
    assert said in misused(given[0], "factories:net", *given[1:])


def test_numbers_out_of_range_are_wrong_usage(folder):
    for option, value in (("--rtol", "-1"), ("--rtol", "2"), ("--seconds", "0")):
        assert run("measure", "factories:net", "--ridge", "1", option, value).exit_code == 2
