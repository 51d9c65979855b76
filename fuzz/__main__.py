"""Try odd things for a bounded time and print what came of them: `python -m fuzz --seconds 600 --seed 0`.

`of` is the number of cases that ten minutes are for. The last four columns should be 0, but for `unclear`, at most 1 %
of the cases: messages that do not name what is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fuzz import calls, files, kills, modes, ranks
from fuzz.outcome import OUTCOMES, PATIENCE, PATIENCE_WITH_PROCESSES, UNCLEAR, Case, tally


@dataclass(frozen=True)
class Kind:
    """What is tried: its share of the time left, cases side by side, and as many as ten minutes of two cores are for.

    Runs that are killed, and ranks that are waited for, are idle most of the time.
    """

    cases: Callable[[random.Random], Iterator[Case]]
    share: float
    lanes: int
    wanted: int
    patience: float = PATIENCE


#: In turn; time that one leaves is the next ones'.
KINDS = {
    "calls": Kind(calls.cases, 0.4, 2, 9481),
    "kills": Kind(kills.cases, 0.26, 4, 114, PATIENCE_WITH_PROCESSES),
    "ranks": Kind(ranks.cases, 0.12, 6, 46, PATIENCE_WITH_PROCESSES),
    "files": Kind(files.cases, 0.14, 2, 2200),
    "modes": Kind(modes.cases, 0.08, 2, 27),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=40, help="cases of a kind to show that did not end well")
    options = parser.parse_args()
    chosen = {name: KINDS[name] for name in options.kinds or KINDS}
    began, whole = time.monotonic(), sum(kind.share for kind in chosen.values())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kills.unbroken()
    print("| kind | cases | of | seconds | " + " | ".join(OUTCOMES) + " |\n|---|" + "---:|" * (3 + len(OUTCOMES)))
    failed, bad = False, {}
    for name, kind in chosen.items():
        started = time.monotonic()
        seconds = (options.seconds - (started - began)) * kind.share / whole
        whole -= kind.share
        found = tally(kind.cases, options.seed, seconds, kind.patience, kind.lanes)
        total = sum(found.counts.values())
        shown = (total, kind.wanted, f"{time.monotonic() - started:.0f}", *found.counts.values())
        print(f"| {name} | " + " | ".join(map(str, shown)) + " |", flush=True)
        worse = sum(found.counts[outcome] for outcome in OUTCOMES[2:])
        failed |= worse > 0 or found.counts[UNCLEAR] > total / 100
        bad[name] = found.bad
    for name, ended in bad.items():
        for outcome, case, detail in ended[: options.shown]:
            print(f"{name}: {outcome}: {case}: {detail}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
