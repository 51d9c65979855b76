"""The block rule beside the Markov rule: distance of each to the measured map, on five networks."""

from __future__ import annotations

import time

import capalloc
from benchmarks.networks import NETWORKS, initial, trained
from benchmarks.table import Table
from capalloc.app.demo import load_digits

EXAMPLES = 60
SEED = 0


def run() -> Table:
    digits = load_digits(SEED)
    x = digits.test_images[:EXAMPLES]
    rows = []
    for name in NETWORKS:
        for stage, model in (("initial", initial(name, SEED)), ("trained", trained(name, SEED, digits))):
            measured = capalloc.measure(model, x)
            predicted, seconds = {}, {}
            for solver in ("markov", "block"):
                start = time.perf_counter()
                predicted[solver] = capalloc.propagate(model, x, solver=solver, table=False)
                seconds[solver] = time.perf_counter() - start
            block = predicted["block"]
            noise = 0.5 * float(block.capacity.standard_error.sum()) / float(block.capacity.sum())
            rows.append(
                (
                    name,
                    stage,
                    str(measured.attrs["num_params"]),
                    f"{measured.total:.0f}",
                    f"{predicted['markov'].total:.0f}",
                    *(f"{capalloc.total_variation(measured, predicted[s]):.4f}" for s in predicted),
                    f"{noise:.4f}",
                    *(f"{a.bias:.1f}" for a in (measured, *predicted.values())),
                    *(f"{seconds[s]:.1f}" for s in predicted),
                )
            )
    return Table(
        "The block rule beside the Markov rule",
        f"Total variation to the measured map on {EXAMPLES} test digits, weights of seed {SEED}, 32 probes. "
        "`error` is half the summed standard error of the block map over its sum: what the probes alone leave.",
        (
            "network",
            "weights",
            "parameters",
            "measured total",
            "Markov total",
            "Markov",
            "block",
            "error",
            "bias measured",
            "Markov",
            "block",
            "seconds Markov",
            "block",
        ),
        rows,
    )
