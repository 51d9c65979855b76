"""Tables of the training study."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from studies.study import table
from studies.training_results import Result

#: What is ranked against the outcome: in theory higher is better for the first two; T should be of order one.
RANKED: Mapping[str, Callable[[Result], float]] = {
    "gradient correlation": lambda result: result.prediction.correlation,
    "-\\|log gain\\|": lambda result: -abs(math.log(result.prediction.gain)),
    "-\\|log T\\|": lambda result: -abs(math.log(result.prediction.time)),
}
BASELINE = "no blocks"


def page(found: Mapping[str, Sequence[Result]]) -> str:
    """All tables, each below a line that says what it holds."""
    parts = [f"{name}, test accuracy in percent:\n\n{accuracies(results)}" for name, results in found.items()]
    parts.append(f"Networks that were predicted to train, and that trained:\n\n{confusion(found)}")
    parts.append(f"Networks that trained, of those in each phase:\n\n{phases(found)}")
    parts.append(f"Spearman rank correlation of predicted numbers with the outcome:\n\n{ranks(found)}")
    parts.append(f"T at initial weights (predicted) and after training (measured), deepest networks:\n\n{times(found)}")
    return "\n\n".join(parts)


def wide_page(results: Sequence[Result]) -> str:
    """The same networks at several widths."""
    widths = sorted({result.network.width for result in results})
    rows: dict[tuple[int, str], list[str]] = {}
    for result in results:
        depth, family = result.network.depth, result.network.family
        start = [str(depth), family, f"{result.prediction.correlation:.4f}"]
        rows.setdefault((depth, family), start).append(_cell(result))
    head = ["L", "network", "gradient correlation", *(f"width {width}" for width in widths)]
    return f"digits, SGD, test accuracy in percent, by width:\n\n{table(head, rows.values())}"


def sleeping_page(results: Sequence[Result]) -> str:
    """Networks whose branches carry nothing, by Adam, with T after training."""
    head = ["L", "network", "T initial", "T trained", "accuracy", "best rate"]
    rows = []
    for r in results:
        before, after = (f"{time:.2g}" for time in (r.prediction.time, r.time))
        rows.append([r.network.depth, r.network.family, before, after, _cell(r), f"{r.rate:g}"])
    return f"pairs, Adam, test accuracy in percent:\n\n{table(head, rows)}"


def accuracies(results: Sequence[Result]) -> str:
    """Families by depth; bold where training was predicted, with an exclamation mark where the prediction is wrong."""
    depths = sorted({result.network.depth for result in results})
    return table(["network", *(f"L = {depth}" for depth in depths)], _by_family(results, _cell))


def confusion(found: Mapping[str, Sequence[Result]]) -> str:
    """Counts of predicted and observed training, plain and residual networks apart."""
    head = ["setting", "networks", "both", "predicted only", "trained only", "neither", "right"]
    rows = []
    for name, kind, results in groups(found):
        pairs = [(result.expected, result.trained) for result in results]
        counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        rows.append([name, kind, *counts, f"{counts[0] + counts[3]} of {len(pairs)}"])
    return table(head, rows)


def phases(found: Mapping[str, Sequence[Result]]) -> str:
    """How many networks of each phase trained."""
    settings = list(found)
    kinds = sorted({_phase(result) for results in found.values() for result in networks(results)})
    rows = []
    for kind in kinds:
        groups = [[r.trained for r in networks(found[name]) if _phase(r) == kind] for name in settings]
        rows.append([*kind, *(f"{sum(group)} of {len(group)}" for group in groups)])
    return table(["networks", "phase", *settings], rows)


def ranks(found: Mapping[str, Sequence[Result]]) -> str:
    """Of each predicted number with accuracy and with minus the training loss, so that + 1 is what theory expects."""
    rows = []
    for name, kind, results in groups(found):
        for quality, outcome in (("accuracy", lambda r: r.accuracy), ("-loss", lambda r: -r.loss)):
            values = [rank_correlation(results, number, outcome) for number in RANKED.values()]
            rows.append([name, kind, quality, *("" if math.isnan(value) else f"{value:.2f}" for value in values)])
    return table(["setting", "networks", "outcome", *RANKED], rows)


def times(found: Mapping[str, Sequence[Result]]) -> str:
    """Of the residual networks."""
    residual = [r for results in found.values() for r in networks(results) if not r.prediction.plain]
    depth = max(result.network.depth for result in residual)
    rows = {}
    for result in residual:
        if result.network.depth == depth:
            start = [result.network.family, f"{result.prediction.time:.2g}"]
            rows.setdefault(result.network.family, start).append(f"{result.time:.2g}" if result.trained else "-")
    return table([f"network, L = {depth}", "initial", *found], rows.values())


def groups(found: Mapping[str, Sequence[Result]]) -> Iterable[tuple[str, str, list[Result]]]:
    """Plain and residual networks of every setting, the one without blocks left out."""
    for name, results in found.items():
        for kind in ("plain", "residual"):
            yield name, kind, [r for r in networks(results) if r.prediction.plain == (kind == "plain")]


def networks(results: Sequence[Result]) -> list[Result]:
    """Those that have blocks."""
    return [result for result in results if result.network.family != BASELINE]


def rank_correlation(
    results: Sequence[Result], number: Callable[[Result], float], outcome: Callable[[Result], float]
) -> float:
    """Spearman's; not a number where all are equal."""
    x, y = np.array([number(result) for result in results]), np.array([outcome(result) for result in results])
    if len(np.unique(x)) == 1 or len(np.unique(y)) == 1:
        return math.nan
    return float(spearmanr(x, y).statistic)


def _phase(result: Result) -> tuple[str, str]:
    return ("plain" if result.prediction.plain else "residual"), result.prediction.phase


def _by_family(results: Sequence[Result], cell: Callable[[Result], str]) -> list[list[str]]:
    rows: dict[str, list[str]] = {}
    for result in results:
        rows.setdefault(result.network.family, [result.network.family]).append(cell(result))
    return list(rows.values())


def _cell(result: Result) -> str:
    if all(not math.isfinite(outcome.loss) for outcome in result.outcomes):
        text = "diverged"
    else:
        text = f"{100 * result.accuracy:.1f} ± {100 * result.error:.1f}"
    text = f"**{text}**" if result.expected else text
    wrong = result.expected != result.trained and result.network.family != BASELINE
    return f"{text} !" if wrong else text
