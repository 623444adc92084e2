"""``fetch(..., stream=True)``: the response comes with its head, and its body is pulled."""

from __future__ import annotations

import gc
import gzip
import warnings
from typing import Any

import pytest

from coro.errors import (
    CancelledError,
    HTTPConnectError,
    HTTPError,
    IncompleteBodyError,
    ReadTimeoutError,
    StreamClosedError,
    TotalTimeoutError,
)
from coro.gen import coroutine, moment, sleep
from coro.http import AsyncHTTPClient
from coro.http.streaming import StreamedResponse
from coro.loop import IOLoop
from tests.http.serving import chunked, response
from tests.support.authority import Authority
from tests.support.hosting import of_the_system

IDLE = {"active": 0, "waiting": 0, "idle": 0}


@pytest.fixture
def run(loop: IOLoop, client: AsyncHTTPClient) -> Any:
    """``run(body)``: run a coroutine; afterwards nothing is under way any more."""

    def run(body: Any) -> Any:
        result = loop.run_sync(coroutine(body))
        for _ in range(3):
            loop.run_sync(lambda: moment)
        assert client.statistics()["active"] == 0
        return result

    return run


def test_it_comes_with_its_head(run: Any, serve: Any, client: AsyncHTTPClient) -> None:
    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            yield peer.send(b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 10\r\n\r\n")
            for piece in (b"01234", b"56789"):
                yield sleep(100)
                yield peer.send(piece)

    server = serve(script)

    def body() -> Any:
        for _ in range(2):
            begun = IOLoop.current().time()
            got = yield client.fetch(server.url(), stream=True)
            assert isinstance(got, StreamedResponse)
            assert IOLoop.current().time() - begun < 1
            assert (got.code, got.headers["A"], got.body) == (200, "b", b"")
            assert "open" in repr(got)
            assert (yield got.read_all()) == b"0123456789"
            assert (yield got.read()) == b""
            assert "read" in repr(got)
            got.close()
            assert "closed" in repr(got)

    run(body)
    assert server.connections == 1


def test_pieces_of_the_size_that_is_asked_for(
    run: Any, answering: Any, client: AsyncHTTPClient
) -> None:
    server = answering(chunked(b"01234", b"56789"))

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        pieces = []
        while piece := (yield got.read(3)):
            assert len(piece) <= 3
            pieces.append(piece)
        assert b"".join(pieces) == b"0123456789"
        with pytest.raises(ValueError, match="at least 1"):
            yield got.read(0)

    run(body)


def test_async_for(run: Any, answering: Any, client: AsyncHTTPClient) -> None:
    server = answering(chunked(b"01234", b"56789"))

    async def main() -> bytes:
        streamed: Any = await client.fetch(server.url(), stream=True)
        async with streamed as got:
            return b"".join([piece async for piece in got])

    def body() -> Any:
        return (yield main())

    assert run(body) == b"0123456789"


def test_compressed(run: Any, answering: Any, client: AsyncHTTPClient) -> None:
    packed = gzip.compress(b"x" * 1_000_000)
    server = answering(response(packed, "Content-Encoding: gzip"))

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        assert got.headers["X-Consumed-Content-Encoding"] == "gzip"
        assert (yield got.read_all()) == b"x" * 1_000_000

    run(body)


def test_back_pressure(run: Any, serve: Any, client: AsyncHTTPClient) -> None:
    """A server cannot send more than is read, and what fits the buffers on the way."""
    sent = 0

    def script(peer: Any) -> Any:
        nonlocal sent
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(1000):
            yield peer.send(bytes(100_000))
            sent += 100_000

    server = serve(script)

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        for _ in range(10):
            yield got.read()
            yield sleep(1)
        assert sent < 20_000_000
        total = 0
        while piece := (yield got.read()):
            total += len(piece)
        assert total > 90_000_000

    run(body)


@of_the_system  # It is seen in the system's own buffers.
@pytest.mark.parametrize("secure", [False, True])
def test_what_an_idle_reader_leaves_in_memory(
    run: Any, serve: Any, client: AsyncHTTPClient, ca: Authority, secure: bool
) -> None:
    """One piece that was handed over; and with TLS, one record that it may have begun with."""

    def script(peer: Any) -> Any:
        if secure:
            peer.stream = yield peer.stream.start_tls(True, ca.server_context())
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            yield peer.send(bytes(100_000))

    server = serve(script)
    url = f"http{'s' if secure else ''}://127.0.0.1:{server.port}/"

    def body() -> Any:
        got: Any = yield client.fetch(url, stream=True, ca_certs=str(ca.pem))
        (connection,) = client._pool._open
        held = []
        taken = 0
        for _ in range(20):
            taken += len((yield got.read()))
            yield sleep(1)
            held.append(connection.decoder.body_bytes - taken)
            assert "buffered" not in repr(connection.stream)
        assert 0 < max(held) <= 64 * 1024
        got.close()

    run(body)


@pytest.mark.parametrize("pause", [0, 1000])
@pytest.mark.parametrize("unasked", [b"", b"x"])
def test_a_connection_is_watched_after_a_slow_reader(
    run: Any, serve: Any, client: AsyncHTTPClient, unasked: bytes, pause: float
) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(response(bytes(100_000)))
        yield sleep(pause)
        if unasked:
            yield peer.send(unasked)
            yield from peer.silence()

    server = serve(script)

    def body() -> Any:
        for number in (1, 2):
            got = yield client.fetch(server.url(), stream=True)
            size = 0
            while piece := (yield got.read(10_000)):
                size += len(piece)
                yield sleep(1)
            assert size == 100_000
            assert client.statistics()["idle"] == (pause > 0)
            yield sleep(pause)
            assert client.statistics() == {**IDLE, "opened": number}

    client._pool.idle_seconds = 10_000
    run(body)


def test_redirects_are_followed(run: Any, answering: Any, client: AsyncHTTPClient) -> None:
    server = answering(
        {"/": response(b"", "Location: /there", status="302 Found"), "/there": response(b"here")}
    )

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        assert got.effective_url.endswith("/there")
        assert (yield got.read_all()) == b"here"

    run(body)


def test_an_error_status(run: Any, answering: Any, client: AsyncHTTPClient) -> None:
    """Raised, it has its body; not raised, the body is pulled."""
    server = answering(response(b"nothing here", status="404 Not Found"))

    def body() -> Any:
        with pytest.raises(HTTPError) as caught:
            yield client.fetch(server.url(), stream=True)
        assert (caught.value.code, caught.value.response.body) == (404, b"nothing here")
        got = yield client.fetch(server.url(), stream=True, raise_error=False)
        assert (got.code, (yield got.read_all())) == (404, b"nothing here")

    run(body)


def test_no_response(run: Any, client: AsyncHTTPClient, refused_port: int) -> None:
    def body() -> Any:
        url = f"http://127.0.0.1:{refused_port}/"
        with pytest.raises(HTTPConnectError):
            yield client.fetch(url, stream=True)
        got = yield client.fetch(url, stream=True, raise_error=False)
        assert (got.code, type(got.error)) == (599, HTTPConnectError)

    run(body)


def test_the_body_breaks_off(run: Any, serve: Any, client: AsyncHTTPClient) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(response(b"0123456789")[:-5])

    server = serve(script)

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        received = b""
        with pytest.raises(IncompleteBodyError):
            while True:
                received += yield got.read()
        assert received == b"01234"

    run(body)


def test_limits(run: Any, serve: Any, client: AsyncHTTPClient) -> None:
    """The whole has none unless it is asked for; silence has one, but not the reader's."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        yield from peer.silence()

    server = serve(script)

    def body() -> Any:
        kinds: list[tuple[dict[str, Any], type[Exception]]] = [
            ({"inactivity_timeout": 5}, ReadTimeoutError),
            ({"request_timeout": 50}, TotalTimeoutError),
        ]
        for options, error in kinds:
            got = yield client.fetch(server.url(), stream=True, **options)
            yield sleep(20)
            assert (yield got.read()) == b"01234"
            with pytest.raises(error):
                yield got.read()

    run(body)


@pytest.mark.parametrize("how", ["close", "with", "cancel the read", "drop"])
def test_nobody_wants_the_rest(
    run: Any, serve: Any, client: AsyncHTTPClient, how: str, no_collector: None
) -> None:
    gone = []

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        try:
            yield from peer.silence()
        finally:
            gone.append(peer.number)

    server = serve(script)

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        assert (yield got.read()) == b"01234"
        if how == "close":
            got.close()
            with pytest.raises(StreamClosedError):
                yield got.read()
        elif how == "with":
            yield moment
            with got:
                pass
            del got  # at once: the fetch ends in the next turn only
        elif how == "cancel the read":
            reading = got.read()
            yield moment
            reading.cancel()
            with pytest.raises(CancelledError):
                yield reading
            got.close()
        else:
            # The engine lets go of the last thing that was waited for.
            yield moment
            with pytest.warns(ResourceWarning, match="unclosed <StreamedResponse"):
                del got
        yield sleep(1)
        assert gone == [1]
        assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}

    run(body)
    assert gc.collect() == 0


def test_closed_and_let_go_of_in_one_turn(
    run: Any, answering: Any, client: AsyncHTTPClient
) -> None:
    """Its fetch has not ended then, but nobody forgot to close it."""
    server = answering(response(bytes(1_000_000)))

    def body() -> Any:
        with (yield client.fetch(server.url(), stream=True)) as got:
            assert (yield got.read(1)) == b"\0"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del got

    run(body)


def test_cancelled_before_the_head(run: Any, serve: Any, client: AsyncHTTPClient) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield from peer.silence()

    server = serve(script)

    def body() -> Any:
        fetching = client.fetch(server.url(), stream=True)
        yield sleep(1)
        fetching.cancel()
        with pytest.raises(CancelledError):
            yield fetching
        yield sleep(1)
        assert client.statistics()["active"] == 0

    run(body)
    assert server.open == 0


def test_more_than_wanted(run: Any, answering: Any, client: AsyncHTTPClient) -> None:
    server = answering(response(b"0123456789"))

    def body() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        with pytest.raises(ValueError, match="larger than 9"):
            yield got.read_all(9)
        got = yield client.fetch(server.url(), stream=True)
        assert (yield got.read_all(10)) == b"0123456789"

    run(body)
