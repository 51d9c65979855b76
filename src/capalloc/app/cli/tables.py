"""Results as a terminal shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from capalloc.results.allocation import Allocation
from capalloc.results.decoupling import ESTIMATES, Decoupling
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.receptive_field import ReceptiveField
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering

#: Parameter tensors that the summary names.
TOP = 10


def table_of(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns hold words, and the others numbers."""
    table = Table(title=escape(title), min_width=56)
    for k, name in enumerate(head):
        words = k < left
        table.add_column(escape(name), justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


@singledispatch
def shown(result: Any) -> tuple[list[RenderableType], list[str]]:
    """Tables, and lines below them."""
    raise TypeError(f"a {type(result).__name__} has no table; give an Allocation or another result of capalloc")


@shown.register
def _(result: Allocation) -> tuple[list[RenderableType], list[str]]:
    return [summary(result)], [f"note: {note}" for note in result.attrs.get("notes", ())]


@shown.register
def _(result: ReceptiveField) -> tuple[list[RenderableType], list[str]]:
    return [field_table(result)], [f"note: {note}" for note in result.notes]


@shown.register(Diagnosis)
@shown.register(Scaling)
@shown.register(Shattering)
def _(result: Diagnosis | Scaling | Shattering) -> tuple[list[RenderableType], list[str]]:
    tables: list[RenderableType] = [table_of(title, head, rows) for title, (head, *rows) in result.tables().items()]
    facts = [result.summary] if isinstance(result, Diagnosis) else []
    return tables, [*facts, *(result.advice or ["nothing is out of balance"])]


@shown.register
def _(result: Decoupling) -> tuple[list[RenderableType], list[str]]:
    attrs = result.data.attrs
    head = ["gate", "kind", "units", "units d", "coupled d", "examples d", "dead"]
    title = f"decoupling of {len(result)} gates on {attrs['num_examples']} examples"
    rows = [_gate(result, name) for name in result.layers]
    return [table_of(title, head, rows, left=2)], [f"note: {note}" for note in attrs.get("notes", ())]


def _gate(result: Decoupling, name: str) -> list[str]:
    gate = result[name]
    estimates = [_estimate(float(gate[e]), float(gate[f"{e}_error"])) for e in ESTIMATES]
    dead, coupled, examples = float(gate["dead"]), *estimates[1:]
    return [name, str(gate["kind"].item()), str(int(gate["units"])), estimates[0], coupled, examples, f"{dead:.1%}"]


def _estimate(value: float, error: float) -> str:
    if value != value:
        return "–"
    return f"{value:.3f}" if error != error else f"{value:.3f} ± {error:.3f}"


def summary(allocation: Allocation) -> Table:
    """Totals, and the parameter tensors that bring most."""
    attrs = allocation.attrs
    whole = allocation.total or 1.0
    ranked = allocation.by_parameter.sortby(-allocation.by_parameter)
    rows = [
        [str(name), f"{value:,.2f}", f"{value / whole:.1%}"]
        for name, value in zip(ranked["parameter"].values[:TOP], ranked.values[:TOP], strict=True)
    ]
    if len(ranked) > TOP:
        rest = float(ranked[TOP:].sum())
        rows.append([f"{len(ranked) - TOP} more", f"{rest:,.2f}", f"{rest / whole:.1%}"])
    title = f"{attrs['kind']} capacity, {attrs['num_params']:,} parameters"
    table = table_of(title, ["parameter tensor", "capacity", "share"], rows)
    table.add_section()
    table.add_row("total", f"{allocation.total:,.2f}", "")
    if "total_standard_error" in attrs:
        table.add_row("its standard error", f"{attrs['total_standard_error']:.2g}", "")
    table.add_row("of it on the bias", f"{allocation.bias:,.2f}", f"{allocation.bias / whole:.1%}")
    for name in ("symmetries", "unseen_params", "unused_params", "seconds"):
        if attrs.get(name) is not None:
            value = f"{attrs[name]:.3g}" if name == "seconds" else f"{attrs[name]:,}"
            table.add_row(name.replace("_params", " parameters"), value, "")
    return table


def field_table(field: ReceptiveField) -> Table:
    """One row for each input axis, and the places that hold most."""
    rows = []
    for name, e in field.axes.items():
        stride = "" if e.stride != e.stride else f"{e.stride:g}"
        cut = "yes" if e.cut else "no"
        rows.append([name, str(e.size), str(e.start), str(e.stop - 1), stride, cut, f"{e.deviation:.3g}"])
    head = ("axis", "size", "from", "to", "stride", "cut", "deviation")
    table = table_of(f"receptive field of output position {field.shown_position}", head, rows)
    places = " x ".join(field.moving)
    table.caption = f"68 % of {field.of} in {field.area_68} places of {places}, 95 % in {field.area_95}"
    return table
