"""The hot paths: each does a number of operations on a loop of its own, and then leaves nothing.

The other end of a connection is a forked process with blocking sockets: it adds nothing to what is
counted here. The subjects are those of ``make bench``.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

from benchmarks.echo.on_coro import EchoServer
from benchmarks.fetch.nginx import BODY
from benchmarks.fetch.on_coro import worker
from benchmarks.switching.on_coro import chains, children, players, spinners
from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPServer, Response
from coro.http.request import HTTPServerRequest
from coro.loop import IOLoop
from coro.stream import PipeIOStream
from coro.tcpserver import TCPServer

MESSAGE = b"x" * 1024
REQUEST = b"GET /1k.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: raw\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n" % len(BODY)
) + BODY

PATIENCE = 50.0
"""Seconds that the other end waits in one operation."""


@contextlib.contextmanager
def standing_still() -> Iterator[IOLoop]:
    """A native loop whose clock stands still."""
    loop = IOLoop(clock=lambda: 0.0)
    try:
        yield loop
    finally:
        loop.close()


@contextlib.contextmanager
def peer(script: Callable[[int], object]) -> Iterator[int]:
    """Run ``script`` in a forked process, with a pipe's write end; give its read end."""
    told, tells = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            # What is counted is counted in this process too.
            sys.settrace(None)
            sys.setprofile(None)
            script(tells)
            status = 0
        finally:
            os._exit(status)
    os.close(tells)
    try:
        yield told
    finally:
        os.close(told)
        _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError("the other end of the connection failed")


def read(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes, in as few calls as they come."""
    data = sock.recv(size)
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError(f"{len(data)} bytes of {size}, then the end")
        data += piece
    return data


def switching(work: Callable[[int], Any], count: int) -> None:
    """Run one of the works that need no descriptor."""
    with standing_still() as loop:
        loop.run_sync(lambda: work(count))


def serve(server: TCPServer, speak: Callable[[socket.socket], object]) -> None:
    """Let ``speak`` talk with a server over TCP; the server is the one to close."""
    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname(), timeout=PATIENCE)

    def script(tells: int) -> None:
        speak(sock)
        os.close(tells)
        sock.recv(1)

    @coroutine
    def main() -> Generator[Any, Any, None]:
        server.add_socket(listener)
        yield PipeIOStream(os.dup(told)).read_until_close()
        yield server.shutdown(0)

    with peer(script) as told, standing_still() as loop:
        sock.close()
        loop.run_sync(main)


def echo(count: int) -> None:
    """Echo 1 KB so many times, on one connection."""

    def speak(sock: socket.socket) -> None:
        for _ in range(count):
            sock.sendall(MESSAGE)
            read(sock, len(MESSAGE))

    serve(EchoServer(), speak)


@coroutine
def hello(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
    """The handler of the path ``server``."""
    return Response(b"hello")
    yield


def server(count: int) -> None:
    """Answer so many requests, on one connection."""

    def speak(sock: socket.socket) -> None:
        sock.sendall(REQUEST)
        size = len(sock.recv(65536))
        for _ in range(count):
            sock.sendall(REQUEST)
            read(sock, size)

    serve(HTTPServer(hello), speak)


def fetch(count: int) -> None:
    """Fetch 1 KB so many times, over one connection that is kept."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/1k.txt"

    def script(_tells: int) -> None:
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        with sock:
            while sock.recv(65536):
                sock.sendall(ANSWER)

    @coroutine
    def main() -> Generator[Any, Any, None]:
        client = AsyncHTTPClient(force_instance=True)
        yield worker(client, url, None, count)
        client.close()

    with listener, peer(script), standing_still() as loop:
        loop.run_sync(main)


PATHS: dict[str, Callable[[int], None]] = {
    "yield": lambda count: switching(spinners, count),
    "child": lambda count: switching(children, count),
    "chain": lambda count: switching(chains, count),
    "wake": lambda count: switching(players, count),
    "echo": echo,
    "fetch": fetch,
    "server": server,
}
