"""coro's ``IOStream`` on its own loop."""

import socket
import ssl
from argparse import Namespace
from collections.abc import Generator
from typing import Any

from coro.errors import StreamClosedError
from coro.future import Future
from coro.gen import coroutine, run
from coro.loop import IOLoop
from coro.stream import IOStream

from .server import CHUNK, main

Coroutine = Generator[Any, Any, Any]


@coroutine
def handle(stream: IOStream, tls: ssl.SSLContext | None) -> Coroutine:
    """Echo one connection to its end."""
    if tls is not None:
        stream = yield stream.start_tls(True, tls)
    while True:
        try:
            data = yield stream.read_bytes(CHUNK, partial=True)
            yield stream.write(data)
        except StreamClosedError:
            break


@coroutine
def echo(listener: socket.socket, tls: ssl.SSLContext | None) -> Coroutine:
    """Accept until the process is ended."""

    def accept(fd: int, events: int) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            stream = IOStream(connection)
            stream.set_nodelay(True)
            handle(stream, tls)

    IOLoop.current().add_handler(listener.fileno(), accept, IOLoop.READ)
    yield Future()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    run(echo, listener, options.tls)


if __name__ == "__main__":
    main(serve)
