"""What the servers share: the answers, the command line, the listening socket, an end in time."""

import json
import signal
import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from ..memory import raise_limit

HELLO = b"Hello, World!\n"
"""What ``/`` answers with."""
BACKLOG = 1024


def thing() -> dict[str, object]:
    """What ``/json`` answers with: made anew for each request, as services do."""
    return {"id": 17, "name": "Ada", "tags": ["a", "b", "c"], "balance": 12.5, "active": True}


def as_json(value: object) -> bytes:
    """The JSON of those whose library has no way of its own to answer with it."""
    return json.dumps(value, separators=(",", ":")).encode()


def main(serve: Callable[[socket.socket, Namespace], object], *modes: Sequence[str]) -> None:
    """Print the port and ``serve`` on it; the alarm clock ends a server that nobody ended.

    Each of ``modes`` is an option and its choices, the first of which is the default.
    """
    parser = ArgumentParser()
    parser.add_argument("--life", type=int, default=60, help="seconds")
    for option, *choices in modes:
        parser.add_argument(option, choices=choices, default=choices[0])
    options = parser.parse_args()
    signal.alarm(options.life)
    raise_limit()
    # asyncio sets TCP_NODELAY only where the protocol is named; else small writes wait for 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    serve(listener, options)
