"""Bodies of responses: compressed ones, and those taken piece by piece."""

from __future__ import annotations

import gzip
import socket
import zlib
from itertools import pairwise
from typing import Any

import brotli
import pytest

from coro.errors import (
    CancelledError,
    HTTPClosedError,
    HTTPProtocolError,
    StreamClosedError,
)
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.hooks import Observer
from coro.http import AsyncHTTPClient, compression
from coro.loop import IOLoop
from tests.conftest import RawServerFactory
from tests.http.serving import chunked, fields_of, response
from tests.support.hosting import new_loop, of_the_system
from tests.support.raw_server import read_until
from tests.support.zstandard import zstd

# --- compressed bodies -----------------------------------------------------------------------

TEXT = b"Generators all the way down. " * 500
RAW_DEFLATE = zlib.compressobj(wbits=-15)
CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "GZip": gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]),
    "deflate": zlib.compress(TEXT),
    "Deflate": RAW_DEFLATE.compress(TEXT) + RAW_DEFLATE.flush(),
    "br": brotli.compress(TEXT),
    "zstd": zstd.compress(TEXT[:99]) + zstd.compress(TEXT[99:]),
    "gzip, br": brotli.compress(gzip.compress(TEXT)),
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_compressed_bodies(fetch: Any, answering: Any, coding: str, framing: str) -> None:
    data = CODED[coding]
    field = f"Content-Encoding: {coding}"
    if framing == "length":
        server = answering(response(data, field))
    else:
        pieces = [data[at : at + 50] for at in range(0, len(data), 50)]
        server = answering(chunked(*pieces, fields=(field,)))
    for _ in range(2):
        got = fetch(server.url())
        assert got.body == TEXT
        assert "Content-Encoding" not in got.headers
        assert got.headers["X-Consumed-Content-Encoding"] == coding
    assert server.connections == 1


def test_compression_that_is_not_asked_for(fetch: Any, answering: Any) -> None:
    server = answering(response(CODED["gzip"], "Content-Encoding: gzip"))
    got = fetch(server.url(), decompress_response=False)
    assert got.body == CODED["gzip"]
    assert got.headers["Content-Encoding"] == "gzip"
    assert "X-Consumed-Content-Encoding" not in got.headers
    assert "Accept-Encoding" not in fields_of(server.requests[0])


@pytest.mark.parametrize("coding", ["compress", "identity", "gzip, compress"])
def test_codings_that_are_left_alone(fetch: Any, answering: Any, coding: str) -> None:
    server = answering(response(b"\x1f\x8bwhatever", f"Content-Encoding: {coding}"))
    got = fetch(server.url())
    assert got.body == b"\x1f\x8bwhatever"
    assert got.headers["Content-Encoding"] == coding


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_empty_compressed_body(fetch: Any, answering: Any, method: str) -> None:
    server = answering(response(b"", "Content-Encoding: gzip"))
    assert fetch(server.url(), method=method).body == b""
    assert fetch(server.url(), method=method).body == b""
    assert server.connections == 1


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "cut early", "another", "one byte"])
@pytest.mark.parametrize("stream", [True, False])
def test_damaged_compression(
    fetch: Any, answering: Any, client: AsyncHTTPClient, coding: str, damage: str, stream: bool
) -> None:
    good = CODED[coding]
    data = {"cut": good[:-1], "cut early": good[:20], "another": b"not this", "one byte": good[:1]}
    server = answering(response(data[damage], f"Content-Encoding: {coding}"))
    options = {"streaming_callback": lambda piece: None} if stream else {}
    with pytest.raises(HTTPProtocolError, match=f"{coding} data") as info:
        fetch(server.url(), **options)
    assert info.value.code == 599
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}


def test_a_coding_whose_library_is_missing(
    fetch: Any, answering: Any, client: AsyncHTTPClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_DECODERS", {})
    server = answering(response(CODED["br"], "Content-Encoding: br"))
    with pytest.raises(HTTPProtocolError, match=r"pip install 'coro-loop\[compression\]'"):
        fetch(server.url())
    assert fetch(server.url(), decompress_response=False).body == CODED["br"]


def test_others_get_their_turn_while_a_piece_unfolds(loop: IOLoop, serve: Any) -> None:
    """Six kilobytes that give 200 million bytes: the program does not stand still meanwhile."""
    bomb = zstd.compress(bytes(200_000_000), 1)
    assert len(bomb) < 65536

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(response(bomb, "Content-Encoding: zstd"))
        yield from peer.silence()

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True)
    size = 0
    seen = []
    enough: Future[None] = Future()

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size >= 50_000_000 and not enough.done():
            enough.set_result(None)

    class Turns(Observer):
        def turn_ended(self, loop: Any) -> None:
            seen.append(size)

    @coroutine
    def main() -> Any:
        task = client.fetch(server.url(), streaming_callback=take)
        yield enough
        task.cancel()

    turns = Turns()
    loop.add_observer(turns)
    loop.run_sync(main)
    loop.remove_observer(turns)
    client.close()
    assert max(b - a for a, b in pairwise(seen)) <= 4_000_000
    assert size < 60_000_000


# --- streaming -------------------------------------------------------------------------------


def test_streaming(fetch: Any, answering: Any) -> None:
    data = bytes(range(256)) * 4000
    server = answering(
        response(data),
        chunked(data[:1000], data[1000:]),
        response(gzip.compress(data), "Content-Encoding: gzip"),
        response(b""),
    )
    for expected in (data, data, data, b""):
        pieces: list[bytes] = []
        got = fetch(server.url(), streaming_callback=pieces.append)
        assert b"".join(pieces) == expected
        assert all(pieces)
        assert got.body == b""
        assert got.code == 200
    assert server.connections == 1


def test_a_slow_taker_holds_the_sender_back(loop: IOLoop, fetch: Any, serve: Any) -> None:
    """While the taker is busy nothing further is received: the sender cannot get rid of it all."""
    total = 16_000_000
    sent = 0

    def script(peer: Any) -> Any:
        nonlocal sent
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            yield peer.send(bytes(100_000))
            sent += 100_000

    server = serve(script)
    taken = 0
    busy = False
    ahead = []

    @coroutine
    def take(piece: bytes) -> Any:
        nonlocal taken, busy
        assert not busy, "one piece at a time"
        taken += len(piece)
        if taken < 1_000_000:
            busy = True
            yield sleep(0.5)
            ahead.append(sent - taken)
            busy = False

    fetch(server.url(), streaming_callback=take, request_timeout=None)
    assert taken == total
    assert len(ahead) > 3
    # What system buffers hold, and one chunk.
    assert max(ahead) < total - 2_000_000


def cancelled(piece: bytes) -> Any:
    """A callback whose own work was cancelled, and not the fetch."""
    future: Future[None] = Future()
    future.cancel()
    return future


def test_a_taker_that_fails(
    fetch: Any, answering: Any, client: AsyncHTTPClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and ends the fetch and its connection."""
    server = answering(response(bytes(1000)))

    def fail(piece: bytes) -> None:
        raise LookupError("taker")

    @coroutine
    def fail_later(piece: bytes) -> Any:
        yield sleep(1)
        raise LookupError("taker")

    takers = {fail: LookupError, fail_later: LookupError, cancelled: CancelledError}
    for taker, cause in takers.items():
        caplog.clear()
        with pytest.raises(HTTPClosedError, match="streaming_callback raised") as info:
            fetch(server.url(), streaming_callback=taker)
        assert type(info.value.__cause__) is cause
        assert (info.value.code, info.value.phase) == (599, "body")
        (record,) = caplog.records
        assert (record.name, record.message) == (
            "coro.application",
            "Uncaught exception in streaming_callback",
        )
        assert record.exc_info is not None
        assert record.exc_info[1] is info.value.__cause__
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 3}


def test_a_taker_that_fails_in_a_response(fetch: Any, answering: Any) -> None:
    server = answering(response(b"x"))
    got = fetch(server.url(), streaming_callback=lambda piece: 1 / 0, raise_error=False)
    assert isinstance(got.error, HTTPClosedError)
    assert isinstance(got.error.__cause__, ZeroDivisionError)


def test_a_reader_of_lines_that_fails(
    fetch: Any, answering: Any, client: AsyncHTTPClient, caplog: pytest.LogCaptureFixture
) -> None:
    server = answering(response(b"x"))
    with pytest.raises(HTTPClosedError, match="header_callback raised") as info:
        fetch(server.url(), header_callback=lambda line: 1 / 0)
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert [each.message for each in caplog.records] == ["Uncaught exception in header_callback"]
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}


@pytest.mark.parametrize("error", [StreamClosedError(), HTTPClosedError("another fetch's")])
def test_a_taker_whose_own_connection_broke(fetch: Any, answering: Any, error: Exception) -> None:
    """A gateway whose client has left: the server that is fetched from is not to blame."""
    server = answering(response(b"first"), response(b"second"))
    fetch(server.url())

    def fail(piece: bytes) -> None:
        raise error

    with pytest.raises(HTTPClosedError) as info:
        fetch(server.url(), streaming_callback=fail)
    assert info.value.__cause__ is error
    assert len(server.requests) == 2


def test_header_lines(fetch: Any, answering: Any) -> None:
    head = (
        b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nX-B:  two \r\nX-Odd: a\x85b\xa0c\xe9\r\n"
        b"Content-Length: 2\r\n\r\n"
    )
    server = answering(b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"hi")
    lines: list[str] = []
    events: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        events.append("line")

    fetch(
        server.url(),
        header_callback=on_line,
        streaming_callback=lambda piece: events.append("piece"),
    )
    assert "".join(lines).encode("latin-1") == head
    assert lines == [f"{line}\r\n" for line in head.decode("latin-1").split("\r\n")[:-1]]
    assert events == ["line"] * 6 + ["piece"]


class TestExpectation:
    """``expect_100_continue``: the body goes out when the server says so, or nothing."""

    def test_the_server_wants_the_body(self, fetch: Any, serve: Any) -> None:
        seen = []

        def script(peer: Any) -> Any:
            while True:
                head = yield peer.stream.read_until(b"\r\n\r\n")
                assert b"\r\nExpect: 100-continue\r\n" in head
                yield sleep(0.5)
                yield peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                seen.append((yield peer.stream.read_bytes(4)))
                yield peer.send(response(b"thanks"))

        server = serve(script)
        produced = {
            "body_producer": lambda write: write(b"body"),
            "headers": {"Content-Length": "4"},
        }
        for options in ({"body": b"body"}, produced):
            got = fetch(server.url(), method="PUT", expect_100_continue=True, **options)
            assert got.body == b"thanks"
            assert seen.pop() == b"body"
        assert server.connections == 1

    @pytest.mark.parametrize("code", [413, 200])
    def test_the_server_does_not_want_it(self, fetch: Any, serve: Any, code: int) -> None:
        def script(peer: Any) -> Any:
            yield peer.stream.read_until(b"\r\n\r\n")
            yield peer.send(response(b"no", status=f"{code} No"))
            # Nothing of the body comes, and the connection is given up.
            assert (yield peer.stream.read_until_close()) == b""
            rest.append(peer.number)

        rest: list[int] = []
        server = serve(script)
        got = fetch(
            server.url(), method="POST", body=b"body", expect_100_continue=True, raise_error=False
        )
        assert (got.code, got.body) == (code, b"no")
        assert server.connections == 1

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("kind", ["bytes", "producer", "iterator"])
    def test_the_server_will_not_be_asked(
        self, loop: IOLoop, client: AsyncHTTPClient, serve: Any, kind: str, stream: bool
    ) -> None:
        """417 (RFC 9110 section 10.1.1): the request is sent once more, and nothing is asked."""
        heads = []

        def script(peer: Any) -> Any:
            head = yield peer.stream.read_until(b"\r\n\r\n")
            heads.append(head)
            if b"Expect" in head:
                yield peer.send(response(b"no", status="417 No"))
                assert (yield peer.stream.read_until_close()) == b""
                return
            sent = yield peer.stream.read_until_regex(b"body(\r\n0\r\n\r\n)?")
            yield peer.send(response(b"thanks for " + sent[-4:]))

        server = serve(script)
        lines: list[str] = []
        length = {"Content-Length": "4"}
        kinds: dict[str, dict[str, Any]] = {
            "bytes": {"body": b"body"},
            "producer": {"body_producer": lambda write: write(b"body"), "headers": length},
            "iterator": {"body": iter([b"bo", b"dy"]), "headers": length},
        }

        @coroutine
        def main() -> Any:
            got = yield client.fetch(
                server.url(),
                method="POST",
                expect_100_continue=True,
                raise_error=False,
                stream=stream,
                header_callback=lines.append,
                **kinds[kind],
            )
            body = (yield got.read_all()) if stream else got.body
            return got.code, got.attempts, body

        assert loop.run_sync(main) == (200, 2, b"thanks for body")
        assert [b"Expect" in head for head in heads] == [True, False]
        assert lines[0] == "HTTP/1.1 200 OK\r\n"

    def test_the_server_changes_its_mind(self, fetch: Any, serve: Any) -> None:
        """It says 417 when it has waited for too long, and what was sent cannot be sent again."""

        def script(peer: Any) -> Any:
            yield from peer.request()
            yield peer.send(response(b"no", status="417 No"))
            yield from peer.silence()

        server = serve(script)
        got = fetch(
            server.url(),
            method="POST",
            body=iter([b"body"]),
            headers={"Content-Length": "4"},
            expect_100_continue=True,
            raise_error=False,
        )
        assert (got.code, got.body, got.attempts) == (417, b"no", 1)

    def test_the_server_says_nothing(self, fetch: Any, serve: Any, loop: IOLoop) -> None:
        def script(peer: Any) -> Any:
            request = yield from peer.request()
            yield peer.send(response(request.partition(b"\r\n\r\n")[2]))

        begun = loop.time()
        got = fetch(serve(script).url(), method="POST", body=b"body", expect_100_continue=True)
        assert got.body == b"body"
        assert loop.time() - begun == pytest.approx(1, abs=0.1)

    def test_without_a_body_nothing_is_expected(self, fetch: Any, answering: Any) -> None:
        server = answering(response())
        fetch(server.url(), expect_100_continue=True)
        assert b"Expect" not in server.requests[0]


class TestEarlyAnswers:
    """A server may answer before it has all, and may then want no more."""

    def bodies(self) -> list[dict[str, Any]]:
        @coroutine
        def produce(write: Any) -> Any:
            while True:
                yield write(bytes(10_000))

        return [{"body": bytes(50_000_000)}, {"body_producer": produce}]

    @pytest.mark.parametrize("ending", ["stays", "closes", "resets"])
    @pytest.mark.parametrize("kind", [0, 1], ids=["bytes", "producer"])
    def test_it_is_delivered(
        self, fetch: Any, serve: Any, ending: str, kind: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        def script(peer: Any) -> Any:
            yield peer.stream.read_until(b"\r\n\r\n")
            yield peer.stream.read_bytes(100_000)
            yield peer.send(response(b"too large", status="413 No"))
            if ending == "stays":
                # The client closes, and is not read to the end.
                yield sleep(10)
            elif ending == "resets":
                peer.reset()

        server = serve(script)
        got = fetch(server.url(), method="POST", raise_error=False, **self.bodies()[kind])
        assert (got.code, got.body) == (413, b"too large")
        # That not all could be sent is no error.
        assert not caplog.records
        assert (
            fetch(server.url(), method="POST", raise_error=False, body=bytes(200_000)).code == 413
        )
        assert server.connections == 2

    @of_the_system
    @pytest.mark.parametrize("rudely", [False, True])
    def test_a_hundred_times(self, raw_server: RawServerFactory, rudely: bool) -> None:
        """A server of another program: it says no at once, and closes on what is on its way."""

        def script(conn: socket.socket) -> None:
            read_until(conn, b"\r\n\r\n")
            conn.sendall(response(b"too large", status="413 No"))
            if rudely:
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        server = raw_server(script)
        body = bytes(10_000_000)
        codes = []

        @coroutine
        def main() -> Any:
            client = AsyncHTTPClient(force_instance=True)
            for _ in range(100):
                got = yield client.fetch(server.url(), method="POST", body=body, raise_error=False)
                codes.append((got.code, got.body or got.error))
            client.close()

        loop = new_loop()
        loop.run_sync(main)
        loop.close()
        assert codes == [(413, b"too large")] * 100
