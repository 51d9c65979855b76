"""Effective receptive fields, measured on the gradients of random networks and walked on the same networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from studies.receptive_field_estimates import (
    deviation,
    each_alike,
    excess_kurtosis,
    gaussian,
    jackknife,
    noise_floor,
    pooled,
    slope,
    total_variation,
)
from studies.receptive_field_networks import draws, gradient, profile, walked
from studies.receptive_field_stacks import Array, Stack

KIND = ["weights", "activation", "kernel", "of"]  # what tells plain stacks of several depths apart


@dataclass(frozen=True)
class Case:
    """One stack, and what is measured on it."""

    family: str
    stack: Stack
    draws: int
    of: Literal["gradient", "gradient²"] = "gradient²"  # itself, or its energy
    walks: int = 4  # draws whose walk is taken too


@dataclass(frozen=True, eq=False)
class Field:
    """What was measured on one case: estimates with standard errors over draws, in input pixels."""

    case: Case
    law: Array  # measured, on one axis, draws weighted by what they carry
    measured: tuple[float, float]  # standard deviation of it
    alike: tuple[float, float]  # the same with draws weighted alike
    walk: tuple[float, float]  # standard deviation of capalloc's walk on the same networks
    kurtosis: tuple[float, float]  # excess kurtosis of the measured law
    variation: tuple[float, float]  # total variation between the measured law and the closed form; its noise floor


def measure_fields(cases: Iterable[Case], seed: int = 0) -> list[Field]:
    """Measure every case on draws of its own."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    return [_measure(case, generator, rng) for case in tqdm(list(cases), desc="stacks", disable=None)]


def _measure(case: Case, generator: torch.Generator, rng: np.random.Generator) -> Field:
    rows, walks = [], []
    for k, (model, image) in enumerate(draws(case.stack, case.draws, generator)):
        found = gradient(model, image)
        rows.append(profile(found if case.of == "gradient" else found**2))
        if k < case.walks:
            walks.append(walked(model, image))
    rows, walks = np.array(rows), np.array(walks)
    law = pooled(rows)
    return Field(
        case=case,
        law=law,
        measured=jackknife(deviation, rows),
        alike=jackknife(deviation, each_alike(rows)),
        walk=jackknife(deviation, walks),
        kurtosis=jackknife(excess_kurtosis, rows),
        variation=(total_variation(law, case.stack.law()), noise_floor(rows, rng)),
    )


def to_pandas(fields: Iterable[Field]) -> pd.DataFrame:
    """One row for each field: its stack, the prediction, and every estimate beside its standard error."""
    return pd.DataFrame([_row(field) for field in fields])


def _row(field: Field) -> dict[str, object]:
    case, stack, predicted = field.case, field.case.stack, field.case.stack.law()
    names = ("kernel", "depth", "activation", "weights", "channels", "size")
    estimates = {name: getattr(field, name) for name in ("measured", "alike", "walk", "kurtosis")}
    return {
        "family": case.family,
        "of": case.of,
        "draws": case.draws,
        **{name: getattr(stack, name) for name in names},
        "predicted": stack.deviation,
        "predicted_kurtosis": float(excess_kurtosis(predicted)),
        "predicted_from_gaussian": total_variation(predicted, gaussian(predicted)),
        **{name: value for name, (value, _) in estimates.items()},
        **{f"{name}_error": error for name, (_, error) in estimates.items()},
        "variation": field.variation[0],
        "variation_floor": field.variation[1],
    }


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Log-log slopes in depth, by kind of plain stack: predicted, measured, and the standard error of the latter."""
    plain = frame[frame["family"] == "plain"]
    return pd.DataFrame({key: _slopes(part) for key, part in plain.groupby(KIND, sort=False)}).T.rename_axis(KIND)


def _slopes(part: pd.DataFrame) -> dict[str, float]:
    depths = part["depth"].to_numpy(float)
    predicted, measured, error = (part[name].to_numpy() for name in ("predicted", "measured", "measured_error"))
    if (error < 1e-6 * measured).any():  # networks without randomness: every depth counts alike
        return {"predicted": slope(depths, predicted, predicted)[0], "measured": slope(depths, measured, measured)[0]}
    found, doubt = slope(depths, measured, error)
    return {"predicted": slope(depths, predicted, predicted)[0], "measured": found, "error": doubt}
