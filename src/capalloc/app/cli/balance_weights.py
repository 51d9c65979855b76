"""`capalloc balance`: initial weights brought into balance, in a file of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import capalloc
from capalloc._linalg.metric_names import MetricName
from capalloc._runtime.files import atomically
from capalloc.app.cli.as_json import records
from capalloc.app.cli.compute import FEW_EXAMPLES
from capalloc.app.cli.deliver import check_targets, show
from capalloc.app.cli.errors import UsageError
from capalloc.app.cli.lines_in_a_log import lines_in_a_log
from capalloc.app.cli.load_weights import WEIGHT_ENDINGS
from capalloc.app.cli.options import ModelOptions, Verbosity
from capalloc.app.cli.sources import read_sources
from capalloc.app.cli.tables import LARGEST, table_of
from capalloc.app.cli.transformers_source import FedByName
from capalloc.results.scaling import Scaling

#: Relative change of a parameter that is shown.
CHANGED = 1e-6
VALUES_ALONE = (
    "the file holds values, which any model of this kind takes; gradients that carry the factors too, as the best "
    "learning rate at every depth needs, come with capalloc.balance(model, inputs) in Python"
)


def run_balance(
    options: ModelOptions,
    verbosity: Verbosity,
    out: Path,
    optimiser: Literal["sgd", "adam"],
    metric: MetricName,
    trained: bool | None,
) -> None:
    """Run `capalloc balance`."""
    if out.suffix not in WEIGHT_ENDINGS:
        raise UsageError(f"--out must end in {', '.join(WEIGHT_ENDINGS)}, a file of weights, got {out}")
    check_targets(out)
    for read in (options.weights, options.data):
        if read is not None and out.exists() and read.exists() and out.samefile(read):
            raise UsageError(f"--out would write over the input {read}; give another name")
    x = read_sources(options, verbosity, FEW_EXAMPLES)
    if not isinstance(x.model, nn.Module):
        raise UsageError("a .pt2 file cannot be balanced; name what makes the model, and its weights with --weights")
    told: dict[str, Any] = {"metric": metric, "trained": trained}
    with lines_in_a_log(verbosity):
        balanced = capalloc.balance(x.model, x.inputs, x.outputs, optimiser=optimiser, **told)
        stands = [capalloc.scaling(model, x.inputs, x.outputs, **told) for model in (x.model, balanced)]
    own, balanced = (m.model if isinstance(m, FedByName) else m for m in (x.model, balanced))  # names are the user's
    given = own.state_dict()
    state = values(balanced, given)
    save_weights(state, out)
    found = factors(given, state)
    notes = [VALUES_ALONE] if len(found) and stands[0].phase != "plain" else []
    before, after = ({key: getattr(s, key) for key in ("phase", "T", "total_gain")} for s in stands)
    numbers = {"model": options.model, "optimiser": optimiser, "before": before, "after": after, "out": out}
    rows = [[str(name), f"{factor:.4g}"] for name, factor in found["factor"].items()]
    more = [[f"{len(rows) - LARGEST} more", ""]] if len(rows) > LARGEST else []
    table = table_of("parameters that were multiplied", ["parameter", "by"], rows[:LARGEST] + more)
    lines = [f"before: {in_short(stands[0])}", f"after: {in_short(stands[1])}", *(f"note: {note}" for note in notes)]
    shown = [table] if rows else ["nothing to change: the weights are written as they were"]
    show(verbosity, numbers | {"params": records(found), "notes": notes}, *shown, *lines)
    verbosity.tell(f"wrote {out}")


def values(balanced: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameters and buffers as the model uses them, multiples multiplied, by the names of the model that was given."""
    found = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        found[name] = getattr(balanced.get_submodule(owner), leaf).detach().clone().contiguous()
    return found


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write parameters and buffers as `--weights` reads them, whole or not at all."""
    with atomically(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save(state, temporary)


def factors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> pd.DataFrame:
    """Factors of the tensors that have changed."""
    ratios = {name: float(after[name].double().norm() / value.double().norm()) for name, value in before.items()}
    changed = {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > CHANGED}  # not those of zeros: NaN
    return pd.DataFrame({"factor": list(changed.values())}, index=pd.Index(list(changed), name="parameter"))


def in_short(found: Scaling) -> str:
    """The verdict on depth in a few words."""
    if found.phase == "plain":
        return f"plain layers, path energy times {found.total_gain:.4g} in all"
    return f"{found.phase}, T = {found.T:.3g}"
