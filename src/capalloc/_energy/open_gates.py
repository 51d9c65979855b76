"""Gates as other weights and inputs would open them: what a field of paths asks, whatever an example has closed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.carriers import Carriers
from capalloc._energy.generic_values import compares, evaluated, is_floating, reached_from
from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values
from capalloc._model.problem import seeded
from capalloc._operators.calls import arguments_of
from capalloc._operators.records import named, record

#: Values of gates by the call that they steer and the argument's name.
Opened = Mapping[Node, Mapping[str, Tensor]]
Decide = Callable[[Node, Tensor], Tensor]
CONDITIONAL, FILLS = (
    named("where.self where.ScalarSelf where.ScalarOther"),
    named("masked_fill.Scalar masked_fill.Tensor"),
)
#: Comparisons whose answers are all tried, each alike for all entries, and draws with answers for each entry.
TRIED_TOGETHER, DRAWN_BY_ENTRY = 4, 8
#: Logits that a mask adds below which a key is closed, whether it is written as -1e4, -1e9 or infinity.
CLOSED_LOGIT = -1e3


def open_gates(graph: Graph, carriers: Carriers, batch: Tensor, generator: torch.Generator) -> Opened:
    """Find gates that close paths on the examples, open where any answers of comparisons and random values open them.

    A condition that chooses between two becomes the share of draws in which it is true.
    """
    places = dict(_steering(graph, carriers))
    if not places:
        return {}
    with seeded(0, batch.device):  # a model that draws numbers draws the same throughout
        own = evaluated(graph, batch)
    found = {key: _as_gate(key[0], own[gate]) for key, gate in places.items()}
    if all(key[0].target not in CONDITIONAL and _is_open(key[0], value) for key, value in found.items()):
        return {}
    draws = 1
    for values in _draws(graph, batch, generator):
        draws += 1
        for key, gate in places.items():
            found[key] = _opened(key[0], found[key], _as_gate(key[0], values[gate]))
    opened: dict[Node, dict[str, Tensor]] = {}
    for (node, name), value in found.items():
        opened.setdefault(node, {})[name] = value / draws if node.target in CONDITIONAL else value
    return opened


def examples_choose(graph: Graph, carriers: Carriers) -> bool:
    """Tell whether examples choose the entries that paths go through, otherwise than by gates that open."""
    live, opens = reached_from(graph, (graph.input,)), {(node, gate) for (node, _), gate in _steering(graph, carriers)}
    read = ((node, a) for node in carriers.carrying & live for a in node.all_input_nodes if a in live)
    return any(call not in opens and not is_floating(call[1].meta.get("val")) for call in read)


def draws_apart(graph: Graph, carriers: Carriers) -> bool:
    """Tell whether numbers are drawn beside what carries paths, which may choose them."""
    drawn = torch.Tag.nondeterministic_seeded
    return any(drawn in getattr(node.target, "tags", ()) for node in graph.calls() if node not in carriers.carrying)


def _steering(graph: Graph, carriers: Carriers) -> Iterator[tuple[tuple[Node, str], Node]]:
    """List the arguments that close paths of the calls that carry them: masks, conditions and factors."""
    live = reached_from(graph, (graph.input,))
    for node in carriers.carrying & live:
        known = record(node.target)
        for name, gate in arguments_of(node).items():
            if not isinstance(gate, Node) or gate not in live:
                continue
            frozen = gate not in carriers.carrying or name in carriers.frozen.get(node, ())
            steers = name == "attn_mask" or name in (known.factors or ()) or known.kind in ("dense", "convolution")
            chooses = (node.target in CONDITIONAL and name == "condition") or (node.target in FILLS and name == "mask")
            if chooses or (frozen and steers):
                yield (node, name), gate


def _draws(graph: Graph, batch: Tensor, generator: torch.Generator) -> Iterator[Values]:
    live = reached_from(graph, (graph.input, *graph.params))
    compared = [node for node in graph.calls() if node in live and compares(node)]
    together = [*itertools.product((False, True), repeat=min(TRIED_TOGETHER, len(compared)))]
    answers = [dict(zip(compared, bits, strict=False)) for bits in together]
    alike: list[Decide] = [lambda node, v, a=a: torch.full_like(v, a.get(node, True)) for a in answers]  # type: ignore[misc]
    by_entry: Decide = lambda node, v: (torch.rand(v.shape, generator=generator) < 0.5).to(v.device)  # noqa: E731
    for decide in [*alike, *([by_entry] * DRAWN_BY_ENTRY)]:
        with suppress(RuntimeError, IndexError), seeded(0, batch.device):  # where no input gives such answers
            yield evaluated(graph, batch, generator, fills=True, decide=decide)


def _as_gate(node: Node, value: Tensor) -> Tensor:
    if node.target in CONDITIONAL:
        return value.double()
    return value.nan_to_num() if record(node.target).kind != "attention" and is_floating(value) else value


def _is_open(node: Node, gate: Tensor) -> bool:
    if node.target in FILLS:
        return not bool(gate.any())
    return bool((gate > CLOSED_LOGIT).all() if _is_bias(node, gate) else (gate != 0).all())


def _opened(node: Node, first: Tensor, other: Tensor) -> Tensor:
    """Join two values of a gate."""
    if node.target in CONDITIONAL:
        return first + other
    if node.target in FILLS:
        return first & other
    return torch.where(first > CLOSED_LOGIT if _is_bias(node, first) else first != 0, first, other)


def _is_bias(node: Node, gate: Tensor) -> bool:
    """Tell whether a gate is added to logits."""
    return record(node.target).kind == "attention" and gate.dtype != torch.bool
