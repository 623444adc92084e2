"""coro's ``TCPServer`` and ``IOStream`` on its own loop."""

import socket
import ssl
from argparse import Namespace
from collections.abc import Generator
from typing import Any

from coro.errors import StreamClosedError
from coro.future import Future
from coro.gen import coroutine, run
from coro.stream import IOStream
from coro.tcpserver import TCPServer

from .server import CHUNK, main

Coroutine = Generator[Any, Any, Any]


class EchoServer(TCPServer):
    """Sends back what comes."""

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Coroutine:
        """Echo one connection to its end."""
        while True:
            try:
                data = yield stream.read_bytes(CHUNK, partial=True)
                yield stream.write(data)
            except StreamClosedError:
                break


@coroutine
def echo(listener: socket.socket, tls: ssl.SSLContext | None) -> Coroutine:
    """Accept until the process is ended."""
    server = EchoServer(ssl_options=tls)
    server.add_socket(listener)
    yield Future()


def serve(listener: socket.socket, options: Namespace) -> None:
    """Run the server."""
    run(echo, listener, options.tls)


if __name__ == "__main__":
    main(serve)
