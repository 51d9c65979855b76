"""Train every network at every learning rate and keep the rate that validation prefers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from studies.training_fit import Budget, Outcome, fit, outcomes
from studies.training_networks import Network, batches
from studies.training_predict import Prediction, predict
from studies.training_tasks import Task


@dataclass(frozen=True, eq=False)
class Setting:
    """A task, how it is trained, and what counts as having learned it."""

    name: str
    task: Task
    optimiser: str
    rates: tuple[float, ...]
    threshold: float  # test accuracy
    needs_blocks: bool = False  # stem and readout alone cannot do it
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Result:
    """A network in one setting, at its best learning rate."""

    network: Network
    prediction: Prediction
    expected: bool  # that it trains, from the prediction alone
    rate: float
    outcomes: tuple[Outcome, ...]  # one for each seed
    threshold: float

    @property
    def accuracy(self) -> float:
        """On the test examples, mean of the seeds."""
        return statistics.fmean(outcome.test for outcome in self.outcomes)

    @property
    def error(self) -> float:
        """Standard error of `accuracy`; not a number with one seed."""
        tests = [outcome.test for outcome in self.outcomes]
        return statistics.stdev(tests) / math.sqrt(len(tests)) if len(tests) > 1 else math.nan

    @property
    def loss(self) -> float:
        """On the training examples, median of the seeds; infinite where training diverged."""
        return statistics.median(o.loss if math.isfinite(o.loss) else math.inf for o in self.outcomes)

    @property
    def time(self) -> float:
        """T after training, median of the seeds."""
        return statistics.median(outcome.time for outcome in self.outcomes)

    @property
    def trained(self) -> bool:
        """Whether the accuracy reaches the threshold."""
        return self.accuracy >= self.threshold


def results(setting: Setting, networks: Sequence[Network]) -> list[Result]:
    """Every network at its best rate, in the order given."""
    found = {network: result for group in batches(networks) for network, result in _group(setting, group).items()}
    return [found[network] for network in networks]


def _group(setting: Setting, networks: Sequence[Network]) -> dict[Network, Result]:
    runs = [(network, seed) for network in networks for seed in setting.seeds]
    by_rate = {}
    for rate in setting.rates:
        weights = fit(runs, setting.task, setting.optimiser, rate, setting.budget)
        found = outcomes([network for network, _ in runs], weights, setting.task)
        size = len(setting.seeds)
        by_rate[rate] = [tuple(found[i : i + size]) for i in range(0, len(found), size)]
    return {network: _best(setting, network, {r: by_rate[r][i] for r in by_rate}) for i, network in enumerate(networks)}


def _best(setting: Setting, network: Network, by_rate: dict[float, tuple[Outcome, ...]]) -> Result:
    """The rate of the highest mean validation accuracy; of equal ones the smallest."""
    rate = max(by_rate, key=lambda rate: statistics.fmean(outcome.validation for outcome in by_rate[rate]))
    prediction = predict(network)
    expected = prediction.uses_blocks if setting.needs_blocks else prediction.trains
    return Result(network, prediction, expected, rate, by_rate[rate], setting.threshold)
