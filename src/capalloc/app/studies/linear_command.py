"""The command `capalloc linear-study`."""

from __future__ import annotations

from pathlib import Path

from capalloc.app.cli.errors import UsageError
from capalloc.app.cli.lines_in_a_log import lines_in_a_log
from capalloc.app.cli.options import Verbosity
from capalloc.app.studies.frame import StudyFrame
from capalloc.app.studies.linear_figure import plot_linear_study
from capalloc.app.studies.linear_study import LINEAR_ARCHITECTURES, STUDY_PROCESSES, LinearSettings, linear_study
from capalloc.app.studies.linear_table import cells, page, summary
from capalloc.linear.metrics import RootKind

LINEAR_FRAME = StudyFrame("linear-study", 1, plot_linear_study, ("cells", cells), summary, page)


def run_linear_study(
    verbosity: Verbosity,
    out: Path,
    architecture: list[str] | None,
    process: list[str] | None,
    lags: int,
    steps: int,
    seed: int,
    restarts: int,
    root: RootKind,
) -> None:
    """Run the study into the folder `out`; finished cells there are not run again."""
    for option, given, known in (
        ("architecture", architecture, LINEAR_ARCHITECTURES),
        ("process", process, STUDY_PROCESSES),
    ):
        if unknown := [name for name in given or () if name not in known]:
            raise UsageError(f"--{option} must be one of {', '.join(known)}, got {', '.join(unknown)}")
    settings = LinearSettings(lags=lags, steps=steps, seed=seed, restarts=restarts, root=root)
    with lines_in_a_log(verbosity):
        study = linear_study(settings, architecture, process, cells=out / "cells", progress=not verbosity.quiet)
    LINEAR_FRAME.deliver(study, out, verbosity)
