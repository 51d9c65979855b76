"""How many architectures of other people the methods take: each built from its package, without weights or downloads.

`pip install -c constraints.txt -e '.[coverage]'`: with torch pinned, none of these packages brings another.
Sweeps go on from the file that `CAPALLOC_COVERAGE` names, or one among temporary files; remove it to begin anew.
The table says of how many states of the library its figures are: of one, where it was swept in one piece.
`CAPALLOC_COVERAGE_FIRST=150` takes as many alone, the first of each family in turns; all take an hour of one core.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import capalloc
from benchmarks.coverage_zoo import Architecture, architectures, load_packages
from benchmarks.table import Table
from capalloc.results import Allocation, ReceptiveField

#: Seconds of the processor for one call, and bytes for one architecture beside those that it starts with.
TIME_LIMIT, MEMORY_LIMIT = 150, 8 * 2**30
#: Of each family every so manieth is asked for all calls, the others for the first ones.
DEEP, FIRST_CALLS = 6, ("markov", "receptive field")
#: Architectures examined at a time.
WORKERS = 2
#: Seconds of the processor for all calls of one architecture.
LAST = 4 * TIME_LIMIT
#: Parameters up to which the exact answer is measured too.
MEASURED = 3000
EXAMPLES = 2
#: Slack of sums, of float32 energies and of probes that are summed in another order.
TOLERANCE = 1e-3

Record = dict[str, Any]


def allocation_faults(result: Allocation, parameters: int) -> list[str]:
    """What an allocation breaks of what holds for every one: finite, no less than 0, whole, at most all parameters."""
    inputs, bias, total = torch.as_tensor(result.capacity.values), float(result.bias), float(result.total)
    if not (bool(torch.isfinite(inputs).all()) and math.isfinite(bias) and math.isfinite(total)):
        return ["not finite"]
    slack = TOLERANCE * max(total, 1.0)
    faults = []
    if float(inputs.min()) < -slack or bias < -slack:
        faults.append("negative")
    if abs(float(inputs.double().sum()) + bias - total) > slack:
        faults.append("inputs and constant do not sum to the total")
    if total > parameters + slack:
        faults.append("more than all parameters")
    return faults


def field_faults(field: ReceptiveField, parameters: int) -> list[str]:
    """What a receptive field breaks: a law on the inputs, and paths that all end within it."""
    law = torch.as_tensor(field.map.values).double()
    if not bool(torch.isfinite(law).all()):
        return ["not finite"]
    faults = ["negative"] if float(law.min()) < 0 else []
    if float(law.sum()) > 1 + TOLERANCE:
        faults.append("more than all probability")
    seen = torch.as_tensor(field.support.values)
    if seen.shape == law.shape and float(law[~seen].sum()) > TOLERANCE:
        faults.append("paths from beyond the theoretical field")
    return faults


def _propagate(model: nn.Module, x: Tensor, **options: Any) -> Allocation:
    return capalloc.propagate(model, x, table=False, solver="markov", **options)


def _blocks(model: nn.Module, x: Tensor, **options: Any) -> Allocation:
    quick = capalloc.solvers.Block(num_steps=0, num_probes=2, output_probes=2, max_seconds=5)
    return capalloc.propagate(model, x, solver=quick, **options)


CALLS: dict[str, tuple[Callable[..., Any], Callable[..., list[str]]]] = {
    "markov": (_propagate, allocation_faults),
    "blocks": (_blocks, allocation_faults),
    "receptive field": (capalloc.receptive_field, field_faults),
    "measure": (capalloc.measure, allocation_faults),
}


class OutOfTime(BaseException):
    """Not an `Exception`, which a method may take for a reason to try something else."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """End what takes more than `TIME_LIMIT` seconds of the processor: then and, where that was caught, again."""

    def end(*_: Any) -> None:
        raise OutOfTime(f"more than {TIME_LIMIT} seconds")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def count(model: nn.Module) -> int:
    """Real numbers of all parameters."""
    return sum(p.numel() * (1 + p.is_complex()) for p in model.parameters())


def examine(model: nn.Module, x: Tensor, calls: Iterable[str] = CALLS, **options: Any) -> dict[str, Record]:
    """Call after call: seconds, and what is wrong: nothing, a broken invariant, or an error."""
    parameters = count(model)
    found: dict[str, Record] = {}
    for name in calls:
        call, faults = CALLS[name]
        if name == "measure" and parameters > MEASURED:
            continue
        start = time.process_time()
        try:
            with _limited():
                wrong = "; ".join(faults(call(model, x, **options), parameters))
        except OutOfTime as error:
            wrong = str(error)
        except Exception as error:  # whatever goes wrong is what is looked for
            wrong = f"{type(error).__name__}: {error}"
            if os.environ.get("CAPALLOC_COVERAGE_TRACE"):
                traceback.print_exc()
        found[name] = {"seconds": round(time.process_time() - start, 2), "wrong": wrong}
    return found


def _child(architecture: Architecture, calls: Iterable[str], answers: Connection) -> None:
    """Build and examine one architecture, within its limits; each answer is sent as it comes."""
    used = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT, used + MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CPU, (LAST, LAST + 5))  # where no signal is heard
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model, x = architecture.build(EXAMPLES)
        model.eval()
        answers.send({"parameters": count(model)})
    except BaseException as error:  # packages raise what they will
        answers.send({"unbuilt": f"{type(error).__name__}: {error}"})
        return
    for name in calls:
        answers.send(examine(model, x, [name]))


def examine_apart(architecture: Architecture, calls: Iterable[str] = CALLS) -> Record:
    """Examine an architecture in a process of its own, which may run out of time or memory."""
    context = multiprocessing.get_context("fork")  # with torch already loaded
    with _FORKING:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(architecture, list(calls), there))
        child.start()
        there.close()
    record: Record = {"name": architecture.name, "family": architecture.family, "state": _state()}
    with contextlib.suppress(EOFError):
        while True:
            record |= here.recv()
    child.join()
    lost = [name for name in calls if name not in record and name != "measure"]
    if "unbuilt" not in record and lost:
        record[lost[0]] = {"seconds": LAST, "wrong": "died (out of memory or time)"}
    return record


#: A process that is forked meanwhile would keep the other's pipe open.
_FORKING = threading.Lock()


@functools.cache
def _state() -> str:
    """Digest of the library's source."""
    package = Path(capalloc.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


Asked = tuple[Architecture, Iterable[str]]


def in_turns(families: Iterable[Architecture]) -> list[Asked]:
    """The first of each family, then the second of each, with the calls that each is asked for."""
    listed: dict[str, list[Architecture]] = {}
    for architecture in families:
        listed.setdefault(architecture.family, []).append(architecture)
    rounds = itertools.zip_longest(*listed.values())
    return [
        (architecture, FIRST_CALLS if k % DEEP else tuple(CALLS))
        for k, each in enumerate(rounds)
        for architecture in each
        if architecture
    ]


def sweep(chosen: Iterable[Asked], path: Path) -> list[Record]:
    """Examine what the file at `path` does not hold yet, write it there one by one, and return all asked for."""
    known = {record["name"]: record for record in _read(path)}
    chosen = list(chosen)
    new = [asked for asked in chosen if asked[0].name not in known]
    with ThreadPoolExecutor(WORKERS) as pool, path.open("a") as file:
        for done in as_completed([pool.submit(examine_apart, *asked) for asked in new]):
            record = done.result()
            file.write(json.dumps(record) + "\n")
            file.flush()
            known[record["name"]] = record
    return [known[architecture.name] for architecture, _ in chosen]


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Count by family what went well, with the median seconds, and name what did not."""
    records = list(records)
    built = [record for record in records if "unbuilt" not in record]
    rows = []
    for family in [*sorted({record["family"] for record in built}), None]:
        own = [record for record in built if family in (None, record["family"])]
        rows.append((family or "all", str(len(own)), *(_cell(own, name) for name in CALLS)))
    faults = [
        f"{record['name']}, {name}: {_brief(record[name]['wrong'])}"
        for record in built
        for name in CALLS
        if record.get(name, {}).get("wrong")
    ]
    unbuilt = [f"{record['name']}: {_brief(record['unbuilt'])}" for record in records if "unbuilt" in record]
    states = len({record.get("state") for record in built})
    about = (
        f"{len(built)} architectures from packages, random weights, {EXAMPLES} examples, a process each of at most "
        f"{MEMORY_LIMIT // 2**30} GiB, {TIME_LIMIT} s a call. Counted is what returns a finite answer that sums to its "
        f"total, is nowhere negative and holds no more than all parameters; in brackets, the median seconds of "
        f"one core. All calls are asked of every sixth of a family; measured exactly are up to {MEASURED} parameters. "
        + ("One sweep of one state of the library." if states == 1 else f"Swept over {states} states of the library.")
    )
    for what, lines in {"What did not": faults, "What its package does not build here": unbuilt}.items():
        if lines:
            about += f"\n\n{what}:\n\n" + "\n".join(f"- {line}" for line in lines)
    return Table("Coverage", about, ("family", "built", *CALLS), rows)


def _cell(records: Iterable[Mapping[str, Any]], call: str) -> str:
    asked = [record[call] for record in records if call in record]
    if not asked:
        return "–"
    right = sum(not each["wrong"] for each in asked)
    return f"{right}/{len(asked)} ({statistics.median(each['seconds'] for each in asked):.1f})"


def _brief(wrong: str) -> str:
    text = " ".join(wrong.split())
    return text if len(text) < 240 else text[:240] + " …"


def run() -> Table:
    examine(nn.Linear(2, 1), torch.ones(EXAMPLES, 2))  # what the calls load is then there before each fork
    path = Path(os.environ.get("CAPALLOC_COVERAGE", Path(tempfile.gettempdir()) / "capalloc-coverage.jsonl"))
    load_packages()
    chosen = in_turns(architectures())[: int(os.environ.get("CAPALLOC_COVERAGE_FIRST", 0)) or None]
    found = table(sweep(chosen, path))
    report = Path(__file__).with_name("COVERAGE.md")
    report.write_text(f"{found.markdown()}\n")
    return found
