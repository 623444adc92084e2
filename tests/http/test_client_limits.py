"""Limits of time, and the queue of requests that wait for a slot."""

from __future__ import annotations

import functools
import socket
from collections.abc import Generator
from typing import Any

import pytest

from coro.errors import (
    ConnectTimeoutError,
    HTTPResolveError,
    HTTPTimeoutError,
    QueueTimeoutError,
    ReadTimeoutError,
    ResolveError,
    TimeoutError,
    TotalTimeoutError,
    WriteTimeoutError,
)
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPResponse
from coro.http.connection import HTTPConnection
from coro.loop import IOLoop
from coro.resolver import Resolver
from tests.http.serving import chunked, response
from tests.support.hosting import of_the_system


def silent(peer: Any) -> Any:
    yield from peer.silence()


def after(seconds: float) -> Any:
    """A script that answers each request after some seconds."""

    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            yield sleep(seconds)
            yield peer.send(response())

    return script


def make(loop: IOLoop, **settings: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(force_instance=True, **settings)


def elapsed(loop: IOLoop, func: Any) -> tuple[HTTPResponse, float]:
    begun = loop.time()
    got = loop.run_sync(func)
    return got, loop.time() - begun


IDLE = {"active": 0, "waiting": 0, "idle": 0}


# --- time: the whole -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "safe"), [("GET", True), ("POST", False)])
def test_the_time_of_the_whole(
    loop: IOLoop, client: AsyncHTTPClient, serve: Any, method: str, safe: bool
) -> None:
    server = serve(silent)
    body = None if method == "GET" else b"body"
    got, seconds = elapsed(
        loop,
        lambda: client.fetch(
            server.url(), method=method, body=body, request_timeout=7, raise_error=False
        ),
    )
    error: Any = got.error
    assert type(error) is TotalTimeoutError
    assert str(error) == "Timeout during request"
    assert isinstance(error, TimeoutError)
    assert (error.phase, error.attempts, error.safe_to_retry) == ("wait", 1, safe)
    assert error.bytes_sent > len(body or b"") + 16
    assert isinstance(error.__cause__, TimeoutError)
    assert seconds == pytest.approx(7)
    assert got.request_time == pytest.approx(7)
    assert client.statistics() == {**IDLE, "opened": 1}


def test_twenty_seconds_by_default(loop: IOLoop, client: AsyncHTTPClient, serve: Any) -> None:
    server = serve(silent)
    got, seconds = elapsed(loop, lambda: client.fetch(server.url(), raise_error=False))
    assert type(got.error) is TotalTimeoutError
    assert seconds == pytest.approx(20)


@pytest.mark.parametrize("off", [None, 0])
def test_no_limit(fetch: Any, serve: Any, off: Any) -> None:
    server = serve(after(100_000))
    for _ in range(2):
        assert fetch(server.url(), connect_timeout=off, request_timeout=off).code == 200
    assert server.connections == 1


def test_a_body_in_drops_ends_at_the_limit(fetch: Any, serve: Any, loop: IOLoop) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            yield sleep(1)
            yield peer.send(b"x")

    server = serve(script)
    begun = loop.time()
    with pytest.raises(TotalTimeoutError, match="Timeout during request") as info:
        fetch(server.url(), request_timeout=10, inactivity_timeout=2)
    assert info.value.phase == "body"
    assert loop.time() - begun == pytest.approx(10)


def test_the_limit_moves_with_the_request(loop: IOLoop, serve: Any) -> None:
    """A kept connection has one timer for its requests: neither early nor late for any of them."""
    client = make(loop)
    quick = serve(after(3))

    def run(seconds: float) -> tuple[HTTPResponse, float]:
        return elapsed(
            loop,
            lambda: client.fetch(quick.url(), request_timeout=seconds, raise_error=False),
        )

    for limit in (10, 4, 100, 4, 10):
        got, seconds = run(limit)
        assert (got.code, seconds) == (200, pytest.approx(3))
    assert quick.connections == 1
    got, seconds = run(2)
    assert (type(got.error), seconds) == (TotalTimeoutError, pytest.approx(2))
    got, seconds = run(4)
    assert (got.code, quick.connections) == (200, 2)
    client.close()


def test_a_producer_that_never_ends(fetch: Any, serve: Any, loop: IOLoop) -> None:
    server = serve(silent)
    ended = []

    @coroutine
    def produce(write: Any) -> Generator[Any, Any, None]:
        try:
            while True:
                yield write(b"x")
                yield sleep(1)
        finally:
            ended.append(loop.time())

    begun = loop.time()
    with pytest.raises(TotalTimeoutError) as info:
        fetch(server.url(), method="POST", body_producer=produce, request_timeout=10)
    assert info.value.phase == "send"
    assert info.value.bytes_sent > 10
    assert not info.value.safe_to_retry
    assert ended == [pytest.approx(begun + 10)]


# --- time: inactivity ------------------------------------------------------------------------


def test_silence(loop: IOLoop, client: AsyncHTTPClient, serve: Any) -> None:
    server = serve(silent)
    got, seconds = elapsed(
        loop, lambda: client.fetch(server.url(), inactivity_timeout=3, raise_error=False)
    )
    assert type(got.error) is ReadTimeoutError
    place = f"127.0.0.1:{server.port}"
    assert str(got.error) == f"Timeout: {place} sent nothing for 3 s"
    assert isinstance(got.error, TimeoutError)
    assert seconds == pytest.approx(3)


def test_silence_after_some_of_the_body(loop: IOLoop, client: AsyncHTTPClient, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        for piece in (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 9\r\n", b"\r\n", b"123", b"456"):
            yield sleep(2)
            yield peer.send(piece)
        yield from peer.silence()

    server = serve(script)
    got, seconds = elapsed(
        loop,
        lambda: client.fetch(
            server.url(), inactivity_timeout=3, request_timeout=None, raise_error=False
        ),
    )
    assert type(got.error) is ReadTimeoutError
    assert got.error.phase == "body"
    assert seconds == pytest.approx(13)


@pytest.mark.parametrize("limit", [None, 100_000])
def test_drops_are_no_silence(fetch: Any, serve: Any, loop: IOLoop, limit: Any) -> None:
    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            for byte in response(b"0123456789" * 3):
                yield sleep(2.9)
                yield peer.send(bytes([byte]))

    server = serve(script)
    begun = loop.time()
    for _ in range(2):
        got = fetch(server.url(), inactivity_timeout=3, request_timeout=limit)
        assert got.body == b"0123456789" * 3
    assert server.connections == 1
    assert loop.time() - begun > 300


def test_a_slow_taker_is_not_a_silent_server(fetch: Any, serve: Any, answering: Any) -> None:
    server = answering(chunked(b"one", b"two"), response(b"three"))
    taken = []

    @coroutine
    def take(piece: bytes) -> Generator[Any, Any, None]:
        yield sleep(50)
        taken.append(piece)

    for limit in (None, 1000):
        fetch(server.url(), streaming_callback=take, inactivity_timeout=3, request_timeout=limit)
    assert b"".join(taken) == b"onetwothree"


def test_a_slow_taker_has_not_for_ever(fetch: Any, answering: Any, loop: IOLoop) -> None:
    server = answering(chunked(b"one", b"two"))
    begun = loop.time()
    with pytest.raises(TotalTimeoutError):
        fetch(
            server.url(),
            streaming_callback=lambda piece: sleep(50),
            inactivity_timeout=3,
            request_timeout=10,
        )
    assert loop.time() - begun == pytest.approx(10)


# --- time: before the request ----------------------------------------------------------------


def test_the_time_to_connect(loop: IOLoop, client: AsyncHTTPClient, deaf_port: int) -> None:
    """The error is that of the limit which ran out; in which phase that was, it tells besides."""
    url = f"http://127.0.0.1:{deaf_port}/"
    for options, expected, kind in (
        ({"connect_timeout": 4}, 4, ConnectTimeoutError),
        ({}, 20, ConnectTimeoutError),
        ({"connect_timeout": None, "request_timeout": 6}, 6, TotalTimeoutError),
        ({"connect_timeout": 9, "request_timeout": None}, 9, ConnectTimeoutError),
        ({"connect_timeout": 9, "request_timeout": 2}, 2, TotalTimeoutError),
    ):
        got, seconds = elapsed(
            loop, functools.partial(client.fetch, url, raise_error=False, **options)
        )
        error: Any = got.error
        assert type(error) is kind
        assert str(error) == f"Timeout while connecting to 127.0.0.1:{deaf_port}"
        assert (error.phase, error.attempts, error.bytes_sent) == ("connect", 0, 0)
        assert error.safe_to_retry
        assert seconds == pytest.approx(expected)
    assert client.statistics() == {**IDLE, "opened": 0}


def test_the_time_to_connect_anew_counts_from_then(loop: IOLoop, serve: Any) -> None:
    """A kept connection fails after four seconds; the one in its place does not come about."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(response())
        yield from peer.request()
        yield sleep(4)

    server = serve(script)
    resolver = Resolving(0)
    client = make(loop, resolver=resolver)
    url = f"http://slow.example:{server.port}/"
    loop.run_sync(lambda: client.fetch(url))
    resolver.seconds = 1000
    got, seconds = elapsed(loop, lambda: client.fetch(url, connect_timeout=5, raise_error=False))
    assert type(got.error) is ConnectTimeoutError
    assert seconds == pytest.approx(9, abs=0.01)
    client.close()


def test_the_time_to_connect_ends_with_connecting(fetch: Any, serve: Any) -> None:
    server = serve(after(15))
    assert fetch(server.url(), connect_timeout=1).code == 200


class Resolving(Resolver):
    """Answers after some seconds, or with an error; literal addresses at once."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        if host != "127.0.0.1":
            yield sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return [(2, ("127.0.0.1", port))]


def test_the_time_to_resolve(loop: IOLoop, serve: Any) -> None:
    server = serve(after(0))
    client = make(loop, resolver=Resolving(30))
    url = f"http://slow.example:{server.port}/"
    got, seconds = elapsed(loop, lambda: client.fetch(url, connect_timeout=4, raise_error=False))
    assert type(got.error) is ConnectTimeoutError
    assert str(got.error) == "Timeout while resolving slow.example"
    assert got.error.phase == "dns"
    assert seconds == pytest.approx(4)
    got, seconds = elapsed(
        loop, lambda: client.fetch(url, connect_timeout=None, request_timeout=None)
    )
    assert got.code == 200
    assert seconds == pytest.approx(30, abs=1)
    assert got.time_info["dns"] == pytest.approx(30, abs=1)
    client.close()


def test_a_name_that_nobody_knows(loop: IOLoop) -> None:
    error = ResolveError(-2, "Name or service not known", "no.example")
    client = make(loop, resolver=Resolving(0, error))
    with pytest.raises(HTTPResolveError, match=r"cannot resolve 'no.example'") as info:
        loop.run_sync(lambda: client.fetch("http://no.example/"))
    assert (info.value.phase, info.value.attempts) == ("dns", 0)
    assert info.value.safe_to_retry
    assert isinstance(info.value.__cause__, ResolveError)
    assert isinstance(info.value, socket.gaierror)
    assert info.value.errno == -2
    client.close()


# --- the queue -------------------------------------------------------------------------------


def test_at_most_so_many_at_once(loop: IOLoop, serve: Any) -> None:
    most = now = 0

    def script(peer: Any) -> Any:
        nonlocal most, now
        while True:
            yield from peer.request()
            now += 1
            most = max(most, now)
            yield sleep(1)
            now -= 1
            yield peer.send(response())

    server = serve(script)
    client = make(loop, max_clients=3)
    got, seconds = elapsed(loop, lambda: [client.fetch(server.url()) for _ in range(10)])
    assert [each.code for each in got] == [200] * 10  # type: ignore[attr-defined]
    assert most == 3
    assert seconds == pytest.approx(4)
    assert server.connections == 3
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 3, "opened": 3}
    client.close()


@of_the_system  # Who comes first is drawn in simulation.
def test_first_come_first_served(loop: IOLoop, serve: Any) -> None:
    server = serve(after(1))
    client = make(loop, max_clients=2)
    order: list[str] = []

    def begin() -> list[Future[Any]]:
        return [
            client.fetch(
                server.url(f"/{number}"),
                callback=lambda got: order.append(got.effective_url.rpartition("/")[2]),
            )
            for number in range(9)
        ]

    loop.run_sync(begin)
    loop.run_sync(lambda: sleep(1))
    assert order == [str(number) for number in range(9)]
    client.close()


def test_the_time_in_the_queue(loop: IOLoop, serve: Any) -> None:
    server = serve(after(10))
    client = make(loop, max_clients=1)

    def begin() -> dict[str, Future[Any]]:
        return {
            "first": client.fetch(server.url("/1")),
            "connect": client.fetch(server.url("/2"), connect_timeout=3, raise_error=False),
            "whole": client.fetch(server.url("/3"), request_timeout=2, raise_error=False),
            "patient": client.fetch(server.url("/4"), connect_timeout=None, request_timeout=None),
        }

    got: Any
    got, seconds = elapsed(loop, begin)
    for name, limit in (("connect", 3), ("whole", 2)):
        error = got[name].error
        assert type(error) is QueueTimeoutError
        assert str(error) == "Timeout in request queue"
        assert (error.phase, error.attempts, error.bytes_sent) == ("queue", 0, 0)
        assert error.safe_to_retry
        assert got[name].time_info["total"] == pytest.approx(limit)
    assert seconds == pytest.approx(20)
    times = got["patient"].time_info
    assert times["queue"] == pytest.approx(10, abs=0.01)
    assert times["total"] == pytest.approx(20)
    assert got["patient"].request_time == pytest.approx(10), "the wait is not counted"
    assert server.connections == 1
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 1, "opened": 1}
    client.close()


def test_the_time_in_the_queue_is_not_taken_from_that_to_connect(loop: IOLoop, serve: Any) -> None:
    server = serve(after(4))
    client = make(loop, max_clients=1, resolver=Resolving(4))

    def begin() -> list[Future[Any]]:
        slow = f"http://slow.example:{server.port}/"
        return [
            client.fetch(server.url(), connect_timeout=5),
            client.fetch(slow, connect_timeout=5, request_timeout=None),
        ]

    assert [each.code for each in loop.run_sync(begin)] == [200, 200]
    client.close()


def test_those_that_timed_out_take_no_turn(loop: IOLoop, serve: Any) -> None:
    server = serve(after(10))
    client = make(loop, max_clients=1)

    def begin() -> list[Future[Any]]:
        waits = [1, 2, 3, None, 4, 5, None]
        return [
            client.fetch(server.url(), request_timeout=31, connect_timeout=wait, raise_error=False)
            for wait in [None, *waits]
        ]

    got: Any
    got, seconds = elapsed(loop, begin)
    assert [each.code for each in got] == [200, 599, 599, 599, 200, 599, 599, 200]
    assert seconds == pytest.approx(30)
    client.close()


def test_an_upload_that_moves_is_not_silence(
    fetch: Any, serve: Any, loop: IOLoop, monkeypatch: Any
) -> None:
    """The stream tells when it last got rid of something: here at 2, 4, ... 20 seconds."""
    server = serve(silent)
    begun = loop.time()
    exchange = HTTPConnection.exchange

    def follow(connection: HTTPConnection, *args: Any) -> Any:
        for seconds in range(2, 21, 2):
            loop.call_later(seconds, setattr, connection.stream, "sent_at", begun + seconds)
        return exchange(connection, *args)

    monkeypatch.setattr(HTTPConnection, "exchange", follow)
    with pytest.raises(ReadTimeoutError):
        fetch(server.url(), inactivity_timeout=3, request_timeout=None)
    assert loop.time() - begun == pytest.approx(23)


def test_an_upload_that_stands_still(fetch: Any, serve: Any, loop: IOLoop) -> None:
    def script(peer: Any) -> Any:
        yield peer.stream.read_until(b"\r\n\r\n")
        yield peer.stream.read_bytes(1_000_000)
        yield sleep(1000)

    server = serve(script)
    with pytest.raises(ReadTimeoutError):
        fetch(
            server.url(),
            method="POST",
            body=bytes(20_000_000),
            inactivity_timeout=5,
            request_timeout=None,
        )


def test_an_upload_that_nobody_takes(fetch: Any, serve: Any, loop: IOLoop) -> None:
    def script(peer: Any) -> Any:
        yield peer.stream.read_until(b"\r\n\r\n")
        yield sleep(1000)

    server = serve(script)
    for options in (
        {"body": bytes(20_000_000)},
        {"body_producer": lambda write: write(bytes(20_000_000))},
    ):
        begun = loop.time()
        with pytest.raises(WriteTimeoutError, match="took nothing for 5 s") as caught:
            fetch(
                server.url(),
                method="POST",
                write_timeout=5,
                inactivity_timeout=1000,
                request_timeout=None,
                **options,
            )
        assert caught.value.phase == "send"
        assert isinstance(caught.value, TimeoutError)
        assert loop.time() - begun == pytest.approx(5, abs=0.1)


def test_the_time_in_the_queue_has_a_limit_of_its_own(loop: IOLoop, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield sleep(1000)

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True, max_clients=1)

    @coroutine
    def main() -> Any:
        first = client.fetch(server.url(), request_timeout=500)
        begun = loop.time()
        with pytest.raises(QueueTimeoutError):
            yield client.fetch(server.url(), queue_timeout=3)
        assert loop.time() - begun == pytest.approx(3, abs=0.1)
        # The whole is over before that, or while there is none.
        for limit in (3, None):
            with pytest.raises(TotalTimeoutError, match="in request queue") as caught:
                yield client.fetch(server.url(), queue_timeout=limit, request_timeout=2)
            assert caught.value.phase == "queue"
        # Without limit: until the slot is free.
        second = client.fetch(server.url(), queue_timeout=None, request_timeout=None)
        with pytest.raises(HTTPTimeoutError):
            yield first
        second.cancel()
        client.close()

    loop.run_sync(main)


@pytest.mark.parametrize("name", ["queue_timeout", "write_timeout", "inactivity_timeout"])
@pytest.mark.parametrize("value", [0, -1])
def test_zero_is_no_limit_of_the_new_kinds(fetch: Any, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        fetch("http://127.0.0.1:1/", **{name: value})
    with pytest.raises(ValueError, match=name):
        AsyncHTTPClient(force_instance=True, defaults={name: value})


@pytest.mark.parametrize("name", ["connect_timeout", "request_timeout", "write_timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [("5", TypeError), ([5], TypeError), (-1, ValueError), (float("nan"), ValueError)],
)
def test_what_is_no_limit(fetch: Any, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} is a number of seconds, or None, not"):
        fetch("http://127.0.0.1:1/", **{name: value})
