"""Small runs of several processes: the answer of one, or an error on all that are left within half a minute."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

import capalloc
from fuzz.outcome import CLEAR, HANG, SILENT, UNCLEAR, Case, Verdict

#: What the last rank does: the right thing; leave before the call, in the middle of it, or never make it; or bring
#: something else than the others.
FAULTS = (
    *("none", "leaves", "leaves in the middle", "never calls"),
    *("other weights", "other data", "other ridge", "other outputs", "fails"),
)
#: Seconds of `Run`: in which ranks must be heard of, and arrive.
SILENCE, ARRIVAL = 3.0, 8.0
#: Seconds that the ranks that are left may take to say what is wrong.
LONGEST = 40.0
ANSWER = "answer"


def cases(rng: random.Random) -> Iterator[Case]:
    """Two or three ranks, and a fault of the last; every fault once, then any."""
    faults = list(FAULTS)
    rng.shuffle(faults)
    while True:
        size, fault = rng.choice((2, 3)), faults.pop() if faults else rng.choice(FAULTS)
        yield Case(f"{size} ranks, the last one: {fault}", lambda s=size, f=fault: _try(s, f))


def _rank(rank: int, size: int, port: str, fault: str, pipe: Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    x, ridge, calls = torch.randn(30, 5, dtype=torch.float64), 0.1, 0
    own = fault if rank == size - 1 > 0 else "none"

    def outputs(returned: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if own == "leaves in the middle" and calls > 4:
            os._exit(7)
        if own == "fails" and calls > 4:
            raise ArithmeticError("of the caller's own")
        return returned * (2 if own == "other outputs" else 1)

    if own == "leaves":
        os._exit(7)
    if own == "never calls":
        time.sleep(LONGEST)
        os._exit(7)
    if own == "other weights":
        model[0].weight.data[0, 0] += 1
    if own == "other data":
        x = x + 1
    run = capalloc.Run(distributed=size > 1, silence=SILENCE, arrival=ARRIVAL)
    try:
        found = capalloc.measure(model, x, outputs, ridge=0.5 if own == "other ridge" else ridge, run=run)
        pipe.send((ANSWER, found.capacity.values.tolist()))
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))
    os._exit(0)


def _start(size: int, fault: str) -> list[tuple[object, Connection]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(size):
        ours, theirs = get_context("fork").Pipe()
        process = get_context("fork").Process(target=_rank, args=(rank, size, port, fault, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    return started


def _said(pipe: Connection, end: float) -> tuple[str, object] | None:
    """What a rank says; None where it says nothing in time, and nothing more where it is gone."""
    try:
        return pipe.recv() if pipe.poll(max(0.1, end - time.monotonic())) else None
    except EOFError:
        return "gone", ""


def _heard(size: int, fault: str) -> list[tuple[str, object] | None]:
    ranks, end = _start(size, fault), time.monotonic() + LONGEST
    said = [_said(pipe, end) for _, pipe in (ranks if fault == "none" else ranks[:-1])]
    for process, _ in ranks:
        process.kill()
        process.join()
    return said


@cache
def _alone() -> list[float]:
    return _heard(1, "none")[0][1]


def _try(size: int, fault: str) -> Verdict:
    said = _heard(size, fault)
    if None in said:
        return HANG, f"a rank goes on after {LONGEST:.0f} s"
    if fault == "none":
        near = all(
            kind == ANSWER and max(abs(a - b) for a, b in zip(found, _alone(), strict=True)) < 1e-9
            for kind, found in said
        )
        return (CLEAR, "") if near else (SILENT, str(said)[:200])
    if any(kind == ANSWER for kind, _ in said):
        return SILENT, "an answer in spite of the fault"
    spoken = all(kind in ("RankError", "ValueError") and "rank" in text for kind, text in said)
    return (CLEAR, "") if spoken else (UNCLEAR, str(said)[:200])
