"""granian with one worker, which is another process: ASGI, or RSGI, its own interface."""

import os
import signal
import socket
from argparse import Namespace
from typing import Any

from granian import Granian

from .subject import HELLO, as_json, main, thing

MOST = 10_000
"""Connections that it is to hold; by default 1024."""

TEXT = [("content-type", "text/plain; charset=utf-8")]
JSON = [("content-type", "application/json")]


async def rsgi(scope: Any, protocol: Any) -> None:
    """Answer ``/`` and ``/json``."""
    if scope.path == "/json":
        protocol.response_bytes(200, JSON, as_json(thing()))
    else:
        protocol.response_bytes(200, TEXT, HELLO)


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server; it wants to open its port itself."""
    port = listener.getsockname()[1]
    listener.close()
    # The alarm's own way to end a process would leave the worker behind.
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    target = "on_granian:rsgi" if options.interface == "rsgi" else "application:application"
    Granian(
        f"{__package__}.{target}",
        port=port,
        interface=options.interface,
        workers=1,
        loop="uvloop",
        backpressure=MOST,
        log_enabled=False,
    ).serve()


if __name__ == "__main__":
    main(serve, ("--interface", "asgi", "rsgi"))
