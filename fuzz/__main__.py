"""Try odd things for a bounded time and print what came of them: `python -m fuzz --seconds 600 --seed 0`.

The last four columns should be 0, but for `unclear`, at most 1 % of the cases: messages that do not name what is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch

from fuzz import calls, files, kills, modes, ranks
from fuzz.outcome import OUTCOMES, PATIENCE, PATIENCE_WITH_PROCESSES, UNCLEAR, tally

#: What is tried, and its share of the time.
KINDS = {
    "calls": (calls, 0.35),
    "files": (files, 0.15),
    "kills": (kills, 0.2),
    "ranks": (ranks, 0.22),
    "modes": (modes, 0.08),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=40, help="cases of a kind to show that did not end well")
    options = parser.parse_args()
    chosen = {name: KINDS[name] for name in options.kinds or KINDS}
    whole = sum(share for _, share in chosen.values())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| kind | cases | " + " | ".join(OUTCOMES) + " |\n|---|" + "---:|" * (1 + len(OUTCOMES)))
    failed, bad = False, {}
    for name, (kind, share) in chosen.items():
        patience = PATIENCE_WITH_PROCESSES if kind in (kills, ranks) else PATIENCE
        found = tally(kind.cases, options.seed, options.seconds * share / whole, patience)
        total = sum(found.counts.values())
        print(f"| {name} | {total} | " + " | ".join(map(str, found.counts.values())) + " |", flush=True)
        worse = sum(found.counts[outcome] for outcome in OUTCOMES[2:])
        failed |= worse > 0 or found.counts[UNCLEAR] > total / 100
        bad[name] = found.bad
    for name, ended in bad.items():
        for outcome, case, detail in ended[: options.shown]:
            print(f"{name}: {outcome}: {case}: {detail}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
