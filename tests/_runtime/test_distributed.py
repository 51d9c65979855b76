"""One measurement by many processes: the answer of one, and an error on all when one of them fails or dies."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from capalloc import Allocation, Run, measure
from capalloc._runtime.distributed import Local, joined
from capalloc._runtime.heartbeat import Heartbeat, RankError, store_errors
from capalloc.solvers import Stochastic
from ranks import CASES, FEW, LONG_PROBES, STOCHASTIC, asked, data, line, net


def said(folder: Path, size: int) -> list[dict]:
    """What each rank had to say; empty for one that died."""
    files = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory) -> Path:
    """Every case by two and by three ranks, and what goes wrong."""
    folder = tmp_path_factory.mktemp("scenarios")
    asked("run", folder, ("cases", 2), ("cases", 3), ("errors", 3), ("leaves", 2), ("last dies", 3), ("first dies", 3))
    return folder


@pytest.fixture
def answers(scenarios) -> Path:
    """The cases, in a folder for each number of ranks."""
    return scenarios / "cases"


@cache
def alone(name: str) -> Allocation:
    make, inputs, settings = CASES[name]
    return measure(make(), inputs, **settings)


def assert_same(found: Allocation, expected: Allocation, rtol: float) -> None:
    assert found.total == pytest.approx(expected.total, rel=rtol)
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=rtol, atol=rtol * expected.total)
    np.testing.assert_allclose(found.by_parameter, expected.by_parameter, rtol=rtol, atol=rtol * expected.total)
    if expected.table is not None:
        np.testing.assert_allclose(found.table, expected.table, rtol=rtol, atol=rtol * expected.total)


@pytest.mark.parametrize(("name", "size"), [*((name, 3) for name in CASES), *((name, 2) for name in FEW)])
def test_ranks_find_what_one_process_finds(answers, name, size):
    """Dense: to rounding. Stochastic: the draws are each example's own, so only rounding and the solves differ."""
    found = [Allocation.load(answers / str(size) / f"{name}.{rank}.nc") for rank in range(size)]
    assert_same(found[0], alone(name), 1e-7 if "stochastic" in name else 1e-10)
    for other in found[1:]:  # to the last bit
        np.testing.assert_array_equal(other.capacity, found[0].capacity)
        np.testing.assert_array_equal(other.by_parameter, found[0].by_parameter)
        assert other.bias == found[0].bias


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_may_compute_rows_again(answers, size):
    for name in ("orthogonal", "gram"):
        assert_same(Allocation.load(answers / str(size) / f"{name} again.0.nc"), alone(name), 1e-10)


def test_several_ridges_by_several_ranks(answers):
    found = measure(net(), data(31, 5), ridge=[0.1, 1.0], solver=Stochastic(num_probes=8))
    expected = [float(found[ridge].total) for ridge in (1.0, 0.1)]
    for size in (2, 3):
        for one in said(answers / str(size), size):
            assert one["value"]["totals"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("size", [2, 3])
def test_what_the_reducer_gives_back(answers, size):
    values = [one["value"] for one in said(answers / str(size), size)]
    total = sum(10**rank for rank in range(size))
    for rank, value in enumerate(values):
        assert value["sum"] == [k * total for k in range(7)]
        assert value["scalar"] == sum(range(size))
        assert value["empty"] == [0, 3]
        assert value["order"] == ("012"[:size] if rank == 0 else None)
        assert value["fold"] == ("folded" if rank == 0 else None)
        assert value["share"] == [1.5, None]
    stops = [value["shard"] for value in values]
    assert stops[0][0] == 0
    assert stops[-1][1] == 7
    assert all(a[1] == b[0] for a, b in itertools.pairwise(stops))
    assert {stop - start for start, stop in stops} <= {7 // size, -(-7 // size)}


def test_rank_0_alone_shows_progress(answers):
    shown = [(answers / "3" / f"{rank}.err").read_text() for rank in range(3)]
    assert shown[0].count("measure:") >= len(FEW)
    assert not any("measure:" in other for other in shown[1:])


def test_one_process_is_a_reducer_of_its_own():
    with joined(False) as reducer:
        assert isinstance(reducer, Local)
        assert reducer.shard(5) == slice(0, 5)
        assert reducer.sum(part := torch.ones(2)) is part
        assert reducer.fold(part, torch.add) is part
        assert reducer.share(part) is part
        reducer.check()


# Failures


def test_an_error_of_one_is_an_error_of_all(scenarios):
    """And the group goes on to serve the next call."""
    ranks = [one["value"] for one in said(scenarios / "errors/3", 3)]
    nan = "inputs hold NaN or inf; drop or repair those examples"
    other = "all ranks must be given the same arguments (ridge: 0.25 on rank 0, 0.5 on rank 1)"
    messages = {
        "invalid": nan,
        "unequal": other,
        "impossible": 'ridge must be a finite number >= 0 or "auto", got -1.0',
        "another function": "all ranks must be given the same arguments (outputs: [",
        "a file": "all ranks must be given the same arguments (checkpoint: None on rank 0, 'a file' on rank 1)",
    }
    for call, beginning in messages.items():
        assert ranks[1][call]["error"] == "ValueError"
        message = ranks[1][call]["message"]
        assert message.startswith(beginning)
        for rank in (0, 2):
            assert ranks[rank][call]["error"] == "RankError"
            assert ranks[rank][call]["message"] == f"rank 1 failed with ValueError: {message}"
            assert ranks[rank][call]["rank"] == 1
    expected = pytest.approx(alone("orthogonal").total, rel=1e-10)
    assert [one["valid"]["total"] for one in ranks] == [expected] * 3
    assert ranks[0]["outsider"]["total"] == expected  # a group of rank 0 alone
    for rank in (0, 2):
        assert "rank 1 has not called with the others: no sign of life for" in ranks[rank]["absent"]["message"]
    for rank in (1, 2):
        assert "this process is no member of; call on its members only" in ranks[rank]["outsider"]["message"]


def test_a_rank_that_leaves_before_the_call_is_told(scenarios):
    """The rank that holds the store, so that nothing of the group is left."""
    (_, left) = said(scenarios / "leaves/2", 2)
    assert left["error"] == "RankError"
    assert "the process that holds it, rank 0 or torchrun's agent, has died" in left["message"]


def check_death(folder: Path, victim: int, message: str) -> None:
    """The others have an error and end; no busy machine keeps a rank silent for so long."""
    found = said(folder, 3)
    assert not found[victim]
    for rank in {0, 1, 2} - {victim}:
        assert found[rank]["error"] == "RankError"
        assert re.search(message, found[rank]["message"])
    exits = json.loads((folder / "exits.json").read_text())
    assert [code for rank, code in enumerate(exits) if rank != victim] == [0, 0]


@pytest.mark.parametrize(
    ("scenario", "victim", "message"),
    [
        ("last dies", 2, r"rank 2 has died or hangs: no sign of life for \d+ seconds; look at its output"),
        ("first dies", 0, "the process that holds it, rank 0 or torchrun's agent, has died"),
    ],
    ids=["last dies", "first dies"],
)
def test_a_rank_that_dies_ends_the_run_of_all(scenarios, scenario, victim, message):
    check_death(scenarios / scenario / "3", victim, message)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_of_all(tmp_path):
    asked("run", tmp_path, ("hangs", 3))
    check_death(tmp_path / "hangs/3", 1, r"rank 1 has died or hangs: no sign of life for \d+ seconds")


@pytest.mark.slow
def test_a_death_is_noticed_within_twenty_seconds(tmp_path):
    scenario = "dies, as users have it"
    asked("run", tmp_path, (scenario, 2))
    (survivor, _) = said(tmp_path / scenario / "2", 2)
    assert "rank 1 has died" in survivor["message"]
    assert survivor["end"] - float((tmp_path / scenario / "2/death").read_text()) < 20


class Broken:
    """A collective that has come to its end, and not well."""

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None:
        raise RuntimeError("connection reset by peer")


@pytest.fixture
def group_of_one(tmp_path) -> Iterator[None]:
    """A process group that has this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("where", ["start", "end"])
def test_an_exchange_that_fails_is_an_error_that_says_so(group_of_one, monkeypatch, where):
    """In a group of one nobody else can be to blame: signs of life are waited for in vain."""

    def broadcast(*args, **kwargs) -> Broken:
        if where == "start":
            Broken().wait()
        return Broken()

    run = Run(distributed=True, silence=0.1)
    assert measure(line(), data(4, 3), run=run).total == pytest.approx(4, rel=1e-9)
    monkeypatch.setattr(dist, "broadcast", broadcast)
    with pytest.raises(
        RankError,
        match="an exchange between the ranks failed: connection reset by peer; look at the others' output",
    ) as caught:
        measure(line(), data(4, 3), run=run)
    assert caught.value.rank is None


def test_an_exchange_ends_with_the_first_error_of_any_rank(group_of_one, monkeypatch):
    """While it waits for a collective that never ends."""
    monkeypatch.setattr(Broken, "is_completed", lambda _: False)
    monkeypatch.setattr(dist, "broadcast", lambda *args, **kwargs: Broken())
    with pytest.raises(RankError, match="out of memory") as caught, joined(True, silence=1.0) as group:
        group.share(group._heartbeat.fail("out of memory"))
    assert caught.value.rank == 0


def test_ranks_that_never_meet_learn_why():
    """Two ranks of one process: the second fails before the first meeting."""
    store = dist.HashStore()
    first, second = (Heartbeat(store, rank, 2, silence=2.0, arrival=60.0) for rank in (0, 1))
    try:
        second.fail("rank 1 failed with ValueError: no data")
        with pytest.raises(RankError, match="rank 1 failed with ValueError: no data") as caught:
            first.meet()
        assert caught.value.rank == 1
        with pytest.raises(RankError, match="no data"):
            first.check()
    finally:
        second.close()
        first.close()


def test_a_store_that_is_gone_is_an_error_that_says_so():
    """Found by a meeting, before the next sign of life is due."""
    served = dist.TCPStore("localhost", 0, is_master=True)
    alive = Heartbeat(dist.TCPStore("localhost", served.port), 0, 1, silence=60.0, arrival=60.0)
    alive.meet()
    del served
    with pytest.raises(RankError, match="the store of the process group is gone: the process that holds it, rank 0 or"):
        alive.meet()
    alive.close()


def test_a_process_group_is_needed():
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match=r"needs a process group: call torch.distributed.init_process_group\(\) first"):
        measure(line(), data(4, 3), run=Run(distributed=True))
    with pytest.raises(TypeError, match="distributed must be True, False or a process group, got str"):
        Run(distributed="gloo")
    for wrong in ({"silence": 0.0}, {"arrival": float("nan")}):
        with pytest.raises(ValueError, match=r"(silence|arrival) must be a positive number of seconds, got"):
            Run(**wrong)


def test_only_members_call_on_a_group(group_of_one):
    outsider = Run(distributed=dist.GroupMember.NON_GROUP_MEMBER)
    with pytest.raises(ValueError, match="this process is no member of; call on its members only"):
        measure(line(), data(4, 3), run=outsider)


# With checkpoints


def resumed_group(folder: Path, kills: int) -> None:
    asked("kill group", folder, 2, kills, 1.5)
    for name in ("gram", "stochastic"):
        first, second = (Allocation.load(folder / name / f"{rank}.nc") for rank in range(2))
        np.testing.assert_array_equal(first.capacity, second.capacity)
        examples = first.attrs["num_examples"]
        settings = (
            STOCHASTIC | {"solver": Stochastic(num_probes=LONG_PROBES)} if name == "stochastic" else {"ridge": 0.1}
        )
        expected = measure(net(), data(examples, 5), **settings)
        assert_same(first, expected, 1e-7 if name == "stochastic" else 1e-10)
        assert [file for file in os.listdir(folder / name) if "run.safetensors" in file] == ["run.safetensors"]


def test_killed_ranks_resume(tmp_path):
    resumed_group(tmp_path, 1)


@pytest.mark.slow
def test_killed_ranks_resume_often(tmp_path):
    resumed_group(tmp_path, 10)


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
@pytest.mark.parametrize("name", ["gram", "orthogonal", "stochastic"])
def test_one_gpu_is_a_group_of_one(tmp_path, backend, name):
    """NCCL allows one rank for each GPU: its collectives run, with nobody at the other end."""
    make, inputs, settings = CASES[name]
    settings = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in settings.items()}
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        found = measure(
            make().cuda(), inputs.cuda(), run=Run(tmp_path / "run.safetensors", distributed=True), **settings
        )
    finally:
        dist.destroy_process_group()
    assert_same(found, alone(name), 1e-6 if name == "stochastic" else 1e-9)


def test_an_error_names_its_rank():
    assert RankError("rank 3 has died", 3).rank == 3


def test_an_error_of_the_store_says_that_it_is_gone_unless_a_rank_is_known_to_have_failed() -> None:
    with pytest.raises(RankError, match=r"store of the process group is gone.*\(Broken pipe\)"), store_errors():
        raise RuntimeError("Broken pipe\nat socket.cpp")
    own = RankError("rank 1 has died", 1)
    with pytest.raises(RankError, match="rank 1 has died"), store_errors():
        raise own

    def known() -> None:
        raise own

    with pytest.raises(RankError, match="rank 1 has died"), store_errors(known):
        raise RuntimeError("Broken pipe")
