"""The page behind a socket."""

from __future__ import annotations

import socket

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler
from werkzeug.serving import make_server as make_wsgi_server

from capalloc.app.design.server_app import guard, make_app
from capalloc.app.design.serving import HOST


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
