"""Parameters in several places: every use asks a rescaling for the same factor, exp(a_written - a_read).

Only uses that a path passes ask for anything, so relations are made once the path energies are known.
Index convention: k classes of positions, g groups of a grouped map, o outputs and j entries read in a group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOTHING, GROUND = 0, 1
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Uses:
    """Single parameters, one use a row."""

    parameter: Integers
    written: Integers
    read: Integers

    def alive(self, passed: Flags) -> tuple[Integers, Integers, Integers]:
        """Parameter, label written and label read of the uses that paths pass; passed: by label."""
        on = passed[self.written] & passed[self.read]
        return self.parameter[on], self.written[on], self.read[on]


@dataclass(frozen=True)
class Served:
    """Weights (g, o, j) that serve k classes of positions."""

    written: Integers  # (k, g, o)
    read: Integers  # (k, g, j)
    used: Flags  # (g, o, j): which weights are not 0

    def alive(self, passed: Flags) -> tuple[Integers, Integers, Integers]:
        """List uses as `Uses.alive`; one output and one entry speak for the rest where all classes are passed alike."""
        writes: Flags = passed[self.written]
        reads: Flags = passed[self.read]
        on: Flags = np.logical_and(np.any(writes, axis=2), np.any(reads, axis=2))  # (k, g)
        found: list[tuple[Integers, Integers, Integers]] = []
        for g in range(self.used.shape[0]):
            k = np.flatnonzero(on[:, g])
            if len(k) > 1:
                o, j = np.flatnonzero(writes[k, g].any(0)), np.flatnonzero(reads[k, g].any(0))
                o, j = _enough(o, j, np.all(writes[k, g], axis=0), np.all(reads[k, g], axis=0), self.used[g])
                w, r = self.written[k[:, None], g, o], self.read[k[:, None], g, j]
                both = writes[k[:, None], g, o] & reads[k[:, None], g, j]
                number = np.broadcast_to((g * self.used.shape[1] + o) * self.used.shape[2] + j, w.shape)
                found.append((number[both], w[both], r[both]))
        none = np.zeros(0, dtype=np.int64)
        parameter, written, read = (
            (np.concatenate([none, *column]) for column in zip(*found, strict=True)) if found else (none,) * 3
        )
        return parameter, written, read


Sharing = Uses | Served


def relations(sharing: Iterable[Sharing], component: Integers, alive: Flags) -> Integers:
    """Rows of components (w, r, w', r') with w - r = w' - r', from the components that paths pass."""
    passed = alive[component]
    passed[NOTHING] = False
    rows = [np.zeros((0, 4), dtype=np.int64)]
    for shared in sharing:
        parameter, written, read = shared.alive(passed)
        order = np.argsort(parameter, kind="stable")
        ends = component[np.stack([written, read], 1)[order]]
        again = np.flatnonzero(np.diff(parameter[order]) == 0)
        rows.append(np.concatenate([ends[again], ends[again + 1]], 1))
    return np.concatenate(rows)


def _enough(o: Integers, j: Integers, writes: Flags, reads: Flags, used: Flags) -> tuple[Integers, Integers]:
    """Weights whose relations imply those of all weights between outputs o and entries j.

    With an output and an entry that all classes pass, one row and one column do: the differences between two
    classes at the row's entries equal those at its output, hence those at the column's outputs.
    """
    block = used[np.ix_(o, j)]
    row, column = np.flatnonzero(writes[o] & block.all(1)), np.flatnonzero(reads[j] & block.all(0))
    if len(row) and len(column):
        rest = np.delete(o, row[0])
        return np.concatenate([np.full(len(j), o[row[0]]), rest]), np.concatenate([j, np.full(len(rest), j[column[0]])])
    entries = block.nonzero()
    return o[entries[0]], j[entries[1]]
