"""What scores of untrained networks say of their accuracy after training, beside a count of parameters.

The protocol was fixed in docs/validation.md before the first run. Finished rows stand in a file, and a run that was
cut short goes on from there.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from capalloc._audit.rank_models import Candidate
from capalloc._model.problem import seeded
from capalloc.results.ranking import Ranking
from studies.pruning import Data, accuracy
from studies.ranking_networks import DATA, Plan, build, plans
from studies.study import Study, table

NETWORKS, SEEDS = 100, 3
#: Training: examples, batch, epochs, and the highest of a cycle of learning rates of Adam.
TRAINED, BATCH, EPOCHS, RATE = 640, 64, 20, 1e-2
#: Examples that scores are taken from.
SCORED = 64
#: Draws of the null and of the intervals.
DRAWS = 2000
#: Accuracy below so many times chance is a failure.
FAILED = 1.5
SCORES = tuple(name for name in Ranking.COLUMNS if name != "alike")
FINISHED = Path(".cache/ranking.jsonl")
Array = NDArray[np.float64]


def run(quick: bool = False, finished: Path | None = FINISHED) -> Study:
    """Train and score every network on every data set, and compare the orders."""
    number, epochs = (4, 1) if quick else (NETWORKS, EPOCHS)
    sets = {name: load() for name, load in DATA.items()}
    shapes = tuple(_shape(data) for data in sets.values())
    known = {} if quick or finished is None else _read(finished)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index, plan in enumerate(plans(number, shapes)):
            for of, data in sets.items():
                if (row := known.get((of, index))) is None:
                    row = {"data": of, "index": index, **asdict(plan), **one(plan, data, epochs)}
                    if not quick and finished is not None:
                        finished.parent.mkdir(exist_ok=True)
                        with finished.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                rows.append(row)
    frame = pd.DataFrame(rows)
    return Study("validation.md", {"ranking": orders(frame, sets), "ranking networks": networks(frame, sets)})


def _shape(data: Data) -> tuple[tuple[int, ...], int]:
    return tuple(data.x.shape[1:]), int(data.y.max()) + 1


def _read(path: Path) -> dict[tuple[str, int], dict[str, object]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["data"], row["index"]): row for row in map(json.loads, lines)}


def one(plan: Plan, data: Data, epochs: int) -> dict[str, object]:
    """Scores at the first seed's initial weights, and the accuracy of every seed."""
    with seeded(0, torch.device("cpu")):
        model = build(plan, *_shape(data)).eval()
    candidate = Candidate.of(model, data.x[:SCORED], None, data.y[:SCORED], "identity", 0)
    row = candidate.row("markov", depth=False)
    return {
        **{name: row[name] for name in SCORES},
        "accuracy": [trained(plan, data, epochs, seed) for seed in range(SEEDS)],
    }


def trained(plan: Plan, data: Data, epochs: int, seed: int) -> float:
    """Test accuracy after training; outputs that are no numbers are wrong."""
    with seeded(seed, torch.device("cpu")):
        model = build(plan, *_shape(data))
        x, y = data.x[:TRAINED], data.y[:TRAINED]
        optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, epochs * math.ceil(len(x) / BATCH))
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(BATCH):
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rates.step()
    return accuracy(model.eval(), data)


# -- statistics ---------------------------------------------------------------------------------------------


def ranks(values: Array) -> Array:
    """Mid-ranks along the last axis; NaN as the least."""
    return pd.DataFrame(np.nan_to_num(values, nan=-np.inf, posinf=np.inf).T).rank().to_numpy().T


def correlations(a: Array, b: Array) -> Array:
    """Pearson correlation along the last axis; 0 where one of the two is constant."""
    a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.zeros(np.shape(size)), where=size > 0)


def spearman(a: Array, b: Array) -> float:
    """Correlation of ranks."""
    return float(correlations(ranks(a[None]), ranks(b[None]))[0])


def partial(a: Array, b: Array, given: list[Array]) -> float:
    """Correlation of ranks of a and b, each less what the ranks of others say of it linearly."""
    others = np.stack([np.ones(len(a)), *(ranks(g[None])[0] for g in given)], 1)
    left = [v - others @ np.linalg.lstsq(others, v, rcond=None)[0] for v in (ranks(a[None])[0], ranks(b[None])[0])]
    return float(correlations(left[0], left[1])) if min(np.std(v) for v in left) > 1e-9 else math.nan


def interval(a: Array, b: Array, other: Array | None = None) -> tuple[float, float]:
    """95 % of draws of networks: of the correlation with b, less that of another score."""
    picked = np.random.default_rng(0).integers(len(b), size=(DRAWS, len(b)))
    found = correlations(ranks(a[picked]), ranks(b[picked]))
    if other is not None:
        found = found - correlations(ranks(other[picked]), ranks(b[picked]))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def chance(number: int) -> float:
    """The size of a correlation that 5 % of random orders exceed."""
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((DRAWS, number)), axis=1).astype(float)
    return float(np.quantile(abs(correlations(order, np.arange(float(number)))), 0.95))


# -- tables -------------------------------------------------------------------------------------------------


def score(frame: pd.DataFrame, name: str) -> Array:
    """A column, the best highest."""
    return frame[name].to_numpy(float) * Ranking.COLUMNS[name].sign


def mean_accuracy(frame: pd.DataFrame) -> Array:
    """Of the seeds."""
    return np.array(frame["accuracy"].to_list()).mean(1)


def orders(frame: pd.DataFrame, sets: dict[str, Data]) -> str:
    """Agreement of every score's order with that of accuracy, by data set."""
    rows = []
    for of in sets:
        here = frame[frame["data"] == of]
        accurate, count = mean_accuracy(here), score(here, "parameters")
        good = accurate >= np.median(accurate)
        for name in SCORES:
            own = score(here, name)
            given = [score(here, other) for other in ("parameters", "flops") if other != name]
            within = [
                spearman(own[part], accurate[part])
                for kind in sorted(set(here["kind"]))
                if (part := (here["kind"] == kind).to_numpy()).sum() > 3
            ]
            rows.append([
                of,
                Ranking.COLUMNS[name].head,
                f"{spearman(own, accurate):.2f} ({_between(*interval(own, accurate))})",
                "" if name == "parameters" else _between(*interval(own, accurate, count)),
                _shown(partial(own, accurate, given)),
                f"{spearman(own[good], accurate[good]):.2f}",
                f"{np.mean(within):.2f}" if within else "–",
                int((~np.isfinite(here[name].to_numpy(float))).sum()),
            ])  # fmt: skip
    head = ["data", "score", "Spearman", "less that of the count", "given parameters and FLOPs", "better half"]
    return table([*head, "within kinds", "not finite"], rows)


def networks(frame: pd.DataFrame, sets: dict[str, Data]) -> str:
    """Accuracies by data set, what chance does and what another seed says."""
    rows = []
    for of, data in sets.items():
        here = frame[frame["data"] == of]
        by_seed = np.array(here["accuracy"].to_list()).T
        accurate, least = by_seed.mean(0), FAILED / _shape(data)[1]
        pairs = [spearman(by_seed[i], by_seed[j]) for i in range(SEEDS) for j in range(i)]
        half = accurate >= np.median(accurate)
        again = [spearman(by_seed[i][half], by_seed[j][half]) for i in range(SEEDS) for j in range(i)]
        rows.append([
            of,
            len(here),
            " / ".join(f"{v:.2f}" for v in np.quantile(accurate, (0, 0.25, 0.5, 0.75, 1))),
            int((by_seed < least).sum()),
            f"{np.mean(pairs):.2f}, {np.mean(again):.2f}",
            f"{chance(len(here)):.2f}, {chance(int(half.sum())):.2f}",
        ])  # fmt: skip
    head = ["data", "networks", "accuracy, least, quartiles, most", f"runs under {FAILED} times chance"]
    return table([*head, "one seed with another: all, better half", "random orders, 95 %: all, better half"], rows)


def _between(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
