"""The list of results, and the result that a file holds, of whatever kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from capalloc._runtime.arguments import checked
from capalloc._runtime.files import SavedFile
from capalloc.results.allocation import Allocation
from capalloc.results.audit_findings import Audit
from capalloc.results.base import Result
from capalloc.results.decoupling import Decoupling
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.effective_parameters import EffectiveParameters
from capalloc.results.evolution import Evolution
from capalloc.results.pruning import PruneScores
from capalloc.results.ranking import Ranking
from capalloc.results.receptive_field import ReceptiveField
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering

#: Every kind of result, in the order of a report.
RESULTS: Final[tuple[type[Result], ...]] = (
    Audit,
    Allocation,
    EffectiveParameters,
    ReceptiveField,
    Decoupling,
    Diagnosis,
    Scaling,
    Shattering,
    PruneScores,
    Ranking,
    Evolution,
)


@checked
def load(path: str | os.PathLike[str], kinds: Sequence[type[Result]] = RESULTS) -> Result:
    """Read the result that a file holds, of whatever kind; nothing in the file is executed or unpickled.

    Args:
        path: a file that `save` of a result wrote.
        kinds: classes of the results that it may hold, those of capalloc by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no result, or is from a newer capalloc.

    """
    file = SavedFile.read(path)
    for kind in kinds:
        if file.name == kind.FORMAT:
            return kind.from_file(file)
    known = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ValueError(f"{path} holds {file.name!r}, which is none of the results {known}")
