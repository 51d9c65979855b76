"""Small runs of several processes: the answer of one, or an error on all that are left within half a minute."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache

from fuzz.outcome import CLEAR, HANG, SILENT, UNCLEAR, Case, Verdict

RANK = """
import json, os, sys, torch, torch.distributed as dist
from capalloc import Run, measure
torch.set_num_threads(1)
rank, size, fault = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    dist.init_process_group("gloo", rank=rank, world_size=size)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
x = torch.randn(30, 5, dtype=torch.float64)
last = rank == size - 1 > 0
if last and fault == "leaves": os._exit(7)
if last and fault == "never calls":
    import time; time.sleep(45); os._exit(7)
if last and fault == "other weights": model[0].weight.data[0, 0] += 1
if last and fault == "other data": x = x + 1
if last and fault == "other ridge": ridge = 0.5
found = measure(model, x, ridge=0.5 if last and fault == "other ridge" else 0.1,
                run=Run(distributed=size > 1, progress=False, silence=5.0, arrival=15.0))
print(json.dumps(found.capacity.values.tolist()), flush=True)
os._exit(0)
"""
FAULTS = ("none", "leaves", "never calls", "other weights", "other data", "other ridge")
#: Seconds that the ranks that are left may take: their start, and half a minute to be told.
LONGEST = 120.0


def cases(rng: random.Random) -> Iterator[Case]:
    """Two or three ranks, and a fault of the last."""
    while True:
        size, fault = rng.choice((2, 3)), rng.choice(FAULTS)
        yield Case(f"{size} ranks, the last one: {fault}", lambda s=size, f=fault: _try(s, f))


def _start(size: int, fault: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(k), str(size), fault], env=told, text=True, **pipes
        )
        for k in range(size)
    ]


@cache
def _alone() -> list[float]:
    out, _ = _start(1, "none")[0].communicate()
    return json.loads(out.splitlines()[-1])


def _try(size: int, fault: str) -> Verdict:
    ranks = _start(size, fault)
    watched = ranks if fault == "none" else ranks[:-1]
    end, said = time.monotonic() + LONGEST, []
    for process in watched:
        try:
            said.append(process.communicate(timeout=max(1.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            for other in ranks:
                other.kill()
            return HANG, f"a rank goes on after {LONGEST:.0f} s"
    for other in ranks:
        other.kill()
    if fault == "none":
        values = [json.loads(out.splitlines()[-1]) for out, _ in said if out.strip()]
        near = len(values) == size and all(
            abs(a - b) < 1e-9 for found in values for a, b in zip(found, _alone(), strict=True)
        )
        return (CLEAR, "") if near else (SILENT, str([err[-200:] for _, err in said]))
    if any(out.strip() for out, _ in said):
        return SILENT, "an answer in spite of the fault"
    spoken = all("RankError" in err or "ranks" in err or "rank " in err for _, err in said)
    return (CLEAR, "") if spoken else (UNCLEAR, str([err[-200:] for _, err in said]))
