"""Files of long runs: what is written is read back, or refused; what was interrupted goes on."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from capalloc import Allocation, Run, measure
from capalloc._linalg.fold import Fold, Total
from capalloc._runtime.checkpoint import CHECKPOINT_VERSION, Checkpoint, Clock
from capalloc._runtime.distributed import Local
from capalloc._runtime.packing import pack, unpack
from capalloc._runtime.steps import Journal, Steps, open_steps
from capalloc.solvers import Auto, Dense, Stochastic
from ranks import asked, data, net

MARK = {"model": "abc", "ridge": 0.5, "outputs": [1.0, 2.0]}


@dataclass(frozen=True)
class Inner:
    values: Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    number: float
    nothing: None = None


def same(a, b) -> bool:
    """Equal in value and in type, to the last bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b


STATE = {
    "outer": Outer((Inner(torch.arange(6.0).view(2, 3).double(), "ü"), Inner(torch.zeros(0, 4), "")), 1 / 3),
    "counts": torch.tensor([1, 2]),
    "flag": torch.tensor(True),
    "array": np.linspace(0, 1, 5),
    "list": [1, (2.5, None), float("inf"), "x"],
}
TYPES = (Inner, Outer)

leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    leaves | st.lists(st.floats(allow_nan=False), max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


# Plain data


@settings(max_examples=100, deadline=None)
@given(trees)
def test_what_is_packed_is_unpacked(value):
    tensors: list[Tensor] = []
    tree = json.loads(json.dumps(pack(value, tensors)))
    assert same(unpack(tree, tensors, ()), value)


def test_only_plain_data_are_packed():
    with pytest.raises(TypeError, match="a Linear is no plain data"):
        pack({"model": nn.Linear(1, 1)}, [])


def test_only_named_types_are_made():
    tree = pack(Inner(torch.ones(1), "a"), tensors := [])
    with pytest.raises(ValueError, match="'Inner', which is not known here"):
        unpack(tree, tensors, (Outer,))


# Files


def test_a_state_is_read_back_to_the_last_bit(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.safetensors", TYPES)
    assert checkpoint.load(MARK) is None
    checkpoint.save(MARK, STATE)
    assert same(checkpoint.load(MARK), STATE)
    checkpoint.save(MARK, {"next": 1})
    assert checkpoint.load(MARK) == {"next": 1}
    assert os.listdir(tmp_path) == ["run.safetensors"]
    checkpoint.remove()
    assert checkpoint.load(MARK) is None


def test_a_damaged_file_is_refused(tmp_path):
    """Cut anywhere, or with any one byte changed that the content depends on."""
    checkpoint = Checkpoint(tmp_path / "run.safetensors", TYPES)
    checkpoint.save(MARK, STATE)
    whole = checkpoint.path.read_bytes()
    random = np.random.default_rng(0)
    for length in (0, 1, len(whole) - 1, *random.integers(len(whole), size=20)):
        checkpoint.path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged or no checkpoint.*delete it to start anew"):
            checkpoint.load(MARK)
    for place in random.integers(len(whole), size=200):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.integers(8)
        checkpoint.path.write_bytes(changed)
        assert loaded_or_refused(checkpoint)


def test_a_change_that_keeps_the_archive_whole_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.safetensors", TYPES)
    checkpoint.save(MARK, {"table": torch.ones(3)})
    with safe_open(checkpoint.path, framework="np") as file:
        save_file({"array_0": 2 * file.get_tensor("array_0")}, checkpoint.path, file.metadata())
    with pytest.raises(ValueError, match=r"damaged .*does not match its digest"):
        checkpoint.load(MARK)


def test_objects_are_not_unpickled(tmp_path):
    """A pickle would run its code: the marker file must not appear."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "run.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="damaged"):
        Checkpoint(path).load(MARK)
    assert not (tmp_path / "ran").exists()


def loaded_or_refused(checkpoint: Checkpoint) -> bool:
    """The state is right where the byte only served the archive (dates, padding)."""
    try:
        return same(checkpoint.load(MARK), STATE)
    except ValueError as error:
        return "damaged" in str(error)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ridge": 0.25}, r"another run \(ridge: 0.5 there, 0.25 here\); repeat that run's arguments"),
        ({"ridge": 0.25, "model": "abd"}, r"\(model: 'abc' there, 'abd' here; ridge: 0.5 there, 0.25 here\)"),
        ({"outputs": [1.0, 3.0]}, r"outputs: \[1.0, 2.0\] there"),
        ({"probes": 4}, "probes: None there, 4 here"),
    ],
)
def test_a_file_of_another_run_is_refused(tmp_path, change, match):
    checkpoint = Checkpoint(tmp_path / "run.safetensors")
    checkpoint.save(MARK, 1)
    with pytest.raises(ValueError, match=match):
        checkpoint.load(MARK | change)
    assert checkpoint.load(MARK | {"outputs": [1.0 + 1e-9, 2.0]}) == 1  # rounding of other hardware


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    for header, match in [
        ({"format": "other"}, "its format is 'other'"),
        ({"format": "capalloc-checkpoint", "version": CHECKPOINT_VERSION + 1}, "newer capalloc .*upgrade"),
    ]:
        save_file({}, path, {"header": json.dumps(header)})
        with pytest.raises(ValueError, match=match):
            Checkpoint(path).load(MARK)


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "run.safetensors")
    checkpoint.save(MARK, 1)
    monkeypatch.setattr("capalloc._runtime.checkpoint.safe_open", mock.Mock(side_effect=PermissionError("denied")))
    with pytest.raises(PermissionError, match="denied"):
        checkpoint.load(MARK)


def test_a_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        Checkpoint(tmp_path / "none" / "run.safetensors")


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".run.safetensors.0123abcd.tmp").write_bytes(b"half")
    assert Checkpoint(tmp_path / "run.safetensors").load(MARK) is None
    assert not os.listdir(tmp_path)


def test_slow_writing_is_done_less_often(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(60)
    assert not clock()
    now[0] = 60.0
    assert clock()
    now[0] = 80.0
    clock.written(60.0)  # twenty seconds: not again before two hundred
    now[0] = 279.0
    assert not clock()
    now[0] = 281.0
    assert clock()


WRITER = """
import sys, torch
from pathlib import Path
from capalloc._runtime.checkpoint import Checkpoint
checkpoint = Checkpoint(Path(sys.argv[1]))
for k in range(10**9):
    checkpoint.save({}, {"number": k, "values": torch.full((50_000,), float(k))})
    print(k, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    """SIGKILL at random moments of constant writing; the file is the last one reported, or the next."""
    path = tmp_path / "run.safetensors"
    random = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        last = int(([0] + [int(line) for line in process.stdout.read().split() if line])[-1])
        process.wait()
        state = Checkpoint(path).load({})
        assert state["number"] in (last, last + 1)
        assert bool((state["values"] == state["number"]).all())


# Steps


def test_ranks_must_be_given_the_same_arguments():
    """The second rank hears from the first."""
    second = mock.Mock(rank=1, size=2, share=lambda _: MARK)
    message = r"all ranks must be given the same arguments \(ridge: 0.5 on rank 0, 0.25 on rank 1\)"
    with pytest.raises(ValueError, match=message):
        open_steps(second, None, lambda: MARK | {"ridge": 0.25}, 0.0, TYPES, torch.device("cpu"))
    assert open_steps(second, None, lambda: MARK, 0.0, TYPES, torch.device("cpu")).reducer is second


class StopError(Exception):
    """The process ends here."""


def journal(path, mark=MARK, seconds=0.0) -> Steps:
    return open_steps(Local(), path, lambda: mark, seconds, TYPES, torch.device("cpu"))


class Factor(Fold[Tensor]):
    """R of the rows so far."""

    def begin(self, source):
        return torch.zeros(0, 4, dtype=torch.float64)

    def advance(self, state, block):
        return torch.linalg.qr(torch.cat([state, block]), mode="r").R

    def merge(self, a, b):
        return self.advance(a, b)


@dataclass(frozen=True)
class Squares(Total):
    """Sum of squares of rows times a root."""

    root: Tensor

    def begin(self, source):
        return (torch.zeros(1),)

    def advance(self, state, block):
        return (state[0] + (block @ self.root).square().sum(),)


def factors(run: Steps, blocks: list[Tensor], stop: int | None = None, seen: list[int] | None = None) -> Tensor:
    """Two passes, the second with the first's result: QR, then a sum that depends on it."""
    left = [stop]

    def given(start: int = 0):
        for k in range(start, len(blocks)):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise StopError
            if seen is not None:
                seen.append(k)
            yield blocks[k]

    run = run.over(given)

    def compute() -> Tensor:
        R = run.fold("factor", Factor())
        root = run.once("root", lambda: torch.linalg.inv(R))
        return run.fold("sum", Squares(root))[0]

    return run.lead("answer", compute)


BLOCKS = list(torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_interrupted_anywhere_the_passes_go_on_to_the_same_answer(tmp_path):
    expected = factors(Steps(), BLOCKS)
    assert expected == pytest.approx(4)  # the rank: leverage scores sum to it
    for stop in range(10):
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(StopError):
            factors(journal(path), BLOCKS, stop)
        seen: list[int] = []
        assert torch.equal(factors(journal(path), BLOCKS, seen=seen), expected)
        assert len(seen) == 10 - stop  # no block twice
        again: list[int] = []
        assert torch.equal(factors(journal(path), BLOCKS, seen=again), expected)
        assert not again  # finished: nothing is computed


def test_interrupted_at_every_block(tmp_path):
    """A run that gets one block further each time arrives."""
    path = tmp_path / "run.safetensors"
    for _ in range(9):
        with pytest.raises(StopError):
            factors(journal(path), BLOCKS, 1)
    assert torch.equal(factors(journal(path), BLOCKS, 1), factors(Steps(), BLOCKS))


def test_finished_steps_forget_those_inside(tmp_path):
    run = journal(tmp_path / "run.safetensors")
    factors(run, BLOCKS)
    assert list(run.journal.finished) == ["answer"]


def test_files_of_an_older_start_do_not_count(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        factors(journal(path), BLOCKS, 3)
    old = (tmp_path / "run.safetensors.rank-0").read_bytes()
    path.unlink()
    with pytest.raises(StopError):
        factors(journal(path), BLOCKS, 0)
    (tmp_path / "run.safetensors.rank-0").write_bytes(old)
    seen: list[int] = []
    factors(journal(path), BLOCKS, seen=seen)
    assert len(seen) == 10


def test_nothing_is_written_before_its_time(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        factors(journal(path, seconds=1e6), BLOCKS, 4)
    assert os.listdir(tmp_path) == ["run.safetensors"]


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_bad_intervals_are_refused(seconds):
    with pytest.raises(ValueError, match="checkpoint_seconds must be a number >= 0, got"):
        Run(checkpoint_seconds=seconds)


# Measurements


RUNS = {
    "orthogonal": {"batch_size": 3},
    "gram": {"ridge": 0.1, "batch_size": 3},
    "orthogonal again": {"batch_size": 3, "solver": Dense(kept_share=0)},
    "gram again": {"ridge": 0.1, "batch_size": 3, "solver": Dense(kept_share=0)},
    "small ridge": {"ridge": 1e-9, "batch_size": 4},
    "stochastic": {"solver": Stochastic(num_probes=12), "ridge": 0.1, "batch_size": 4},
    "stochastic wide": {"solver": Stochastic(num_probes=8), "ridge": 0.1, "batch_size": 2},
    "auto": {"ridge": 0.1},
}


def outcome(allocation: Allocation) -> tuple:
    """Everything but times and forecasts."""
    timeless = {key: v for key, v in allocation.attrs.items() if "seconds" not in key and "forecast" not in key}
    dataset = allocation.to_xarray().drop_attrs()
    return {name: v.values.tolist() for name, v in dataset.variables.items()}, timeless


def stopped_after(monkeypatch, count: int) -> None:
    """The run dies right after that many points at which it could be resumed."""
    left = [count]
    pause = Journal.pause

    def once_more(self, step, state) -> None:
        pause(self, step, state)
        left[0] -= 1
        if left[0] == 0:
            raise StopError

    monkeypatch.setattr(Journal, "pause", once_more)


def points_of(patch, points: list[str]) -> None:
    """The points at which a run could be resumed are noted."""
    pause = Journal.pause
    patch.setattr(Journal, "pause", lambda self, step, state: (points.append(step), pause(self, step, state)))


@pytest.mark.parametrize("name", RUNS)
def test_a_measurement_goes_on_where_it_stopped(tmp_path, name):
    """Bit for bit the unbroken answer, and all points of the run are met once in the two parts together."""
    x = data(3 if "wide" in name else 12, 5)  # three examples have fewer rows than there are parameters
    keep = {"run": Run(tmp_path / "run.safetensors", checkpoint_seconds=0)}
    unbroken = measure(net(), x, **RUNS[name])
    points: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        points_of(patch, points)
        whole = measure(net(), x, run=Run(tmp_path / "whole.safetensors", checkpoint_seconds=0), **RUNS[name])
    assert outcome(whole) == outcome(unbroken)
    total = len(points)
    for count in sorted({1, total // 2, total - 1} - {0}):
        with pytest.MonkeyPatch.context() as patch:
            stopped_after(patch, count)
            with pytest.raises(StopError):
                measure(net(), x, **RUNS[name], **keep)
        points.clear()
        with pytest.MonkeyPatch.context() as patch:
            points_of(patch, points)
            assert outcome(measure(net(), x, **RUNS[name], **keep)) == outcome(unbroken)
        assert len(points) == total - count
        (tmp_path / "run.safetensors").unlink()


def test_several_ridges_go_on_where_they_stopped(tmp_path):
    x, settings = data(12, 5), {"ridge": [0.1, 1.0, 10.0], "solver": Stochastic(num_probes=24)}
    unbroken = measure(net(), x, **settings)
    for count in (2, 9, 15):
        run = Run(tmp_path / f"{count}.safetensors", checkpoint_seconds=0)
        with pytest.MonkeyPatch.context() as patch:
            stopped_after(patch, count)
            with pytest.raises(StopError):
                measure(net(), x, **settings, run=run)
        found = measure(net(), x, **settings, run=run)
        for ridge, allocation in found.items():  # a least squares solution between ridges may differ in its last bits
            np.testing.assert_allclose(allocation.capacity, unbroken[ridge].capacity, rtol=1e-12)
            assert allocation.attrs["iterations"] == unbroken[ridge].attrs["iterations"]


@pytest.mark.parametrize(("before", "reason"), [(0.0, "num_probes"), (1000.0, "limit")])
def test_time_counts_over_all_starts(tmp_path, monkeypatch, before, reason):
    """An earlier start that took a thousand seconds leaves nothing of six hundred."""
    settings = {"solver": Stochastic(num_probes=120, max_seconds=600.0), "ridge": 0.1}
    keep = {"run": Run(tmp_path / "run.safetensors", checkpoint_seconds=0)}
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(StopError):
            measure(net(), data(12, 5), **settings, **keep)
    resume = Journal.resume

    def later(self, step):
        state = resume(self, step)
        return (state[0] + before, state[1])

    monkeypatch.setattr(Journal, "resume", later)
    assert measure(net(), data(12, 5), **settings, **keep).attrs["stopped_by"] == reason


@pytest.mark.parametrize("name", ["gram", "stochastic"])
def test_a_finished_run_is_returned_at_once(tmp_path, monkeypatch, name):
    path = tmp_path / "run.safetensors"
    first = measure(net(), data(12, 5), run=Run(path), **RUNS[name])
    assert os.listdir(tmp_path) == ["run.safetensors"]
    for module in ("capalloc._measure.dense", "capalloc._measure.stochastic"):
        monkeypatch.setattr(sys.modules[module], "solve", None)
    assert outcome(measure(net(), data(12, 5), run=Run(path), **RUNS[name])) == outcome(first)


def times(factor):
    return lambda y: y * factor


class Masked(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.inner = net()
        self.register_buffer("mask", torch.tensor([1.0, last]).double(), persistent=False)

    def forward(self, x):
        return self.inner(x) * self.mask


class Steep(nn.Module):
    """Its slope is of no account where no input is above nine; with the values of `net`."""

    def __init__(self, slope):
        super().__init__()
        self.inner, self.slope = net(), slope

    def forward(self, x):
        return self.inner(x) + self.slope * torch.relu(x[:, :1] - 9)


CHANGED = {
    "another model": ({"model": net(1)}, "model: "),
    "other inputs": ({"inputs": data(12, 5) + 1}, r"inputs: '\(12, 5\) "),
    "fewer inputs": ({"inputs": data(11, 5)}, r"inputs: '\(12, 5\) .* here"),
    "other outputs": ({"outputs": lambda y: y[:, 1:]}, r"outputs: \[2.0, "),
    "other parameters": ({"params": ["0.weight"]}, "params: "),
    "a metric": ({"metric": torch.ones(5).double()}, "metric: 'identity' there"),
    "no constant": ({"intercept": False}, "intercept: 'True' there, 'False' here"),
    "another ridge": ({"ridge": 0.2}, "ridge: 0.1 there, 0.2 here"),
    "another solver": ({"solver": "stochastic"}, "solver: 'auto' there, 'stochastic' here"),
    "another seed": ({"generator": torch.Generator().manual_seed(3)}, "seed: 0 there"),
    "other batches": ({"batch_size": 2}, "batch_size: 'auto' there, 2 here"),
    "another precision": ({"model": copy.deepcopy(net()).float(), "inputs": data(12, 5).float()}, "precision: "),
    "an output of many": ({"outputs": lambda y: y * torch.tensor([1.0, 1.0 + 1e-9])}, "outputs=: "),
    "a number in a closure": ({"outputs": times(2.0)}, "outputs=: "),
    "code that changes nothing here": ({"model": Steep(0.5)}, "code: "),
    "another partition": ({"solver": Auto(stochastic=Stochastic(partition=np.arange(5)))}, "partition: None there"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_checkpoint_of_another_measurement_is_refused(tmp_path, name):
    path = tmp_path / "run.safetensors"
    arguments = {"model": net(), "inputs": data(12, 5), "ridge": 0.1}
    measure(**arguments, run=Run(path))
    change, match = CHANGED[name]
    with pytest.raises(ValueError, match=rf"belongs to another run \(.*{match}"):
        measure(**(arguments | change), run=Run(path))


def test_many_outputs_are_told_apart_by_combinations_of_them(tmp_path):
    """320 numbers of eight examples."""
    run, x, model = Run(tmp_path / "run.safetensors"), data(8, 3), nn.Linear(3, 40).double()
    total = measure(model, x, run=run).total
    assert measure(model, x, run=run).total == total
    with pytest.raises(ValueError, match=r"belongs to another run \(.*outputs: \[40.0, "):
        measure(model, x, lambda y: 2 * y, run=run)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ({"model": Steep(0.0)}, {"model": Steep(9.0)}, r"\(code: '\w+' there, '\w+' here\)"),
        ({"model": Masked(1.0)}, {"model": Masked(0.5)}, "model: "),
        ({"outputs": times(1.0)}, {"outputs": times(1 + 1e-9)}, r"\(outputs=: '\w+' there, '\w+' here\)"),
        ({"params": None, "solver": Dense()}, {"solver": Dense(accuracy=1e-3)}, "accuracy: "),
    ],
    ids=["code", "a buffer that is not saved", "a closure", "a setting"],
)
def test_runs_are_told_apart_by_all_that_decides_their_answer(tmp_path, first, second, match):
    """Also where outputs are the same to within rounding, or on the examples that are looked at."""
    arguments = {"model": net(), "inputs": data(12, 5), "ridge": 0.1, "run": Run(tmp_path / "run.safetensors")}
    expected = measure(**(arguments | first)).total
    with pytest.raises(ValueError, match=rf"belongs to another run .*{match}"):
        measure(**(arguments | second))
    assert measure(**(arguments | first)).total == expected


def test_arguments_that_cannot_be_seen_are_refused_at_once(tmp_path):
    lock = threading.Lock()

    def outputs(y):
        with lock:
            return y

    with pytest.raises(ValueError, match=r"could not be told from that of another run: the state of _thread.lock"):
        measure(net(), data(12, 5), outputs, run=Run(tmp_path / "run.safetensors"))
    assert os.listdir(tmp_path) == []


def test_two_runs_on_one_file(tmp_path):
    """The second is told; the lock ends with its process, also a killed one, and leaves no file."""
    path = tmp_path / "run.safetensors"
    code = f"from capalloc._runtime.lock import *\nwith sole_run({str(path)!r}): print(flush=True), sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RuntimeError, match=rf"is in use by another run \(process {other.pid}\); wait for its end"):
            measure(net(), data(12, 5), run=Run(path))
        other.kill()
    assert os.listdir(tmp_path) == [".run.safetensors.lock"]
    measure(net(), data(12, 5), run=Run(path))
    assert os.listdir(tmp_path) == ["run.safetensors"]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"run.safetensors is damaged or no checkpoint of capalloc"):
        measure(net(), data(12, 5), run=Run(path))


def killed_and_resumed(folder, kills: int, *names: str) -> None:
    """SIGKILL at random moments of runs of seconds; bit for bit the answer of runs that were let alone."""
    asked("kill", folder, kills, 1.4, *names)
    for name in names:
        killed, whole = (Allocation.load(folder / own / "0.nc") for own in (name, f"{name} whole"))
        assert outcome(killed) == outcome(whole)
        assert [file for file in os.listdir(folder / name) if "run.safetensors" in file] == ["run.safetensors"]


def test_killed_runs_resume(tmp_path):
    killed_and_resumed(tmp_path, 3, "gram", "stochastic")


@pytest.mark.slow
def test_runs_killed_twenty_times_resume(tmp_path):
    killed_and_resumed(tmp_path, 20, "gram", "orthogonal", "wide", "stochastic")
