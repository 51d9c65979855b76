"""The page's callbacks, and the server that only this machine can reach."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update
from dash.exceptions import PreventUpdate
from flask import Flask, Response, abort, has_request_context, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler
from werkzeug.serving import make_server as make_wsgi_server

from capalloc._runtime.arguments import SHOWN_LENGTH
from capalloc.app.design.controls import CARDS, CONTROLS, design_of, ident, named_values, refusals, settings
from capalloc.app.design.design_page import found_table, numbers, page
from capalloc.app.design.figures import Curves, curves, gradient_figure, map_figure, profile_figure
from capalloc.app.design.find_designs import search
from capalloc.app.design.query import from_query, to_query
from capalloc.app.design.reading import Reading, read
from capalloc.app.design.server import HOST
from capalloc.app.design.stack import Design
from capalloc.app.design.starts import STARTS
from capalloc.app.design.torch_code import code

HIDDEN = {"display": "none"}
#: Bytes of a request: the settings of two designs take some kilobytes.
LONGEST_BODY = 2**20
#: Designs worked out at once; more wait, and a page that sends many does not fill the machine.
WORKING = BoundedSemaphore(2)
#: Seconds after which one that waits looks whether its reader is still there.
LOOK_AGAIN = 0.5
#: Nothing is loaded from, or sent to, another place than this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


class Quiet(WSGIRequestHandler):
    """A handler that prints nothing about requests."""

    def log(self, type: str, message: str, *args: object) -> None:
        """Nothing."""


def make_server(listening: socket.socket) -> BaseWSGIServer:
    """The design page on a socket that listens already."""
    port = listening.getsockname()[1]
    app = make_app()
    guard(app.server, port)
    return make_wsgi_server(HOST, port, app.server, threaded=True, request_handler=Quiet, fd=listening.fileno())


def make_app() -> Dash:
    """The app, all of its assets on board."""
    app = Dash(
        __name__,
        title="capalloc design",
        update_title="capalloc design",  # the same while it updates
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        index_string=INDEX,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        add_log_handler=False,
        enable_mcp=False,
    )
    app.layout = page
    _register(app)
    return app


def guard(server: Flask, port: int) -> None:
    """Answer only requests that name this machine, whatever name led a browser here, and keep pages to this server."""
    server.config["MAX_CONTENT_LENGTH"] = LONGEST_BODY
    names = {f"{name}:{port}" for name in (HOST, "localhost")}

    @server.before_request
    def only_here() -> None:
        if request.headers.get("Host") not in names:
            abort(403, f"this server answers to {HOST}:{port} only")
        if request.content_length is None and request.method == "POST":
            abort(411, "a request says how long it is")
        if (request.content_length or 0) > LONGEST_BODY:
            abort(413, f"a request takes at most {LONGEST_BODY} bytes")

    @server.after_request
    def kept_here(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


#: What a reading fills in of its card, and what follows from the settings alone.
FILLED_IN = (
    ("error", "children"),
    ("map", "figure"),
    ("numbers", "children"),
    ("notes", "children"),
    ("code", "children"),
    ("time", "children"),
    ("curves", "data"),
)


def _register(app: Dash) -> None:
    controls = {name: [ident(name, control.setting) for control in CONTROLS] for name in CARDS}
    app.callback(
        output=(
            [Output(id_, "value") for name in CARDS for id_ in controls[name]],
            Output("compare", "value"),
            Output("address-error", "children"),
        ),
        inputs=[Input("address", "search"), Input("address", "pathname")],
    )(load)
    for name in CARDS:
        app.callback(
            output=(
                [Output(ident(name, part), prop) for part, prop in FILLED_IN],
                [Output(f"{id_}-refused", "children") for id_ in controls[name]],
                [Output(ident(name, setting), "disabled") for setting in IDLE],
                [Output(ident(name, f"{part}-field"), "style") for part in ("size1", "size2", "causal")],
                Output(ident(name, "card"), "style"),
            ),
            inputs=[
                [Input(id_, "value") for id_ in controls[name]],
                Input("compare", "value"),
                Input("log", "value"),
            ],
        )(partial(show, name))
        _register_saving(app, name)
    app.callback(
        output=[Output("profile", "figure"), Output("gradient", "figure"), Output("query", "data")],
        inputs=[Input(ident(name, "curves"), "data") for name in CARDS] + [Input("compare", "value")],
    )(together)
    app.clientside_callback(ClientsideFunction("design", "link"), Input("query", "data"))
    app.callback(
        output=Output("address", "search"),
        inputs=[Input("start", "value"), State("query", "data")],
        prevent_initial_call=True,
    )(start_from)
    app.callback(
        output=[Output("found", "children"), Output("find-error", "children")],
        inputs=[
            Input("find", "n_clicks"),
            State("find-field", "value"),
            State("find-flat", "value"),
            State("find-params", "value"),
            State("query", "data"),
        ],
        running=[(Output("find", "disabled"), True, False)],
        prevent_initial_call=True,
    )(find)


def _register_saving(app: Dash, name: str) -> None:
    """Copy and save what a card shows; the server has no part in it."""
    for part, shown in (("copy", "copied"), ("save", "saved"), ("png", "saved"), ("svg", "saved")):
        app.clientside_callback(
            ClientsideFunction("design", part),
            Output(ident(name, shown), "children", allow_duplicate=part in ("png", "svg")),
            Input(ident(name, part), "n_clicks"),
            State(ident(name, "code"), "children") if part in ("copy", "save") else State(ident(name, "map"), "id"),
            prevent_initial_call=True,
        )


def load(search: str | None, path: str | None = "/") -> tuple[Any, ...]:
    """Set the controls to what the address says; its defaults where it says nothing."""
    try:
        if path not in (None, "", "/"):
            raise ValueError(f"there is no page {path[:SHOWN_LENGTH]} here, but this one at /")
        first, second = from_query(search or "")
    except (TypeError, ValueError) as error:
        return [no_update] * 2 * len(CONTROLS), no_update, f"{error}. The page starts from its defaults."
    values = [*settings(first), *settings(second or Design())]
    return values, ["yes"] if second else [], ""


def start_from(name: str | None, query: str | None) -> Any:
    """The address of an architecture's stack as design A, the other design as it is."""
    if name not in STARTS:
        return no_update
    _, second = from_query(query or "")
    return "?" + to_query(STARTS[name], second)


def find(
    clicks: int | None, field: int | None, flat: int | None, max_params: int | None, query: str | None
) -> tuple[Any, str]:
    """Search for designs by their target; where a number is no target, say which."""
    if not clicks:
        return no_update, ""
    try:
        first, second = from_query(query or "")
        if field is None or max_params is None:
            raise ValueError("give the field, and the most parameters, as whole numbers from 1")
        with working() as wanted:
            found = search(field, flat=flat, max_params=max_params, like=first, between=wanted)
    except (TypeError, ValueError) as error:
        return [], f"{error}."
    return found_table(found, flat, first, second), ""


#: Settings that do nothing, and where that is so.
IDLE: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "multiplier": lambda found: found["residual"] == "none",
    "strided": lambda found: found["stride"] == 1,
    "upsampled": lambda found: found["stride"] == 1,
    "growth": lambda found: found["stride"] == 1 or bool(found["stages"]),
    "width": lambda found: bool(found["stages"]),
}


def show(name: str, values: Sequence[Any], compare: Sequence[str], log: Sequence[str] = ()) -> tuple[Any, ...]:
    """Fill in the card of one design; where the settings do not go together, say so and leave the rest as it is."""
    if name != CARDS[0] and not compare:
        kept = [[no_update] * number for number in (len(FILLED_IN), len(CONTROLS), len(IDLE), 3)]
        return *kept, HIDDEN
    found = named_values(values)
    idle = [is_idle(found) for is_idle in IDLE.values()]
    styles = [*({} if found["ndim"] == ndim else HIDDEN for ndim in (1, 2)), {}]
    if found["ndim"] != 1 and not found["causal"]:
        styles[2] = HIDDEN  # one axis alone has a direction
    try:
        return _filled(name, values, bool(log)), [""] * len(CONTROLS), idle, styles, {}
    except (TypeError, ValueError) as error:
        told = "Shown is the design before: see beside the controls what was refused."
        return [told, *[no_update] * (len(FILLED_IN) - 1)], refusals(error, values), idle, styles, {}


def _filled(name: str, values: Sequence[Any], log: bool) -> list[Any]:
    started = time.perf_counter()
    with working() as wanted:
        reading = read(design_of(values), wanted)
    read_in = time.perf_counter() - started
    shown = fill(name, reading, log)
    whole = time.perf_counter() - started
    ctx.record_timing("read", read_in, "capacity and fields")
    took = f"Updated in {1000 * whole:.0f} ms on the server, {1000 * read_in:.0f} ms of it for the numbers."
    return ["", *shown, took, {"values": list(values), **curves(reading)}]


@contextmanager
def working() -> Iterator[Callable[[], None]]:
    """Wait for a place among those that work, and give the check that its reader is still there."""
    wanted = watch(request.environ if has_request_context() else {})
    while not WORKING.acquire(timeout=LOOK_AGAIN):
        wanted()
    try:
        yield wanted
    finally:
        WORKING.release()


def watch(environ: Mapping[str, Any]) -> Callable[[], None]:
    """Give a check that ends the answer to a request once its reader has closed the connection."""
    connection: socket.socket | None = environ.get("werkzeug.socket")

    def wanted() -> None:
        if connection is not None and _closed(connection):
            raise PreventUpdate

    return wanted


def _closed(connection: socket.socket) -> bool:
    try:
        readable = select.select([connection], [], [], 0)[0]
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):  # reset, or closed at this end
        return True


def fill(name: str, reading: Reading, log: bool = False) -> list[Any]:
    """The parts of a card that show a reading: map, numbers, notes and code."""
    notes = [html.Li(note) for note in reading.notes]
    return [map_figure(reading, name, log), numbers(reading), notes, code(reading.design)]


def together(first: Curves | None, second: Curves | None, compare: Sequence[str]) -> tuple[Any, ...]:
    """Figures that compare the designs, and the query that leads back to them."""
    kept = {name: data for name, data in zip(CARDS, (first, second if compare else None), strict=True) if data}
    designs = [design_of(data["values"]) for data in kept.values()]
    query = to_query(*designs) if designs else no_update
    return profile_figure(kept), gradient_figure(kept), query
