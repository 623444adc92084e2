"""What the echo servers share: the listening socket, the command line, an end in time."""

import signal
import socket
import ssl
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from ..memory import raise_limit

CHUNK = 65536
"""Bytes that a server asks for in one read, where it may choose."""


def main(serve: Callable[[socket.socket, Namespace], object], loops: Sequence[str] = ()) -> None:
    """Print the port and ``serve`` on it; the alarm clock ends a server that nobody ended.

    ``loops`` are the event loops that the subject can run on, the first is the default.
    """
    parser = ArgumentParser()
    parser.add_argument("--life", type=int, default=60, help="seconds")
    parser.add_argument("--tls", type=context, help="a file with a key and its certificate")
    if loops:
        parser.add_argument("--loop", choices=loops, default=loops[0])
    options = parser.parse_args()
    signal.alarm(options.life)
    raise_limit()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    serve(listener, options)


def context(pem: str) -> ssl.SSLContext:
    """The rules of a server that shows this certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem)
    return made
