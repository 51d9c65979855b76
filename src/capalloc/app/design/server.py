"""The design page's server, on the loopback interface alone."""

from __future__ import annotations

import os
import socket
import threading
import webbrowser

from capalloc._runtime.extras import load_extra

HOST = "127.0.0.1"


def serve(port: int = 8050, open_browser: bool = True, query: str = "") -> None:
    """Serve the design page at http://127.0.0.1:port until Ctrl-C; it prints its address and answers no other machine.

    Args:
        port: 0 for a free one.
        open_browser: show the page in the default browser.
        query: settings that the address begins with, such as "depth=30&residual=none".

    Raises:
        ValueError: a port out of range.
        OSError: the port is taken, or may not be opened.
        ModuleNotFoundError: Dash is missing.

    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"port must be a whole number from 0, for a free one, to 65535, got {port!r}")
    server_module = load_extra("the design page", "capalloc.app.design.dash_app")
    with bound(port) as listening:
        server = server_module.make_server(listening)
        address = f"http://{HOST}:{server.port}/" + (f"?{query}" if query else "")
        print(f"capalloc design: {address} (Ctrl-C ends it)", flush=True)
        if open_browser:  # a text browser would not return before it is left
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            server.server_close()


def bound(port: int) -> socket.socket:
    """A socket that listens on the loopback interface.

    Raises:
        OSError: the port is taken, or may not be opened.

    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a port whose last server just ended; elsewhere this would share one in use
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        why = error.strerror or str(error)
        raise OSError(error.errno, f"port {port} of {HOST} cannot be opened ({why}); give another, or 0") from error
    return listening
