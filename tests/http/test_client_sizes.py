"""Limits of size: of bodies, as received and as decompressed, and of heads."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import brotli
import pytest

from coro.errors import (
    BodyTooLargeError,
    HTTPProtocolError,
)
from coro.http import AsyncHTTPClient, HTTPResponse
from coro.loop import IOLoop
from tests.http.serving import chunked, response
from tests.support.zstandard import zstd


def make(loop: IOLoop, **settings: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(force_instance=True, **settings)


def elapsed(loop: IOLoop, func: Any) -> tuple[HTTPResponse, float]:
    begun = loop.time()
    got = loop.run_sync(func)
    return got, loop.time() - begun


IDLE = {"active": 0, "waiting": 0, "idle": 0}


LIMIT = 1000
FRAMED = {
    "length": response,
    "chunks": lambda body: chunked(body[:300], body[300:]),
    "close": lambda body: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
    "gzip": lambda body: response(gzip.compress(body), "Content-Encoding: gzip"),
    "deflate": lambda body: response(zlib.compress(body), "Content-Encoding: deflate"),
    "br": lambda body: response(brotli.compress(body), "Content-Encoding: br"),
    "zstd": lambda body: response(zstd.compress(body), "Content-Encoding: zstd"),
    "gzip in br": lambda body: response(
        brotli.compress(gzip.compress(body)), "Content-Encoding: gzip, br"
    ),
    "gzip in chunks": lambda body: chunked(gzip.compress(body), fields=("Content-Encoding: gzip",)),
}


@pytest.mark.parametrize("framing", FRAMED)
@pytest.mark.parametrize("stream", [False, True])
def test_the_size_of_a_body(loop: IOLoop, serve: Any, framing: str, stream: bool) -> None:
    """Measured after decompression; on both sides of the limit."""

    def script(peer: Any) -> Any:
        request = yield from peer.request()
        size = int(request.split()[1][1:])
        yield peer.send(FRAMED[framing](bytes(size)))
        if framing != "close":
            yield from peer.silence()

    server = serve(script)
    client = make(loop, max_body_size=LIMIT)
    pieces: list[bytes] = []
    options: dict[str, Any] = {"streaming_callback": pieces.append} if stream else {}
    got = loop.run_sync(lambda: client.fetch(server.url(f"/{LIMIT}"), **options))
    assert (b"".join(pieces) if stream else got.body) == bytes(LIMIT)
    client.close()
    client = make(loop, max_body_size=LIMIT)
    pieces.clear()
    with pytest.raises(BodyTooLargeError, match=f"larger than {LIMIT} bytes") as info:
        loop.run_sync(lambda: client.fetch(server.url(f"/{LIMIT + 1}"), **options))
    error = info.value
    assert (error.code, error.phase, error.attempts) == (599, "body", 1)
    assert error.bytes_sent > 16
    assert len(b"".join(pieces)) <= LIMIT
    assert client.statistics() == {**IDLE, "opened": 1}
    client.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_announced_size_is_refused_at_once(loop: IOLoop, serve: Any, method: str) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        yield from peer.silence()

    server = serve(script)
    client = make(loop, max_body_size=LIMIT)
    got, seconds = elapsed(
        loop, lambda: client.fetch(server.url(), method=method, raise_error=False)
    )
    assert seconds < 1
    if method == "HEAD":
        assert got.code == 200
    else:
        assert type(got.error) is BodyTooLargeError
        assert "1000000000" in str(got.error)
    client.close()


def gzip_bomb() -> bytes:
    zeros = zlib.compressobj(wbits=31)
    million = bytes(1_000_000)
    return b"".join(zeros.compress(million) for _ in range(100)) + zeros.flush()


BOMBS = {
    "gzip": gzip_bomb(),
    "br": brotli.compress(bytes(100_000_000), quality=1),
    "zstd": zstd.compress(bytes(100_000_000), 1),
    "gzip, gzip": gzip.compress(gzip_bomb()),
}


@pytest.mark.parametrize("coding", BOMBS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bomb(loop: IOLoop, answering: Any, coding: str, stream: bool) -> None:
    """Kilobytes that would become a hundred megabytes: they are measured as they unfold."""
    bomb = BOMBS[coding]
    assert len(bomb) < 110_000
    server = answering(response(bomb, f"Content-Encoding: {coding}"))
    client = make(loop, max_body_size=2_000_000)
    pieces: list[int] = []
    options: dict[str, Any] = (
        {"streaming_callback": lambda piece: pieces.append(len(piece))} if stream else {}
    )
    with pytest.raises(BodyTooLargeError):
        loop.run_sync(lambda: client.fetch(server.url(), **options))
    if stream:
        assert max(pieces) <= 65536
        assert sum(pieces) <= 2_000_000
    client.close()


def test_streams_have_no_limit_of_size_by_default(loop: IOLoop, answering: Any) -> None:
    server = answering(response(bytes(5000)))
    client = make(loop, max_buffer_size=LIMIT)
    taken: list[bytes] = []
    loop.run_sync(lambda: client.fetch(server.url(), streaming_callback=taken.append))
    assert len(b"".join(taken)) == 5000
    with pytest.raises(BodyTooLargeError):
        loop.run_sync(lambda: client.fetch(server.url()))
    client.close()


def test_the_size_of_a_head(loop: IOLoop, answering: Any) -> None:
    def head(size: int) -> bytes:
        frame = response(b"", "X: ")
        return response(b"", f"X: {'x' * (size - len(frame))}")

    assert len(head(LIMIT)) == LIMIT
    fits = answering(head(LIMIT))
    exceeds = answering(head(LIMIT + 1))
    client = make(loop, max_header_size=LIMIT)
    assert loop.run_sync(lambda: client.fetch(fits.url())).code == 200
    size = LIMIT + 1 - len(response(b"", "X: ")) + len("X: ")
    told = rf"of {LIMIT + 1} bytes.* limit is {LIMIT} bytes; its longest field is 'X' \({size}\)"
    with pytest.raises(HTTPProtocolError, match=told):
        loop.run_sync(lambda: client.fetch(exceeds.url()))
    client.close()


def test_the_number_of_fields(loop: IOLoop, answering: Any) -> None:
    fields = ["X: y"] * 9  # and the length
    fits, exceeds = answering(response(b"", *fields)), answering(response(b"", *fields, "X: z"))
    client = make(loop, max_headers=10)
    assert loop.run_sync(lambda: client.fetch(fits.url())).code == 200
    with pytest.raises(HTTPProtocolError, match="head of 11 fields: the limit is 10"):
        loop.run_sync(lambda: client.fetch(exceeds.url()))
    client.close()


def test_a_head_without_end(loop: IOLoop, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            yield peer.send(b"X-Again: " + b"x" * 91 + b"\r\n")
            yield None

    server = serve(script)
    client = make(loop)
    with pytest.raises(HTTPProtocolError, match="the limit is"):
        loop.run_sync(lambda: client.fetch(server.url(), request_timeout=None))
    client.close()
