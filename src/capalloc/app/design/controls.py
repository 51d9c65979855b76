"""The controls of a design on the page: what each sets, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from capalloc.app.design.query import widths_of
from capalloc.app.design.stack import CHOICES, LIMITS, SIZES, Design

CARDS = ("A", "B")
WORDS = {
    "none": "none",
    "constant": "a constant",
    "1/sqrt(L)": "1/√L",
    "1/L": "1/L",
    "batch": "batch norm",
    "layer": "layer norm",
    "group": "group norm",
    "instance": "instance norm",
    "stride": "a stride",
    "average": "averages",
    "max": "max pooling",
}
SWITCHES = tuple(field.name for field in fields(Design) if isinstance(field.default, bool))
SLIDER_STEPS = {"kernel": 2, "multiplier": 0.05, "growth": 0.05}


@dataclass(frozen=True)
class Control:
    """One control of a design: the setting that it changes, its label and a line on what it does."""

    setting: str
    label: str
    hint: str


#: By the headings under which they stand. `size1` and `size2` are the size of inputs of one and of two axes.
GROUPS = {
    "Layers": (
        Control("depth", "Depth", "layers L"),
        Control("width", "Width", "channels"),
        Control("residual", "Skip connections", "branches times"),
        Control("multiplier", "Branch multiplier", "beside that"),
        Control("activation", "Activation", "before layers and head"),
        Control("norm", "Norm", "before activations"),
        Control("bias", "Biases", "start at 0"),
        Control("depthwise", "Depthwise", "then 1 × 1"),
    ),
    "Field": (
        Control("kernel", "Kernel", "entries on an axis"),
        Control("dilation", "Dilation", "in pixels"),
        Control("cycle", "Dilation cycle", "layers that double it"),
        Control("causal", "Causal", "one axis only"),
    ),
    "Resolution": (
        Control("stride", "Stride", "of strided layers"),
        Control("strided", "Strided layers", "evenly spread"),
        Control("reduction", "Reduce by", "in strided layers"),
        Control("upsampled", "Upsampled layers", "last first"),
        Control("growth", "Width by stage", "times, at a stride"),
        Control("stages", "Free widths", "16, 32: by stage or layer"),
    ),
    "Input": (
        Control("in_channels", "Input channels", "such as 3 colours"),
        Control("ndim", "Input", "axes"),
        Control("size1", "Input size", "positions"),
        Control("size2", "Input size", "pixels on an axis"),
    ),
}
CONTROLS = tuple(control for group in GROUPS.values() for control in group)


def ident(name: str, what: str) -> str:
    """The id of a part of design `name`."""
    return f"{name.lower()}-{what}"


def settings(design: Design) -> list[Any]:
    """Values of the controls, in their order."""
    values = {**vars(design), **{f"size{n}": design.size if design.ndim == n else _size(n) for n in SIZES}}
    values |= {name: ["yes"] if values[name] else [] for name in SWITCHES}
    values["stages"] = ", ".join(map(str, design.stages))
    return [values[control.setting] for control in CONTROLS]


def design_of(values: Sequence[Any]) -> Design:
    """The design that the controls are set to.

    Raises:
        ValueError, TypeError: as `Design`.

    """
    found = named_values(values)
    sizes = {ndim: found.pop(f"size{ndim}") for ndim in SIZES}
    found["stages"] = widths_of(found["stages"] or "")
    return Design(size=sizes.get(found["ndim"], 0), **found)


def named_values(values: Sequence[Any]) -> dict[str, Any]:
    """Values of the controls by their settings."""
    found = dict(zip((control.setting for control in CONTROLS), values, strict=True))
    return found | {name: bool(found[name]) for name in SWITCHES}


def refusals(error: Exception, values: Sequence[Any]) -> list[str]:
    """Tell what is wrong beside the control that an error names, in their order; the first where it names none."""
    setting = str(error).partition(" ")[0]
    if setting == "size":
        setting = f"size{dict(zip((c.setting for c in CONTROLS), values, strict=True))['ndim']}"
    known = [control.setting for control in CONTROLS]
    named = setting if setting in known else known[0]
    return [f"{error}." if name == named else "" for name in known]


def drawn_controls(name: str) -> Component:
    """All controls of a design, under their headings."""
    groups = [
        html.Fieldset([html.Legend(title), html.Div([_field(name, c) for c in group], className="controls")])
        for title, group in GROUPS.items()
    ]
    return html.Div(groups, className="groups")


def _field(name: str, control: Control) -> Component:
    """A control with its label above it, and below it what is refused."""
    id_ = ident(name, control.setting)
    caption = [
        html.Span(control.label, id=f"{id_}-label", className="label"),
        html.Span(control.hint, className="hint"),
    ]
    limits = _limits(control.setting)
    parts = [html.Div(caption, className="caption"), _input(id_, control.setting)]
    if limits is not None:
        step = SLIDER_STEPS.get(control.setting, 1)
        kind = {1.0: "a whole number", 2.0: "an odd number"}.get(step, f"a multiple of {step}")
        told = f"Refused: {kind} from {limits[0]:g} to {limits[1]:g}. Numbers are still those of the slider."
        parts.append(html.Div(told, className="refused range", role="alert"))
    parts.append(html.Div(id=f"{id_}-refused", className="refused", role="alert"))
    named: dict[str, Any] = {"data-label": f"{control.label} of design {name}, {control.hint}"}
    return html.Div(parts, id=f"{id_}-field", className="field", **named)


def _limits(setting: str) -> tuple[float, float] | None:
    return SIZES[int(setting[-1])] if setting.startswith("size") else None if setting == "ndim" else LIMITS.get(setting)


def _input(id_: str, setting: str) -> Component:
    default = Design()
    if setting in CHOICES:
        options: list[dict[str, Any]] = [{"label": WORDS.get(word, word), "value": word} for word in CHOICES[setting]]
        value = getattr(default, setting)
        return dcc.Dropdown(id=id_, options=options, value=value, clearable=False, searchable=False)
    if setting in SWITCHES:
        return dcc.Checklist(id=id_, options=[{"label": "yes", "value": "yes"}], value=[])
    if setting == "stages":
        return dcc.Input(id=id_, type="text", value="", debounce=True, placeholder="as by width", className="free")
    if setting == "ndim":
        axes: list[dict[str, Any]] = [{"label": f"{ndim}-D", "value": ndim} for ndim in SIZES]
        return dcc.RadioItems(id=id_, options=axes, value=default.ndim, inline=True)
    limits = _limits(setting)
    assert limits is not None
    value = _size(int(setting[-1])) if setting.startswith("size") else getattr(default, setting)
    return _slider(id_, *limits, SLIDER_STEPS.get(setting, 1), value)


def _slider(id_: str, low: float, high: float, step: float, value: float) -> Component:
    marks = {number: f"{number:g}" for number in (low, high)}
    return dcc.Slider(
        id=id_, min=low, max=high, step=step, value=value, marks=marks, updatemode="drag", allow_direct_input=True
    )


def _size(ndim: int) -> int:
    """Size that an input starts with."""
    default = Design()
    return default.size if default.ndim == ndim else 129
