"""Processes that the tests of long runs start and kill, forked from one interpreter to save its start.

`asked` has an interpreter, started once for all tests of this process, call one of `TASKS`. In `run`, the ranks of a
gloo group on the loopback device run a scenario; what each has to say goes to a folder as JSON, its allocations as
NetCDF, its standard error as text.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import capalloc
from capalloc import Run
from capalloc._runtime.distributed import joined
from capalloc.solvers import Dense, Stochastic

#: Seconds that what must come may take.
PATIENCE = 240.0


def net(seed: int = 0) -> nn.Module:
    """50 parameters, 6 slots, 2 outputs."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def line() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Linear(3, 1).double()


def data(examples: int, inputs: int) -> Tensor:
    return torch.randn(examples, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.zeros(len(x))) for x in data(31, 5).split(7)]


class Slow(nn.Module):
    """A model whose every call takes some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.003)
        return self.inner(x)


class Mortal(Slow):
    """It writes the time into a file at a late call, and gets its process, if that is the victim, a signal."""

    def __init__(self, victim: int, sign: int, file: Path) -> None:
        super().__init__()
        self.victim, self.sign, self.file, self.left = victim, sign, file, 100

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0 and os.environ["RANK"] == str(self.victim):
            self.file.write_text(str(time.monotonic()))
            os.kill(os.getpid(), self.sign)
        return super().forward(x)


def together(checkpoint: Path | None = None, **settings: Any) -> Run:
    """A run of all ranks in which none is late or taken for dead, however busy the machine is."""
    return Run(checkpoint, **{"distributed": True, "silence": 30.0, "arrival": PATIENCE} | settings)


STOCHASTIC = {"solver": Stochastic(num_probes=16), "ridge": 0.1}
#: Measurements whose answer must not depend on the number of ranks.
CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "orthogonal": (net, data(31, 5), {}),
    "gram": (net, data(31, 5), {"ridge": 0.1}),
    "small ridge": (net, data(31, 5), {"ridge": 1e-9}),
    "small batches": (net, pairs(), {"ridge": 0.1, "batch_size": 3}),
    "wide": (net, data(3, 5), {"ridge": 0.01}),
    "few": (line, data(2, 3), {}),
    "metric": (net, data(31, 5), {"metric": torch.arange(1.0, 6.0).double(), "intercept": False}),
    "stochastic": (net, data(31, 5), STOCHASTIC | {"metric": torch.arange(1.0, 6.0).double()}),
    "stochastic few": (line, data(2, 3), {"solver": Stochastic(num_probes=16, output_probes=1), "ridge": 0.1}),
    "stochastic wide": (net, data(3, 5), STOCHASTIC),
    "stochastic auto": (net, data(31, 5), {"solver": Stochastic(rtol=0.2), "ridge": 1.0}),
    "auto ridge": (net, data(31, 5), {"ridge": "auto"}),
    "stochastic auto ridge": (net, data(31, 5), {"solver": Stochastic(num_probes=16), "ridge": "auto"}),
}


FEW = ("orthogonal", "gram", "stochastic")
#: Of the runs that are killed.
LONG_PROBES = 32


def cases(rank: int, folder: Path) -> dict[str, Any]:
    """Every case (by two ranks: a few), two again with rows that are not kept, several ridges, and the reducer."""
    for name in CASES if dist.get_world_size() > 2 else FEW:
        make, inputs, settings = CASES[name]
        found = capalloc.measure(make(), inputs, run=together(progress=name in FEW), **settings)
        found.save(folder / f"{name}.{rank}.nc")
    for name in ("orthogonal", "gram"):
        make, inputs, settings = CASES[name]
        again = Dense(kept_share=0)
        found = capalloc.measure(make(), inputs, solver=again, run=together(), batch_size=4, **settings)
        found.save(folder / f"{name} again.{rank}.nc")
    found = capalloc.measure(
        net(),
        data(31, 5),
        ridge=[0.1, 1.0],
        solver=Stochastic(num_probes=8),
        run=together(distributed=dist.group.WORLD),
    )
    return reducer(rank) | {"totals": [float(found[ridge].total) for ridge in (1.0, 0.1)]}


def reducer(rank: int) -> dict[str, Any]:
    """What the reducer gives back, on this rank."""
    with joined(True) as group:
        part = torch.arange(7, dtype=torch.float64) * 10**rank
        shard = group.shard(7)
        return {
            "sum": group.sum(part).tolist(),
            "scalar": float(group.sum(torch.tensor(float(rank)))),
            "empty": list(group.sum(torch.zeros(0, 3)).shape),
            "fold": group.fold([torch.full((rank, 2), rank)], lambda a, b: a + b) and "folded",
            "order": group.fold(str(rank), lambda a, b: a + b),
            "share": group.share({"a": (1.5, None), "t": torch.tensor([True, False])} if rank == 0 else None)["a"],
            "shard": [shard.start, shard.stop],
        }


def errors(rank: int, folder: Path) -> dict[str, Any]:
    """Calls that fail, one after the other, and one that does not; what is raised on this rank."""
    broken = data(31, 5)
    broken[3, 3] = torch.nan
    alone = dist.new_group([0])
    calls: dict[str, Callable[[], Any]] = {
        "invalid": lambda: capalloc.measure(net(), broken if rank == 1 else data(31, 5), run=together()),
        "unequal": lambda: capalloc.measure(net(), data(31, 5), ridge=0.5 if rank == 1 else 0.25, run=together()),
        "impossible": lambda: capalloc.measure(net(), data(31, 5), ridge=-1.0 if rank == 1 else 0.25, run=together()),
        "another function": lambda: capalloc.measure(net(), data(31, 5), scaled if rank == 1 else None, run=together()),
        "a file": lambda: capalloc.measure(
            net(), data(31, 5), run=together(folder / "run.safetensors" if rank == 1 else None)
        ),
        "outsider": lambda: capalloc.measure(
            net(), data(31, 5), run=Run(distributed=alone if rank == 0 else dist.GroupMember.NON_GROUP_MEMBER)
        ),
        "valid": lambda: capalloc.measure(net(), data(31, 5), run=together()),
    }
    found = {name: raised(call) for name, call in calls.items()}
    meet(folder, "ready", rank, (0, 1, 2))
    if rank != 1:
        hasty = Run(distributed=True, arrival=2.5)
        found["absent"] = raised(lambda: capalloc.measure(net(), data(31, 5), run=hasty))
    meet(folder, "over", rank, (0, 2))
    return found


def meet(folder: Path, name: str, rank: int, others: tuple[int, ...]) -> None:
    """Wait, without a word to the group, until those ranks are here too."""
    (folder / f"{name}.{rank}").touch()
    while not all((folder / f"{name}.{other}").exists() for other in others):
        time.sleep(0.01)


def scaled(y: Tensor) -> Tensor:
    """Make other outputs, from the second one on."""
    return y * torch.tensor([1.0, 50.0])


def raised(call: Callable[[], Any]) -> dict[str, Any]:
    """The error of a call, or the total it found."""
    try:
        return {"total": float(call().total)}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), "rank": getattr(error, "rank", None)}


def leaving(rank: int, folder: Path) -> dict[str, Any]:
    """The rank that holds the store ends without a call, once the other has joined the group."""
    joined_file = folder / "joined"
    if rank == 0:
        while not joined_file.exists():
            time.sleep(0.01)
        os._exit(0)
    joined_file.touch()
    time.sleep(0.5)
    capalloc.measure(net(), data(31, 5), run=Run(distributed=True))
    return {}


def dying(victim: int, sign: int = signal.SIGKILL, silence: float = 20.0, **settings: Any) -> Callable[..., Any]:
    """One rank gets a signal in the middle."""

    def scenario(rank: int, folder: Path) -> dict[str, Any]:
        model = Mortal(victim, sign, folder / "death")
        capalloc.measure(model, data(2000, 5), run=together(silence=silence), batch_size=2, **settings)
        return {}

    return scenario


def long_run(folder: Path, name: str, distributed: bool = False) -> None:
    """A second or two, with a checkpoint at every opportunity."""
    solver: dict[str, Any] = {"ridge": 0.0 if name == "orthogonal" else 0.1, "batch_size": 1}
    if name == "stochastic":
        solver = {"solver": Stochastic(num_probes=LONG_PROBES), "ridge": 0.1, "batch_size": 3}
    x = data({"wide": 4, "stochastic": 9}.get(name, 25), 5)
    run = together(folder / "run.safetensors", checkpoint_seconds=0, distributed=distributed)
    found = capalloc.measure(Slow(), x, run=run, **solver)
    found.save(folder / f"{dist.get_rank() if distributed else 0}.nc")


def resumed(rank: int, folder: Path) -> dict[str, Any]:
    for name in ("gram", "stochastic"):
        (folder / name).mkdir(exist_ok=True)
        long_run(folder / name, name, distributed=True)
    return {"resumed": True}


SCENARIOS: dict[str, Callable[..., Any]] = {
    "cases": cases,
    "errors": errors,
    "last dies": dying(2, ridge=0.1),
    "first dies": dying(0, **STOCHASTIC),
    "leaves": leaving,
    "hangs": dying(1, signal.SIGSTOP),
    "dies, as users have it": dying(1, silence=Run().silence),
    "resumed": resumed,
}


def child(rank: int, size: int, port: int, scenario: str, folder: Path) -> None:
    """One rank, from birth to exit."""
    os.dup2(os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    try:
        said = {"value": SCENARIOS[scenario](rank, folder)}
    except Exception as error:
        said = {"error": type(error).__name__, "message": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(said | {"end": time.monotonic()}))


#: Processes that the task at hand has forked.
FORKED: list[int] = []


def end_with_parent() -> None:
    """A killed run of the tests leaves no process behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def fork(run: Callable[[], None]) -> int:
    """The process that runs it, until the end of its task at most."""
    pid = os.fork()
    FORKED.append(pid)
    if pid == 0:
        try:
            end_with_parent()
            run()
            sys.stderr.flush()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def start(size: int, scenario: str, folder: Path) -> list[int]:
    """The ranks of a new group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [fork(lambda rank=rank: child(rank, size, port, scenario, folder)) for rank in range(size)]


def ended(pids: list[int], seconds: float) -> list[int | None]:
    """Exit statuses; None for those that a signal stopped, or that go on for longer than that, which are killed."""
    deadline = time.monotonic() + seconds
    status: dict[int, int | None] = {}
    while len(status) < len(pids) and time.monotonic() < deadline:
        for pid in set(pids) - set(status):
            changed, code = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if changed:
                status[pid] = None if os.WIFSTOPPED(code) else os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    for pid in pids:
        if status.get(pid) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return [status.get(pid) for pid in pids]


def kill_and_resume(folder: Path, kills: int, longest: float, *names: str) -> None:
    """Long runs in `folder`/name, killed so often at random moments, and in `folder`/name whole, let alone."""
    chance = random.Random(0)
    for name in names:
        (folder / name).mkdir()
        (folder / f"{name} whole").mkdir()
    whole = [fork(partial(long_run, folder / f"{name} whole", name)) for name in names]
    for _ in range(kills):
        pids = [fork(partial(long_run, folder / name, name)) for name in names]
        for pid in pids:
            time.sleep(chance.uniform(0.02, longest / len(pids)))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    resumed = [fork(partial(long_run, folder / name, name)) for name in names]
    assert ended(whole + resumed, PATIENCE) == [0] * len(whole + resumed)


def kill_group_and_resume(folder: Path, size: int, kills: int, longest: float) -> None:
    """The same for all ranks of a group."""
    chance = random.Random(0)
    for _ in range(kills):
        ranks = start(size, "resumed", folder)
        time.sleep(chance.uniform(0.3, longest))
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert ended(start(size, "resumed", folder), PATIENCE) == [0] * size


def run(folder: Path, *scenarios: tuple[str, int]) -> None:
    """Scenarios with their numbers of ranks, each in its own folder, all at once: they wait more than they work."""
    groups = []
    for scenario, size in scenarios:
        own = folder / scenario / str(size)
        own.mkdir(parents=True)
        groups.append((own, start(size, scenario, own)))
    for own, ranks in groups:
        (own / "exits.json").write_text(json.dumps(ended(ranks, PATIENCE)))


TASKS: dict[str, Callable[..., None]] = {
    "run": run,
    "kill": kill_and_resume,
    "kill group": kill_group_and_resume,
}


def serve() -> None:
    """Call one of `TASKS` for every line of the standard input, and answer with a line: empty, or what went wrong."""
    for line in sys.stdin:
        name, folder, *arguments = json.loads(line)
        try:
            TASKS[name](Path(folder), *arguments)
            wrong = ""
        except Exception:
            wrong = traceback.format_exc()
        end_forked()
        print(json.dumps(wrong), flush=True)


def end_forked() -> None:
    """Kill what is left of the processes of a task."""
    for pid in FORKED:
        with suppress(ChildProcessError):  # waited for already
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    FORKED.clear()


@cache
def server() -> subprocess.Popen[str]:
    """The interpreter, with one thread for every process; it ends with this one's end of the pipe."""
    return subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def asked(task: str, folder: Path, *arguments: Any) -> None:
    """Have the server call that task."""
    process = server()
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps([task, str(folder), *arguments]), file=process.stdin, flush=True)
    assert json.loads(process.stdout.readline()) == ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    end_with_parent()
    serve()
