"""Blocks and steps beside the Markov rule: distance of each to the measured map, on five networks."""

from __future__ import annotations

import time
from functools import partial

import capalloc
from benchmarks import nulls
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
        for stage, make in (("initial", initial), ("trained", partial(trained, digits=digits))):
            model, *others = (make(name, seed) for seed in (SEED, *nulls.OTHER_SEEDS))
            measured = capalloc.measure(model, x, metric="variance")
            predicted, seconds = {}, {}
            for solver in ("markov", "block"):
                start = time.perf_counter()
                predicted[solver] = capalloc.propagate(model, x, solver=solver, metric="variance", table=False)
                seconds[solver] = time.perf_counter() - start
            block = predicted["block"]
            noise = 0.5 * float(block.capacity.standard_error.sum()) / float(block.capacity.sum())
            markov = partial(capalloc.propagate, inputs=x, metric="variance", table=False, solver="markov")
            rows.append(
                (
                    name,
                    stage,
                    str(measured.attrs["num_params"]),
                    f"{measured.total:.0f}",
                    f"{predicted['markov'].total:.0f}",
                    f"{nulls.whole(measured, block):.3f}",
                    f"{nulls.inner(measured, block):.3f}",
                    f"{noise:.3f}",
                    *nulls.agreement(measured, predicted["markov"], model, others, markov),
                    *(f"{a.bias:.1f}" for a in (measured, *predicted.values())),
                    *(f"{seconds[s]:.1f}" for s in predicted),
                )
            )
    return Table(
        "Blocks and steps beside the Markov rule",
        f'Total variation to the measured map on {EXAMPLES} test digits, weights of seed {SEED}, metric "variance". '
        "`block` counts the constant input, `of inputs` leaves it out. "
        "`error` is half the summed standard error of the block map over its sum: what the probes alone leave. "
        f"Then the Markov rule: {nulls.ABOUT}",
        (
            "network",
            "weights",
            "parameters",
            "measured total",
            "Markov total",
            "block",
            "of inputs",
            "error",
            *nulls.HEADER,
            "bias measured",
            "Markov",
            "block",
            "seconds Markov",
            "block",
        ),
        rows,
    )
