"""The page: controls, maps and numbers of two designs, and what compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from capalloc.app.design.reading import Reading
from capalloc.app.design.stack import ACTIVATIONS, LIMITS, RESIDUALS, SIZES, Design

CARDS = ("A", "B")
WORDS = {"none": "no skips: a plain stack", "constant": "a constant", "1/sqrt(L)": "1/√L", "1/L": "1/L"}


@dataclass(frozen=True)
class Control:
    """One control of a design: the setting that it changes, its label and a line on what it does."""

    setting: str
    label: str
    hint: str


#: In the order of the page. `size1` and `size2` are the size of inputs of one and of two axes.
CONTROLS = (
    Control("depth", "Depth", "layers L"),
    Control("residual", "Skip connections", "branches times"),
    Control("multiplier", "Branch multiplier", "beside that"),
    Control("activation", "Activation", "before layers and head"),
    Control("kernel", "Kernel", "entries on an axis"),
    Control("dilation", "Dilation", "in pixels"),
    Control("cycle", "Dilation cycle", "layers that double it"),
    Control("stride", "Stride", "of strided layers"),
    Control("strided", "Strided layers", "stem first"),
    Control("width", "Width", "channels"),
    Control("ndim", "Input", "axes"),
    Control("size1", "Input size", "positions"),
    Control("size2", "Input size", "pixels on an axis"),
)


def ident(name: str, what: str) -> str:
    """The id of a part of design `name`."""
    return f"{name.lower()}-{what}"


def settings(design: Design) -> list[Any]:
    """Values of the controls, in their order."""
    values = {**vars(design), **{f"size{n}": design.size if design.ndim == n else _size(n) for n in SIZES}}
    return [values[control.setting] for control in CONTROLS]


def design_of(values: Sequence[Any]) -> Design:
    """The design that the controls are set to.

    Raises:
        ValueError, TypeError: as `Design`.

    """
    found = dict(zip((control.setting for control in CONTROLS), values, strict=True))
    sizes = {ndim: found.pop(f"size{ndim}") for ndim in SIZES}
    return Design(size=sizes.get(found["ndim"], 0), **found)


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
            dcc.Checklist(
                id="compare",
                options=[{"label": "Compare with a second design", "value": "yes"}],
                value=[],
                className="compare",
            ),
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


def _card(name: str) -> Component:
    title = html.H2(f"Design {name}", id=ident(name, "title"))
    about = (
        "Lines (bands in 1-D) hold 68 % (solid, dark) and 95 % (dashed, light) of the effective receptive field; "
        "dotted: the theoretical one."
    )
    copying = [
        html.Summary("PyTorch code"),
        html.Button("Copy", id=ident(name, "copy"), type="button"),
        html.Span(id=ident(name, "copied"), role="status", className="hint"),
        html.Pre(html.Code(id=ident(name, "code")), tabIndex="0", title=f"code of design {name}"),
    ]
    parts = [
        title,
        dcc.Store(id=ident(name, "curves")),
        html.Div(_graph(ident(name, "map"), "Capacity of every input position", about), className="seen"),
        html.Div(
            [
                html.Div(id=ident(name, "error"), role="alert", className="error"),
                html.Div([_field(name, control) for control in CONTROLS], className="controls"),
                html.Div(id=ident(name, "numbers")),
                html.Ul(id=ident(name, "notes"), className="notes"),
                html.P(id=ident(name, "time"), className="time", role="status"),
                html.Details(copying, id=ident(name, "details")),
            ],
            className="told",
        ),
    ]
    hidden = {} if name == CARDS[0] else {"display": "none"}
    named: dict[str, Any] = {"aria-labelledby": ident(name, "title")}  # dash's types know no aria- and data- names
    card = html.Section(parts, className="card", **named)
    return html.Div(card, id=ident(name, "card"), style=hidden, className="holder")


def _field(name: str, control: Control) -> Component:
    """A control with its label above it."""
    id_ = ident(name, control.setting)
    caption = [
        html.Span(control.label, id=f"{id_}-label", className="label"),
        html.Span(control.hint, className="hint"),
    ]
    named: dict[str, Any] = {"data-label": f"{control.label} of design {name}, {control.hint}"}
    return html.Div(
        [html.Div(caption, className="caption"), _input(id_, control.setting)],
        id=f"{id_}-field",
        className="field",
        **named,
    )


def _input(id_: str, setting: str) -> Component:
    default = Design()
    if setting == "residual":
        options = [{"label": WORDS[law], "value": law} for law in RESIDUALS]
        return dcc.Dropdown(id=id_, options=options, value=default.residual, clearable=False, searchable=False)
    if setting == "activation":
        return dcc.Dropdown(
            id=id_, options=list(ACTIVATIONS), value=default.activation, clearable=False, searchable=False
        )
    if setting == "ndim":
        axes: list[dict[str, Any]] = [{"label": f"{ndim}-D", "value": ndim} for ndim in SIZES]
        return dcc.RadioItems(id=id_, options=axes, value=default.ndim, inline=True)
    if setting.startswith("size"):
        ndim = int(setting[-1])
        return _slider(id_, *SIZES[ndim], 1, _size(ndim))
    step = {"kernel": 2, "multiplier": 0.05}.get(setting, 1)
    return _slider(id_, *LIMITS[setting], step, getattr(default, setting))


def _slider(id_: str, low: float, high: float, step: float, value: float) -> Component:
    marks = {number: f"{number:g}" for number in (low, high)}
    return dcc.Slider(
        id=id_, min=low, max=high, step=step, value=value, marks=marks, updatemode="drag", allow_direct_input=True
    )


def _size(ndim: int) -> int:
    """Size that an input starts with."""
    default = Design()
    return default.size if default.ndim == ndim else 129


def _graph(id_: str, title: str, about: str = "") -> Component:
    graph = dcc.Graph(id=id_, config={"displaylogo": False, "responsive": True, "displayModeBar": False})
    caption = html.Figcaption([html.Span(title, className="label"), html.Span(about, className="hint")])
    return html.Figure([caption, html.Div(graph, className="graph")])


def numbers(reading: Reading) -> Component:
    """The table of a reading."""
    rows = [html.Tr([html.Th(name, scope="row"), html.Td(value)]) for name, value in facts(reading).items()]
    return html.Table(html.Tbody(rows))


def facts(reading: Reading) -> dict[str, str]:
    """The rows of the table by their names."""
    pixels = "positions" if reading.design.ndim == 1 else "pixels"
    areas = [int(region.sum()) for region in reading.regions]
    start, stop = reading.field
    seen = f", {stop - start} of them inside the input" if reading.cut else ""
    plain = reading.phase == "plain"
    return {
        "Parameters": f"{reading.num_params:,}",
        "Predicted capacity": f"{reading.total:,}",
        "Theoretical field": f"{reading.extent} on an axis{seen}",
        "Effective field": f"standard deviation {reading.deviation:.3g}",
        "68 % / 95 % of it": f"in {areas[0]:,} / {areas[1]:,} {pixels}",
        "Total change T": "no skip connections" if plain else f"{reading.T:.3g}, {reading.phase}",
        "Shattering index": f"{reading.index:.3g} decouplings on a path",
        "Gradient correlation": f"{reading.correlation:.3g} at independent inputs",
    }


def _meaning() -> Component:
    """A line on every number."""
    lines = {
        "Predicted capacity": "parameters in use, less one for every channel that can be rescaled; a residual stream "
        "counts once. The map says on which inputs they fall, by the Markov rule of total decoupling.",
        "Theoretical field": "the inputs that reach the output position at all: the dotted line.",
        "Effective field": "how path energy is spread over it: the lines or bands that hold 68 % and 95 %.",
        "Total change T": "the sum over blocks of log(1 + branch energy / skip energy). A share e^-T of path energy "
        "takes no branch: balanced from 1 % to 90 %.",
        "Shattering index": "how often, on average, a path meets gates that differ between two independent inputs. "
        "Gradients there keep the correlation given.",
    }
    found = [part for name, text in lines.items() for part in (html.Dt(name), html.Dd(text))]
    return html.Section([html.H2("What the numbers mean"), html.Dl(found)], id="meaning")
