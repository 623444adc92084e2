"""What a kept connection takes of a server's memory while nothing is under way on it."""

import contextlib
import gc
import socket
import tracemalloc
from collections.abc import Callable, Generator
from typing import Any

import pytest

import coro
from coro.asgi import ASGIHandler
from coro.gen import coroutine, to_thread
from coro.http import HTTPServer, HTTPServerRequest, Response

HELLO = b"Hello, World!\n"
REQUEST = b"GET /%d HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n%b\r\n"
LONG = b"Cookie: " + b"c" * 50_000 + b"\r\n"

FIRST, COUNT = 20, 200
MOST = 6 * 1024


@coroutine
def handler(request: HTTPServerRequest) -> Response:
    return Response(HELLO)


async def application(scope: Any, receive: Any, send: Any) -> None:
    fields = [(b"content-length", b"%d" % len(HELLO))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": HELLO})


def plain() -> HTTPServer:
    return HTTPServer(handler)


def asgi() -> HTTPServer:
    return HTTPServer(ASGIHandler(application), stream_body=True)


def knock(port: int, numbers: range, fields: bytes) -> list[socket.socket]:
    """Open connections, and have two requests answered on each."""
    opened = []
    for number in numbers:
        sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        for _ in range(2):
            sock.sendall(REQUEST % (number, fields))
            answer = b""
            while not answer.endswith(HELLO):
                answer += sock.recv(65536)
        opened.append(sock)
    return opened


@pytest.mark.parametrize("fields", [b"", LONG], ids=["short", "long"])
@pytest.mark.parametrize("make", [plain, asgi])
def test_an_idle_connection_is_small(make: Callable[[], HTTPServer], fields: bytes) -> None:
    @coroutine
    def main() -> Generator[Any, Any, float]:
        server = make()
        server.listen(0, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        with contextlib.ExitStack() as stack:
            for sock in (yield to_thread(knock, port, range(FIRST), fields)):
                stack.enter_context(sock)
            gc.collect()
            tracemalloc.start()
            try:
                for sock in (yield to_thread(knock, port, range(COUNT), fields)):
                    stack.enter_context(sock)
                gc.collect()
                grown = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
        yield server.shutdown()
        return grown / COUNT

    assert coro.run(main) < MOST
