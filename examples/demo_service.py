"""The services behind the gateway of ``make demo``, in a process of their own.

    python examples/demo_service.py

It prints where each listens, as JSON, and ends when its standard input closes (so also when its
parent dies), or after ``--lifetime`` seconds. Three answer, each after a time of its own; one is
slow, and answers only after a minute; one fails.
"""

import argparse
import contextlib
import json
import os
import threading
from collections.abc import Callable, Generator
from typing import Any

from coro import IOLoop, coroutine, run, sleep
from coro.errors import TimeoutError
from coro.gen import timeout
from coro.http import HTTPServer, HTTPServerRequest, Response
from coro.locks import Event

SERVICES: dict[str, tuple[float, Any]] = {
    "prices": (0.004, {"apple": 3, "pear": 4}),
    "stock": (0.008, {"apple": 120, "pear": 0}),
    "reviews": (0.016, {"apple": "crisp", "pear": "juicy"}),
    "shipping": (60.0, {"days": 2}),
    "offers": (0.002, None),
}
"""By name: after how many seconds they answer, and what; None: they fail."""


def service(seconds: float, answer: Any) -> Callable[[HTTPServerRequest], Any]:
    """Return the handler of a service."""

    @coroutine
    def handle(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
        if request.path != "/":
            return Response("no such page\n", 404)
        yield sleep(seconds)
        return Response.json(answer) if answer is not None else Response("out of order\n", 503)

    return handle


@coroutine
def serve(lifetime: float) -> Generator[Any, Any, None]:
    """Serve until standard input closes, ``lifetime`` seconds at most."""
    servers = {name: HTTPServer(service(*kind)) for name, kind in SERVICES.items()}
    for server in servers.values():
        server.listen(0, "127.0.0.1")
    orphaned, loop = Event(), IOLoop.current()

    def watch_stdin() -> None:
        while os.read(0, 1024):
            pass
        with contextlib.suppress(RuntimeError):  # the loop's time was over just before
            loop.add_callback(orphaned.set)

    threading.Thread(target=watch_stdin, daemon=True).start()
    ports = {name: server.sockets[0].getsockname()[1] for name, server in servers.items()}
    print(
        json.dumps({name: f"http://127.0.0.1:{port}/" for name, port in ports.items()}), flush=True
    )
    with contextlib.suppress(TimeoutError), timeout(lifetime):
        yield orphaned.wait()
    for server in servers.values():
        server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The services behind `make demo`.")
    parser.add_argument("--lifetime", type=float, default=300, help="seconds (default 300)")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        run(serve, arguments.lifetime)
