"""The page: controls, maps and numbers of two designs, what compares them, and a search by target."""

from __future__ import annotations

from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from capalloc.app.design.controls import CARDS, drawn_controls, ident
from capalloc.app.design.find_designs import unevenness
from capalloc.app.design.query import to_query
from capalloc.app.design.reading import Reading
from capalloc.app.design.stack import Design
from capalloc.app.design.starts import STARTS
from capalloc.app.design.verdicts import judged

SIGNS = {"good": "✓ ", "mind": "! ", "": ""}


def page() -> Component:
    """All of it, with both designs at their defaults."""
    return html.Main(
        [
            dcc.Location(id="address", refresh=False),
            dcc.Store(id="query"),
            html.H1("Design a stack of convolutions"),
            html.P(
                [
                    "Where its capacity goes, before a weight is drawn: the central output position, at initial "
                    "weights. ",
                    html.A("What the numbers mean", href="#meaning"),
                ],
                className="lead",
            ),
            html.Div(id="address-error", role="alert", className="error"),
            html.Div(
                [
                    _switch("compare", "Compare with a second design"),
                    _switch("log", "Logarithmic colours"),
                    html.Div(
                        [
                            html.Span("Start design A from", id="start-label"),
                            dcc.Dropdown(
                                id="start",
                                options=[{"label": name, "value": name} for name in STARTS],
                                placeholder="an architecture",
                                searchable=False,
                            ),
                        ],
                        className="start",
                    ),
                ],
                className="choices",
            ),
            _finding(),
            html.Div([_card(name) for name in CARDS], className="cards"),
            html.Section(
                [
                    _graph("profile", "Effective field along one axis"),
                    _graph("gradient", "Correlation of the gradients at two independent inputs, by depth"),
                ],
                className="together",
            ),
            _meaning(),
        ]
    )


def _switch(id_: str, label: str) -> Component:
    return dcc.Checklist(id=id_, options=[{"label": label, "value": "yes"}], value=[])


def _finding() -> Component:
    """The search: what a design should see, and what it may cost."""
    fields = [
        ("find-field", "Field", "pixels on an axis", 31),
        ("find-flat", "Even over", "pixels in the middle", 20),
        ("find-params", "Parameters", "at most", 100_000),
    ]
    inputs = [
        html.Label([html.Span(label, className="label"), html.Span(hint, className="hint"), _number(id_, value)])
        for id_, label, hint, value in fields
    ]
    about = (
        "Kernels, dilations, cycles and strides are searched, each with the depth whose field is nearest and the "
        "largest width; all else is as in design A."
    )
    return html.Details(
        [
            html.Summary("Find a design by its target"),
            html.P(about, className="hint"),
            html.Div([*inputs, html.Button("Find", id="find", type="button")], className="target"),
            html.Div(id="find-error", role="alert", className="error"),
            dcc.Loading(html.Div(id="found", role="status"), type="dot", delay_show=300),
        ],
        id="finding",
        className="finding",
    )


def _number(id_: str, value: int) -> Component:
    return dcc.Input(id=id_, type="number", value=value, step="any", debounce=True)


def found_table(found: list[Reading], flat: int | None, first: Design, second: Design | None) -> Component:
    """Designs that a search found, each with links that open it as design A or B."""
    names = ["", "field", "layers", "kernel", "dilation", "cycle", "strides", "width", "parameters", "even"]
    rows = []
    for reading in found:
        d = reading.design
        even = f"{1 - unevenness(reading.profile(reading.law), flat):.0%}" if flat else "–"
        strides = "–" if d.stride == 1 else f"{d.stride} in {d.strided}"
        cells = [reading.extent, d.depth, d.kernel, d.dilation, d.cycle, strides, d.width, f"{d.num_params:,}", even]
        links: list[Any] = [
            dcc.Link("open as A", href="?" + to_query(d, second)),
            " ",
            dcc.Link("as B", href="?" + to_query(first, d)),
        ]
        rows.append(html.Tr([html.Td(links), *(html.Td(str(cell)) for cell in cells)]))
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in names]))
    return html.Div(html.Table([head, html.Tbody(rows)], className="found"), className="wide", tabIndex="0")


def _card(name: str) -> Component:
    title = html.H2(f"Design {name}", id=ident(name, "title"))
    about = (
        "Lines (bands in 1-D) hold 68 % (solid, dark) and 95 % (dashed, light) of the effective receptive field; "
        "dotted: the theoretical one."
    )
    buttons = [("copy", "Copy code"), ("save", "Save code"), ("png", "Save picture, PNG"), ("svg", "SVG")]
    copying = [
        html.Div([html.Button(label, id=ident(name, what), type="button") for what, label in buttons]),
        html.Span(id=ident(name, "copied"), role="status", className="hint"),
        html.Span(id=ident(name, "saved"), role="status", className="hint"),
        html.Details(
            [
                html.Summary("PyTorch code"),
                html.Pre(html.Code(id=ident(name, "code")), tabIndex="0", title=f"code of design {name}"),
            ],
            id=ident(name, "details"),
        ),
    ]
    parts = [
        title,
        dcc.Store(id=ident(name, "curves")),
        html.Div(_graph(ident(name, "map"), "Capacity of every input position", about), className="seen"),
        html.Div(
            [
                html.Div(id=ident(name, "error"), role="alert", className="error"),
                drawn_controls(name),
                html.Div(id=ident(name, "numbers")),
                html.Ul(id=ident(name, "notes"), className="notes"),
                html.P(id=ident(name, "time"), className="time", role="status"),
                html.Div(copying, className="copying"),
            ],
            className="told",
        ),
    ]
    hidden = {} if name == CARDS[0] else {"display": "none"}
    named: dict[str, Any] = {"aria-labelledby": ident(name, "title")}  # dash's types know no aria- and data- names
    card = html.Section(parts, className="card", **named)
    return html.Div(card, id=ident(name, "card"), style=hidden, className="holder")


def _graph(id_: str, title: str, about: str = "") -> Component:
    graph = dcc.Graph(id=id_, config={"displaylogo": False, "responsive": True, "displayModeBar": False})
    caption = html.Figcaption([html.Span(title, className="label"), html.Span(about, className="hint")])
    return html.Figure([caption, html.Div(graph, className="graph")])


def numbers(reading: Reading) -> Component:
    """The table of a reading, with a verdict beside each number."""
    rows = [
        html.Tr([
            html.Th(row.name, scope="row"),
            html.Td(row.value),
            html.Td(SIGNS[row.tone] + row.verdict, className=f"verdict {row.tone}".strip()),
        ])
        for row in judged(reading)
    ]  # fmt: skip
    return html.Table(html.Tbody(rows), className="numbers")


def _meaning() -> Component:
    """A line on every number."""
    lines = {
        "Predicted capacity": "parameters in use, less one for every channel that can be rescaled; a residual stream "
        "counts once. The map says on which inputs they fall, by the Markov rule of total decoupling.",
        "Theoretical field": "the inputs that reach the output position at all: the dotted line.",
        "Effective field": "how path energy is spread over it: the lines or bands that hold 68 % and 95 %.",
        "Total change T": "the sum over blocks of log(1 + branch energy / skip energy). A share e⁻ᵀ of path energy "
        "takes no branch: balanced from 1 % to 90 %.",
        "Memory of signals": "what all layers write for one example, as float32; training keeps about as much.",
        "Shattering index": "how often, on average, a path meets gates that differ between two independent inputs. "
        "Gradients there keep the correlation given.",
    }
    found = [part for name, text in lines.items() for part in (html.Dt(name), html.Dd(text))]
    return html.Section([html.H2("What the numbers mean"), html.Dl(found)], id="meaning")
