"""The inputs that can change an output position, bounded by structure from above and by gradients from below."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from capalloc._depth.trace_fields import FieldPrograms
from capalloc._energy.batches import Batches
from capalloc._energy.influence import Influence, gates_add_nothing, gradient_reach, influence
from capalloc._graph.capture import Graph
from capalloc._model.problem import seeded
from capalloc.results.receptive_field import Index, Status

#: Draws of weights and inputs that a field is swept at, that gradients are taken at, and that for a check.
SWEEPS, DRAWS, DRAWS_OF_CHECK = 2, 12, 24

#: What is said of a model whose random numbers may choose paths.
DRAWN_NOTE = (
    "the model draws random numbers, which may choose what reaches the output: the fields are those of the draws"
)


@dataclass(frozen=True)
class Bound:
    """The inputs that can change a position, and what is known of both fields."""

    influence: Tensor  # (*inputs)
    paths_status: Status
    influence_status: Status
    notes: list[str] = field(default_factory=list)


def bound(batches: Batches, position: Index, paths: Tensor, *, programs: FieldPrograms, check: bool) -> Bound:
    """Find all that can change the position, where `paths` start in the `programs`, and compare gradients.

    Raises:
        ValueError: an input outside the bound has a gradient.

    """
    graph, random = batches.graph, torch.Generator().manual_seed(0)
    like = batches.problem.probe.expand(graph.batch_size, *batches.problem.input_shape)
    plain, reached = programs.gates == "unit" and gates_add_nothing(graph, batches.carriers), torch.zeros_like(paths)
    with seeded(0, like.device):
        found = Influence(paths) if plain else _swept(graph, position, like, random)
        draws = DRAWS_OF_CHECK if check else 0 if plain else DRAWS
        for done in range(draws):
            if done and not check and torch.equal(reached, found.seen):
                break
            with seeded(0, like.device):  # what the model draws is what the sweeps met
                reached = reached | gradient_reach(graph, position, like, random)
    if outside := int((reached & ~found.seen).sum()):
        raise ValueError(
            f"{outside} inputs beyond the field of influence have a gradient: the kind declared for an operator of "
            "this model is wrong (capalloc.rule), or that of capalloc is"
        )
    narrower = not torch.equal(paths, found.seen)
    closed, opened = programs.chosen or found.chosen, programs.opens and narrower
    beyond = bool((paths & ~found.seen).any())
    found.seen = found.seen | paths
    places = batches.problem.places
    equal = torch.equal(reached, found.seen)
    bounds: Status = "whole input" if found.seen.all() else "upper bound"
    notes = _notes(found, places.holds(paths), places.holds(reached), places.holds(found.seen), draws if check else 0)
    if programs.drawn and not found.seen.all():
        return Bound(places.holds(found.seen), "depends on data", "depends on data", [*notes, DRAWN_NOTE])
    return Bound(
        places.holds(found.seen),
        "depends on data" if closed and narrower and not beyond else "upper bound" if beyond or opened else "exact",
        "exact" if plain or equal else "depends on data" if found.chosen else bounds,
        notes,
    )


def _swept(graph: Graph, position: Index, like: Tensor, random: torch.Generator) -> Influence:
    """Join what sweeps at several random weights and inputs find."""
    sweeps = []
    for _ in range(SWEEPS):
        with seeded(0, like.device):
            sweeps.append(influence(graph, position, like, random))
    unknown = {name: None for sweep in sweeps for name in sweep.unknown}
    return Influence(
        torch.stack([sweep.seen for sweep in sweeps]).any(0), unknown, any(sweep.chosen for sweep in sweeps)
    )


def _notes(found: Influence, paths: Tensor, reached: Tensor, seen: Tensor, draws: int) -> list[str]:
    number, more = int(seen.sum()), int((seen & ~paths).sum())
    notes = []
    if more:
        notes.append(
            f"the theoretical field is that of paths, {int(paths.sum())} inputs; through gates and statistics {more} "
            f"more of {paths.numel()} can change the output, as gradients at random weights and inputs show for "
            f"{int((reached & ~paths).sum())}"
        )
    if found.unknown:
        names = ", ".join(found.unknown)
        notes.append(f"the field of influence takes {names} to read all that the arguments hold")
    if draws:
        notes.append(
            f"gradients at {draws} random weights and inputs reach {int(reached.sum())} of the {number} inputs in the "
            "field of influence, and none beyond it"
        )
    return notes
