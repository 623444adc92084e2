"""A server that is told to stop, under load, in a process of its own: no request is lost.

Accepted is a request whose first byte had come when the stop began, or whose connection waited to
be accepted by then. Those who come later may find nobody.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.gen import coroutine, sleep
from coro.main import run
from coro.tcp import connect
from tests.support.authority import Authority

ROOT = Path(__file__).parent.parent.parent

PATIENCE = 30.0

SERVER = """
    import os, signal, sys
    from coro import IOLoop, coroutine, run, sleep
    from coro.http import HTTPServer, Response
    from coro.locks import Event

    @coroutine
    def answer(request):
        yield sleep(0.02)
        return Response(f"{os.getpid()}")

    @coroutine
    def main():
        stopped = Event()
        IOLoop.current().add_signal_handler(signal.SIGTERM, stopped.set)
        yield stopped.wait()
        yield server.shutdown(20)

    workers = int(sys.argv[1])
    server = HTTPServer(answer, ssl_options={"certfile": sys.argv[2]} if sys.argv[2:] else None)
    server.bind(0, "127.0.0.1")
    print(server._bound[0][0].getsockname()[1], flush=True)
    if workers == 1:
        @coroutine
        def alone():
            server.start()
            yield main()
        run(alone)
    else:
        from coro.process import fork_processes
        fork_processes(workers, 100, on_stop=server.stop)
        @coroutine
        def one_of_many():
            server.start()
            os.write(1, f"worker {os.getpid()}\\n".encode())
            yield main()
        run(one_of_many)
"""

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def server(workers: int, *certificate: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running server, and its port."""
    script = textwrap.dedent(SERVER)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(workers), *certificate],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


class Load:
    """Clients of a server, and how their requests went.

    Arguments:
        port: the server's.
        options: how to connect.

    Attributes:
        done: for each request: when it began, and whether it was answered.
    """

    def __init__(self, port: int, **options: Any) -> None:
        self.port = port
        self._options = options
        self.stopping = False
        self.done: list[tuple[float, bool]] = []

    @coroutine
    def ask_once(self) -> Generator[Any, Any, None]:
        """Ask on a connection of its own."""
        begun = time.monotonic()
        try:
            stream = yield connect("127.0.0.1", self.port, **self._options)
            try:
                yield from self._exchange(stream)
            finally:
                stream.close()
        except OSError:
            self.done.append((begun, False))
        else:
            self.done.append((begun, True))

    @coroutine
    def ask_on_and_on(self) -> Generator[Any, Any, None]:
        """Ask again and again on one connection, until the server has enough."""
        stream = yield connect("127.0.0.1", self.port, **self._options)
        while not self.stopping and not stream.closed():
            begun = time.monotonic()
            try:
                last = yield from self._exchange(stream)
            except StreamClosedError:
                self.done.append((begun, False))
                break
            self.done.append((begun, True))
            if last:
                break
        stream.close()

    def _exchange(self, stream: Any) -> Generator[Any, Any, bool]:
        yield stream.write(REQUEST)
        head = yield stream.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        yield stream.read_bytes(length)
        return b"Connection: close" in head

    @coroutine
    def press(self, told: Callable[[], None], count: int = 2000) -> Generator[Any, Any, float]:
        """Ask ten times on and on, and often once; half way call ``told``, and return when."""
        asking = [self.ask_on_and_on() for _ in range(10)]
        when = 0.0
        for number in range(count):
            asking.append(self.ask_once())
            if number == count // 2:
                when = time.monotonic()
                told()
            yield sleep(0.0005)
        self.stopping = True
        yield asking
        return when


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_no_request(ca: Authority, workers: int, tls: bool) -> None:
    options: dict[str, Any] = {}
    if tls:
        options = {"ssl_options": ca.client_context(), "server_hostname": "localhost"}
    with server(workers, *([str(ca.issue())] if tls else [])) as (process, port):
        load = Load(port, **options)
        tell = functools.partial(process.send_signal, signal.SIGTERM)
        if workers > 1:
            assert process.stdout is not None
            for _ in range(workers):
                process.stdout.readline()
        told = run(load.press, tell, timeout=PATIENCE)
        assert process.wait(PATIENCE) == 0
    before = [answered for begun, answered in load.done if begun < told]
    assert len(before) > 1000
    assert all(before)
    # The others found nobody, or were served.
    assert not all(answered for _, answered in load.done)


def test_a_worker_that_ends_resets_nobody() -> None:
    """Its connections and its share of the queue are served; the rest is the other worker's."""
    with server(2) as (process, port):
        assert process.stdout is not None
        pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        load = Load(port)
        run(load.press, functools.partial(os.kill, pids[0], signal.SIGTERM), timeout=PATIENCE)
        assert len(load.done) > 1000
        assert all(answered for _, answered in load.done)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_worker_that_is_killed_loses_only_its_own() -> None:
    with server(2) as (process, port):
        assert process.stdout is not None
        pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        load = Load(port)

        @coroutine
        def main() -> Generator[Any, Any, None]:
            for number in range(200):
                yield load.ask_once()
                if number == 50:
                    os.kill(pids[0], signal.SIGKILL)

        run(main, timeout=PATIENCE)
        # At most the one that it was serving; the rest went to the other, and to its successor.
        assert sum(not answered for _, answered in load.done) <= 1
        new = int(process.stdout.readline().split()[1])
        assert new not in pids
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """Children are ended by their parents: none is left for another test."""
    before = _children()
    yield
    assert _children() <= before


def _children() -> set[str]:
    """The processes that this one has to wait for; other tests' servers may be among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
