"""The command line as a whole: its words, exit codes and errors, Ctrl-C, completion; and that help needs no torch."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import capalloc.app.cli.run_demo
from allocations import allocation
from capalloc import architectures
from capalloc._measure.measure import CapacityWarning
from capalloc.app.cli import app, commands
from capalloc.app.cli.commands import linear_study
from capalloc.app.cli.declare import named
from capalloc.app.cli.options import REFERENCE_NAMES, complete_model
from capalloc.app.cli.run_demo import summary
from capalloc.app.demo import Demo
from capalloc.app.studies.linear_study import LinearSettings

RUNNER = CliRunner()
COMMANDS = {command.name for command in app.registered_commands}
PROGRAM = [sys.executable, "-m", "capalloc.app.cli"]


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
    monkeypatch.setattr(capalloc.app.cli.run_demo, "run_demo", lambda seed, progress: seeds.append(seed) or found())
    return seeds


def failing(monkeypatch, error: BaseException) -> None:
    """Let a command fail in code that is in no file of a user's."""
    made = {"error": error}
    exec("def fail(seed, progress): raise error", made)
    fail = made["fail"]
    monkeypatch.setattr(capalloc.app.cli.run_demo, "run_demo", fail)


def test_version():
    result = RUNNER.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"capalloc {version('capalloc')}\n"


def test_help_lists_the_commands_and_the_exit_codes():
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert len(COMMANDS) == 17
    assert all(f" {command} " in result.stdout for command in COMMANDS)
    assert "130 interrupted" in " ".join(result.stdout.split())
    assert RUNNER.invoke(app, []).output.strip() == result.output.strip()
    assert RUNNER.invoke(app, ["-h"]).output == result.output
    assert RUNNER.invoke(app, ["models", "-h"]).exit_code == 0


def test_a_standard_error_that_is_closed_stops_no_command():
    told = ("propagate", "mlp", "--shape", "1,4,4", "--arg", "width=3", "--solver", "markov", "--json")
    ended = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *PROGRAM, *told], capture_output=True, check=False)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_described(command):
    described = typer.main.get_command(app).commands[command]
    assert described.help
    assert all(parameter.help for parameter in described.params), [p.name for p in described.params if not p.help]
    assert RUNNER.invoke(app, [command, "--help"]).exit_code == 0


def test_commands_that_report_numbers_speak_json():
    commands = typer.main.get_command(app).commands
    without = {name for name, c in commands.items() if "--json" not in {o for p in c.params for o in p.opts}}
    assert not without


def test_every_command_can_be_quiet():
    commands = typer.main.get_command(app).commands
    assert all({"--quiet", "-q"} <= {o for p in c.params for o in p.opts} for c in commands.values())


def test_help_needs_no_torch():
    """Nor does completion, which asks the same declarations."""
    code = "import sys, capalloc.app.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_said_twice_is_said_alike():
    """Declarations stand apart from what they speak of."""
    assert list(REFERENCE_NAMES) == architectures.names()
    declared = inspect.signature(linear_study).parameters
    settings = LinearSettings()
    for name in ("lags", "steps", "seed", "restarts", "root"):
        assert declared[name].default == getattr(settings, name)


def test_completion_script_is_printed():
    done = subprocess.run(
        PROGRAM, env=os.environ | {"_CAPALLOC_COMPLETE": "source_bash"}, capture_output=True, text=True, check=False
    )
    assert "complete -o default -F _capalloc_completion capalloc" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("capalloc prop", {"propagate"}),
        ("capalloc measure --sol", {"--solver"}),
        ("capalloc propagate --solver ", {"auto", "markov", "block", "segments", "hessian"}),
        ("capalloc propagate resnet", {"resnet18", "resnet50"}),
    ],
)
def test_bash_completes(words, expected):
    told = {"_CAPALLOC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(PROGRAM, env=os.environ | told, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == expected


def test_saved_programs_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.pt2").touch()
    assert complete_model("m") == ["mixer", "mlp", "mobilenet-v2", "mine.pt2"]


def heed_interrupts():
    """A process that a shell started in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_leaves_nothing_and_says_so(tmp_path):
    """SIGINT to a measurement of some minutes, once it runs."""
    arguments = ["measure", "mlp", "--shape", "1,10,10", "--arg", "width=20", "--examples", "3000", "--out", "x.nc"]
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert "parameters; 3000 Gaussian inputs" in process.stderr.readline()
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "capalloc: interrupted; files are whole or as they were"
    assert os.listdir(tmp_path) == []


def test_interrupted_while_a_text_is_evaluated(tmp_path):
    """CPython then ends `python -m` by the signal, whatever code it exits with."""
    (tmp_path / "runs.py").write_text("""
import capalloc.app.cli.run_demo as demo
from capalloc.app import cli

def interrupted():
    raise KeyboardInterrupt

demo.run_demo = lambda *_, **__: eval("interrupted()", {"interrupted": interrupted})
import sys
sys.argv[1:] = ["demo", "--quiet"]
cli.main()
""")
    done = subprocess.run([sys.executable, "-m", "runs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "capalloc: interrupted; files are whole or as they were\n"


def test_interrupted_in_process(monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    result = RUNNER.invoke(app, ["demo", "--quiet"])
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1


def test_demo_writes_the_page_and_says_so(tmp_path, quick):
    page = tmp_path / "page.html"
    result = RUNNER.invoke(app, ["demo", "--out", str(page), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert quick == [3]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "page.html" in result.stderr
    assert os.listdir(tmp_path) == ["page.html"]


def test_demo_as_json(tmp_path, quick):
    result = RUNNER.invoke(app, ["demo", "--out", str(tmp_path / "page.html"), "--json", "--quiet"])
    said = json.loads(result.stdout)
    assert said["measured"]["total"] == pytest.approx(found().measured.total)
    assert {name: said[name] for name in found().agreement} == pytest.approx(found().agreement)
    assert result.stderr == ""


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
        *(f"{value:z.3f}" for value in found().agreement.values()),
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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("inputs hold\n  NaN [red]or[/red] inf"), "inputs hold NaN [red]or[/red] inf"),
        (MemoryError(), "MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "memory is short; take a smaller --shape, fewer --examples or a smaller model (DefaultCPUAllocator: can't "
            "allocate memory)",
        ),
    ],
)
def test_errors_are_one_line(monkeypatch, error, line):
    failing(monkeypatch, error)
    result = RUNNER.invoke(app, ["demo", "--quiet"])
    assert result.exit_code == 1
    assert result.stderr == f"capalloc: {line}\n"


def test_debug_shows_where_an_error_comes_from(monkeypatch):
    failing(monkeypatch, ValueError("inputs hold NaN"))
    result = RUNNER.invoke(app, ["--debug", "demo"])
    assert result.exit_code != 0
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize("defect", [ZeroDivisionError("a defect"), RuntimeError("a defect")])
def test_a_defect_is_not_dressed_up(monkeypatch, defect):
    failing(monkeypatch, defect)
    assert RUNNER.invoke(app, ["demo"]).exception is defect


def test_a_reader_that_leaves_is_no_error(monkeypatch):
    failing(monkeypatch, BrokenPipeError(32, "Broken pipe"))
    result = RUNNER.invoke(app, ["demo", "--quiet"])
    assert (result.exit_code, result.stderr) == (1, "")


def test_warnings_are_one_line(tmp_path, monkeypatch):
    def warn(seed, progress):
        warnings.warn("the map is\n flat", CapacityWarning, stacklevel=1)
        warnings.warn("of another package", UserWarning, stacklevel=1)
        return found()

    monkeypatch.setattr(capalloc.app.cli.run_demo, "run_demo", warn)
    result = RUNNER.invoke(app, ["demo", "--quiet", "--out", str(tmp_path / "page.html")])
    assert result.stderr == "capalloc: warning: the map is flat\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--seed", "-1"],
        ["demo", "--unknown"],
        ["unknown"],
        ["propagate"],
        ["propagate", "mlp", "--solver", "best"],
        ["measure", "mlp", "--ridge", "-1"],
        ["compare", "one.nc"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    assert RUNNER.invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_work_of_a_command_takes_what_it_declares(command):
    """A declaration names its work in words; their parameters are the same."""
    declaration = inspect.signature(getattr(commands, command.replace("-", "_")))
    assert inspect.signature(named(commands.WORK[command])).parameters.keys() == declaration.parameters.keys()
