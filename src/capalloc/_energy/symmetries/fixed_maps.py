"""Fixed linear maps of what one linear stretch of a graph makes: they may take away more than rescalings do.

A stretch is what lies between gates. In it a difference of units loses what they have in common, a mean over units or
positions all but their sum, a fixed matrix what is in its null space; squares of amplitudes do not tell.
"""

from __future__ import annotations

import math

from torch.fx import Node

from capalloc._energy.carriers import Carriers
from capalloc._graph.capture import Graph
from capalloc._graph.structure import numel
from capalloc._operators.records import record

#: Kinds that weigh their input, all entries of it together.
WEIGHING = ("dense", "convolution", "contraction")
#: Kinds that leave entries as they are, or scale each.
ENTRYWISE = ("copy", "movement", "piece", "selection", "pooling", "product", "quotient", "normalisation", "sum")
#: Movements that make more entries than they read, and no other may without writing one twice.
PADDING = "aten.pad"


def has_fixed_maps(graph: Graph, carriers: Carriers) -> bool:
    """Return True where a fixed map meets what parameters weigh in its stretch, or parts of one stretch meet again.

    Averages over fewer windows than there are entries keep what gates made apart.
    """
    starts: dict[Node, frozenset[str]] = {}
    weighed: set[Node] = set()
    for node in graph.calls():
        if node not in carriers.carrying or node not in carriers.signals:
            continue
        kind = record(node.target).kind
        if carriers.decouples(node) and kind != "pooling":  # a maximum of units that all move alike moves as they do
            starts[node] = frozenset({f"{node.target} {node.args} {node.kwargs}"})  # one gate may be written twice
            continue
        feeds = carriers.feeds(node)
        read = [used for used in feeds if used in carriers.signals]
        parts = [starts.get(used, frozenset({used.name})) for used in read]
        starts[node] = frozenset().union(*parts)
        if sum(map(len, parts)) > len(starts[node]):
            return True
        by_parameters = len(read) < len(feeds)
        if by_parameters or not weighed.isdisjoint(read):
            weighed.add(node)
        size, sizes = numel(node), [numel(used) for used in read]
        if math.inf in (size, *sizes):
            return True
        grows = size > sum(sizes)
        repeats = kind == "movement" and grows and not str(node.target).startswith(PADDING)
        if (kind in WEIGHING and by_parameters) or (kind in ENTRYWISE and not repeats):
            continue
        if kind != "average" or size >= sizes[0] or not weighed.isdisjoint(read):
            return True
    return False
