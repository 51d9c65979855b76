"""Architectures compared on processes of different memory: each trained to predict each, and where its capacity lies.

Every pair is a cell, kept in a file of its own as soon as it is done, so that a run that was cut short goes on where
it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

from capalloc.app.studies.frame import kept
from capalloc.linear.capacity import linear_capacity
from capalloc.linear.filters import (
    dense_filter,
    dilated_stack,
    pooling_hierarchy,
    recurrent_filter,
    stacked_convolutions,
    strided_hierarchy,
)
from capalloc.linear.metrics import ROOT_KINDS, RootKind
from capalloc.linear.of_model import model_jacobian
from capalloc.linear.prediction_task import PredictionTask, prediction
from capalloc.linear.processes import Process, autoregression, fractional_noise, sinusoids, white_noise
from capalloc.linear.series import co2, sunspots
from capalloc.linear.training import Trained, train

FilterBuilder = Callable[[int, torch.Generator], nn.Module]

LINEAR_ARCHITECTURES: dict[str, FilterBuilder] = {
    "dense": dense_filter,
    "convolutions": stacked_convolutions,
    "dilated": dilated_stack,
    "dilated x4": partial(dilated_stack, channels=4),
    "dilated unshared": partial(dilated_stack, shared=False),
    "strided x4": partial(strided_hierarchy, kernel=4, channels=4),
    "pooling x2": partial(pooling_hierarchy, channels=2),
    "recurrent": recurrent_filter,
}
STUDY_PROCESSES: dict[str, Callable[[], Process]] = {
    "white noise": white_noise,
    "AR(2)": partial(autoregression, [0.6, -0.3]),
    "fractional noise": partial(fractional_noise, 0.9),
    "sinusoids": partial(sinusoids, [0.05, 0.13]),
    "sunspots": sunspots,
    "CO2": co2,
}
#: Lags up to which the table sums capacity.
WITHIN_LAGS = (1, 10, 100)


@dataclass(frozen=True)
class LinearSettings:
    """The settings of a study; two runs that share them give the same numbers.

    Args:
        lags: values of the window.
        steps: how far ahead to predict.
        seed: of the initial weights.
        restarts: initial weights to train from; the lowest loss counts.
        max_iterations: of the training.
        root: whom capacity on correlated lags is credited to, as in `linear_capacity`.

    Raises:
        ValueError: a number below 1 (the seed: below 0), or an unknown root.

    """

    lags: int = 256
    steps: int = 1
    seed: int = 0
    restarts: int = 4
    max_iterations: int = 200
    root: RootKind = "symmetric"

    def __post_init__(self) -> None:
        for name, least in {"lags": 1, "steps": 1, "seed": 0, "restarts": 1, "max_iterations": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.root not in ROOT_KINDS:
            raise ValueError(f"root must be one of {', '.join(ROOT_KINDS)}, got {self.root!r}")


def linear_study(
    settings: LinearSettings | None = None,
    architectures: Sequence[str] | None = None,
    processes: Sequence[str] | None = None,
    *,
    cells: Path | None = None,
    progress: bool | None = False,
) -> xr.Dataset:
    """Train every architecture to predict every process, and measure its capacity there.

    Capacity is that of the trained filter in the metric of the process (docs/theory.md, section 1). Losses are exact
    expectations over the variance of the process. Numbers are the same on every run of one machine: the study
    computes on one thread, and the seed of a cell depends on its names alone.

    Args:
        settings: see `LinearSettings`.
        architectures: of `LINEAR_ARCHITECTURES`; all by default.
        processes: of `STUDY_PROCESSES`; all by default. "sunspots" and "CO2" need statsmodels.
        cells: folder to keep finished cells in and to look for them; nothing is kept by default.
        progress: show a progress bar; None shows it on a terminal only.

    Returns:
        Over (architecture, process, lag) `capacity`; over (architecture, process) `params`, `total`, `loss`, `excess`
        over the best filter of the window, `gradient`, `converged`, and with `within` the capacity up to 1, 10 and 100
        lags; over (process) `best_loss` and `long_memory`.

    Raises:
        ValueError: unknown names, or a window too short for an architecture.
        ModuleNotFoundError: a real series without statsmodels.

    """
    settings = settings or LinearSettings()
    chosen = _chosen(architectures, LINEAR_ARCHITECTURES, "architecture")
    tasks = {name: STUDY_PROCESSES[name]() for name in _chosen(processes, STUDY_PROCESSES, "process")}
    for name in chosen:  # a window too short shows before hours of training
        LINEAR_ARCHITECTURES[name](settings.lags, torch.Generator())
    if cells is not None:
        cells.mkdir(parents=True, exist_ok=True)
    rows = []
    hide = None if progress is None else not progress
    with one_thread(), tqdm(total=len(tasks) * len(chosen), desc="linear study", disable=hide) as bar:
        for process, source in tasks.items():
            task = prediction(source, settings.lags, settings.steps)
            done = []
            for architecture in chosen:
                bar.set_postfix_str(f"{architecture}, {process}")
                done.append(_kept_cell(cells, architecture, process, task, settings))
                bar.update()
            row = xr.concat(done, dim=xr.Variable("architecture", chosen))
            best = float(task.loss(task.optimal_filter)) / task.variance
            rows.append(row.assign(best_loss=best, long_memory=source.long_memory))
    study = xr.concat(rows, dim=xr.Variable("process", list(tasks))).transpose("architecture", "process", ...)
    study.attrs = asdict(settings)
    return study


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums in one order, and no time lost on threads that wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chosen(names: Sequence[str] | None, known: dict[str, Any], kind: str) -> list[str]:
    chosen = list(known) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"{kind} {unknown or 'list'} is unknown or empty; there are {', '.join(map(repr, known))}")
    return chosen


def _kept_cell(
    cells: Path | None, architecture: str, process: str, task: PredictionTask, settings: LinearSettings
) -> xr.Dataset:
    if cells is None:
        return cell(architecture, process, task, settings)
    path = cells / f"{architecture}, {process}.nc".replace(" ", "_")
    wanted = {"architecture": architecture, "process": process, "capalloc": version("capalloc"), **asdict(settings)}
    return kept(path, "capalloc-linear-cell", wanted, lambda: cell(architecture, process, task, settings))


def cell(architecture: str, process: str, task: PredictionTask, settings: LinearSettings) -> xr.Dataset:
    """Train one architecture on one process from several initial weights, and measure it at the best optimum."""
    runs = [
        train(
            LINEAR_ARCHITECTURES[architecture](settings.lags, generator(settings.seed, architecture, process, k)),
            task,
            settings.max_iterations,
        )
        for k in range(settings.restarts)
    ]
    return _measured(min(runs, key=lambda run: run.loss), task, settings)


def generator(seed: int, architecture: str, process: str, restart: int) -> torch.Generator:
    """Make the random numbers of one training run, whatever else the study runs."""
    words = [seed, zlib.crc32(architecture.encode()), zlib.crc32(process.encode()), restart]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _measured(run: Trained, task: PredictionTask, settings: LinearSettings) -> xr.Dataset:
    J = model_jacobian(run.model, [settings.lags], lags=True)
    allocation = linear_capacity(J, task.metric, root=settings.root)
    capacity = allocation.capacity.drop_attrs().sortby("lag")
    return xr.Dataset(
        {
            "capacity": capacity,
            "within_lags": ("within", [float(capacity[:limit].sum()) for limit in WITHIN_LAGS]),
            "filter": ("lag", run.filter.flip(0).numpy()),
            "params": J.sizes["params"],
            "total": allocation.total,
            "loss": run.loss / task.variance,
            "excess": task.excess(run.filter) / task.variance,
            "gradient": run.gradient,
            "converged": run.converged,
        },
        coords={"within": list(WITHIN_LAGS)},
    )
