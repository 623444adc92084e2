"""coro's ``HTTPServer`` on its own loop: a handler in the style of the house, or ASGI."""

import socket
from argparse import Namespace
from collections.abc import Generator
from typing import Any

from coro.asgi import ASGIHandler
from coro.future import Future
from coro.gen import coroutine, run
from coro.http import HTTPServer, HTTPServerRequest, Response

from .application import application
from .subject import HELLO, main, thing


@coroutine
def handler(request: HTTPServerRequest) -> Response:
    """Answer ``/`` and ``/json``."""
    if request.path == "/json":
        return Response.json(thing())
    return Response(HELLO, content_type="text/plain; charset=utf-8")


async def native(request: HTTPServerRequest) -> Response:
    """Likewise, as ``async def``."""
    if request.path == "/json":
        return Response.json(thing())
    return Response(HELLO, content_type="text/plain; charset=utf-8")


@coroutine
def forever(listener: socket.socket, handling: str) -> Generator[Any, Any, None]:
    """Serve until the process is ended."""
    if handling == "asgi":
        server = HTTPServer(ASGIHandler(application), stream_body=True)
    else:
        server = HTTPServer(handler if handling == "coroutine" else native)
    server.add_socket(listener)
    yield Future()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    run(forever, listener, options.handler)


if __name__ == "__main__":
    main(serve, ("--handler", "coroutine", "async", "asgi"))
