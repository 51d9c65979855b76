"""Files of any result: which one a file holds, and the result itself, with no model at hand."""

from __future__ import annotations

import os
from typing import Final, TypeAlias

from capalloc._runtime.files import read_name
from capalloc.results.allocation import Allocation
from capalloc.results.decoupling import Decoupling
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.evolution import Evolution
from capalloc.results.receptive_field import ReceptiveField
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering

Result: TypeAlias = Allocation | Decoupling | Diagnosis | Evolution | ReceptiveField | Scaling | Shattering

#: Every kind of result, by the name of its format.
KINDS: Final[dict[str, type[Result]]] = {
    kind.FORMAT: kind for kind in (Allocation, Decoupling, Diagnosis, Evolution, ReceptiveField, Scaling, Shattering)
}


def load(path: str | os.PathLike[str]) -> Result:
    """The result that a file holds, of whatever kind; nothing in the file is executed or unpickled.

    Args:
        path: a file that `save` of a result wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no result, or is from a newer capalloc.

    """
    name = read_name(path)
    if name not in KINDS:
        known = ", ".join(sorted(kind.__name__ for kind in KINDS.values()))
        raise ValueError(f"{path} holds {name or 'no format mark'!r}, which is none of the results {known}")
    return KINDS[name].load(path)
