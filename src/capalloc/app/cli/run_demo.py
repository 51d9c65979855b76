"""`capalloc demo`: a small network trained, measured, predicted."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from capalloc.app.cli.deliver import check_targets, show
from capalloc.app.cli.options import Verbosity
from capalloc.app.cli.tables import table_of
from capalloc.app.demo import Demo, run_demo
from capalloc.results.view import estimate


def run(verbosity: Verbosity, out: Path, seed: int) -> None:
    """Run `capalloc demo`."""
    check_targets(out)  # before the work, not after it
    verbosity.tell("training a small network on handwritten digits, measuring its capacity, predicting it ...")
    found = run_demo(seed, progress=verbosity.bars)
    found.write(out)
    show(verbosity, facts(found), summary(found))
    verbosity.tell(f"wrote {out}: open it in a browser")


def facts(found: Demo) -> dict[str, object]:
    """Name the numbers of the demo."""
    return {
        "num_params": found.measured.attrs["num_params"],
        "num_hidden": found.num_hidden,
        "unused_params": found.predicted.attrs["unused_params"],
        "accuracy": found.accuracy,
        "measured": {"total": found.measured.total, "bias": found.measured.bias},
        "predicted": {"total": found.predicted.total, "bias": found.predicted.bias},
        **found.agreement,
        "seconds": found.seconds,
    }


def summary(found: Demo) -> Table:
    """Make a table of the numbers of the demo."""
    parameters = found.measured.attrs["num_params"]
    rows = [
        [name, f"{a.total:.2f}", f"{a.bias:.2f}", f"{found.seconds[step]:.1f}"]
        for name, a, step in (("measured", found.measured, "measure"), ("predicted", found.predicted, "predict"))
    ]
    agreed = {name: estimate(value) for name, value in found.agreement.items()}
    title = f"{parameters} parameters, test accuracy {found.accuracy:.1%}"
    table = table_of(title, ["capacity", "total", "on bias", "seconds"], rows)
    table.add_section()
    table.add_row("parameters − hidden channels", str(parameters - found.num_hidden))
    table.add_row("parameters in dead units", str(found.predicted.attrs["unused_params"]))
    table.add_row("total-variation distance", agreed["total_variation"])
    table.add_row("of the pixels alone", agreed["total_variation_of_inputs"])
    table.add_row("correlation of the two maps", agreed["correlation"])
    table.add_row("with the second backwards", agreed["correlation_backwards"])
    return table
