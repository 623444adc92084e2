"""No server, whatever it sends, crashes, hangs or desynchronises the client, or fills its memory.

Each is fetched from on real sockets and in simulation, and after it an honest answer comes from the
same place: whatever was left of the hostile connection, it is not taken for that answer.
"""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from coro.errors import HTTPError, StreamClosedError
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient
from coro.stream import IOStream
from coro.tcpserver import TCPServer
from coro.testing import simulate
from tests.http.hostile import CLOSE, EARLY, RESET, Case, Endless, cases
from tests.support.virtual import virtual_loop

CASES = cases()

LIMITS: dict[str, Any] = {"connect_timeout": 5, "request_timeout": 20, "inactivity_timeout": 4}

# Bytes that a hostile server may get rid of: what the kernel and the stream take before they stop.
MOST_SENT = 16_000_000

# Bytes of memory that a fetch from one may take: a limit of a million of decoded ones among them.
MOST_HELD = 4_000_000

HONEST = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhonest"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


class Hostile(TCPServer):
    """Plays a plan, but answers ``/honest`` as it should be, once it was hostile.

    Attributes:
        sent: how many bytes were sent.
    """

    def __init__(self, plan: tuple[Any, ...]) -> None:
        super().__init__(half_open=True)
        self._plan = plan
        self.sent = self.connections = 0

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Generator[Any, Any, None]:
        plan = self._plan
        try:
            self.connections += 1
            if plan[:1] == (EARLY,) and self.connections == 1:
                yield from self._play(stream, plan[1:])
            while True:
                head = yield stream.read_until(b"\r\n\r\n")
                if b" /honest " in head:
                    yield stream.write(HONEST)
                else:
                    yield from self._play(stream, plan)
        except StreamClosedError:
            pass
        finally:
            stream.close()

    def _play(self, stream: IOStream, plan: tuple[Any, ...]) -> Generator[Any, Any, None]:
        for step in plan:
            if step == CLOSE:
                stream.close()
            elif step == RESET:
                stream.abort()
            elif isinstance(step, bytes):
                yield from self._send(stream, step)
            elif isinstance(step, Endless):
                while True:
                    yield from self._send(stream, step.piece)
            elif step != EARLY:
                yield sleep(step)

    def _send(self, stream: IOStream, data: bytes) -> Generator[Any, Any, None]:
        yield stream.write(data)
        self.sent += len(data)


@coroutine
def attack(case: Case) -> Generator[Any, Any, Any]:
    """Return how the fetch ended: the error, or status and body; then fetch what is honest."""
    server = Hostile(case.plan)
    server.listen(0, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    options = dict(case.options)
    client = AsyncHTTPClient(force_instance=True, max_body_size=options.pop("max_body_size", None))
    outcome: Any
    try:
        response = yield client.fetch(
            f"http://127.0.0.1:{port}/hostile", raise_error=False, **LIMITS, **options
        )
        error = response.error
        outcome = (
            error if error is not None and response.code == 599 else (response.code, response.body)
        )
        if isinstance(outcome, tuple) and 300 <= outcome[0] < 400 and outcome[0] != 304:
            outcome = error
        # What is sent too much may take its time.
        yield sleep(0.1)
        for _ in range(2):
            honest = yield client.fetch(f"http://127.0.0.1:{port}/honest", **LIMITS)
            assert (honest.code, honest.body) == (200, b"honest"), honest
    finally:
        client.close()
        yield server.shutdown(0)
    assert server.sent < MOST_SENT
    return outcome


def check(case: Case, outcome: Any) -> None:
    if case.outcome is None:
        return
    if isinstance(case.outcome, tuple):
        assert outcome == case.outcome
    else:
        assert isinstance(outcome, case.outcome), outcome
        assert isinstance(outcome, HTTPError)


@pytest.fixture
def loop() -> Iterator[Any]:
    loop = virtual_loop()
    yield loop
    left = loop.statistics()
    assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)
    loop.close()
    loop.clear_current()


@pytest.mark.parametrize("name", CASES)
def test_on_sockets(loop: Any, name: str) -> None:
    case = CASES[name]
    check(case, loop.run_sync(lambda: attack(case)))


@pytest.mark.parametrize("name", CASES)
def test_in_simulation(name: str) -> None:
    case = CASES[name]
    for seed in range(3):
        check(case, simulate(attack, case, seed=seed, timeout=1000))


GREEDY = [
    name
    for name, case in CASES.items()
    if "bomb" in name or any(isinstance(step, Endless) for step in case.plan)
]


@pytest.mark.parametrize("name", GREEDY)
def test_memory(loop: Any, name: str) -> None:
    """Client, server and what is under way between them, at their largest."""
    tracemalloc.start()
    try:
        loop.run_sync(lambda: attack(CASES[name]))
        assert tracemalloc.get_traced_memory()[1] < MOST_HELD
    finally:
        tracemalloc.stop()


def test_there_are_many() -> None:
    assert len(GREEDY) >= 10
    assert len(CASES) >= 150
