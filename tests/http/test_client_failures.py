"""Fetches that end without a response, and what their errors tell."""

from __future__ import annotations

import errno
import gzip
from typing import Any

import pytest

from coro.errors import (
    HTTPClosedError,
    HTTPConnectError,
    HTTPInputError,
    HTTPProtocolError,
    IncompleteBodyError,
    StreamClosedError,
)
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient
from tests.http.serving import chunked, response


def test_refused(fetch: Any, client: AsyncHTTPClient, refused_port: int) -> None:
    url = f"http://127.0.0.1:{refused_port}/"
    with pytest.raises(HTTPConnectError, match="refused") as info:
        fetch(url)
    error = info.value
    assert (error.code, error.phase, error.attempts, error.bytes_sent) == (599, "connect", 0, 0)
    assert error.safe_to_retry
    assert error.__cause__ is not None
    assert isinstance(error, OSError)
    assert error.errno == errno.ECONNREFUSED
    got = fetch(url, raise_error=False)
    assert (got.code, got.body, got.effective_url) == (599, b"", url)
    assert isinstance(got.error, HTTPConnectError)
    assert got.reason == got.error.message
    with pytest.raises(HTTPConnectError):
        got.rethrow()
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 0}


def test_closed_before_any_response(fetch: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()

    server = serve(script)
    for method, body in (("GET", None), ("POST", b"x" * 10)):
        with pytest.raises(HTTPClosedError, match="closed before any response") as info:
            fetch(server.url(), method=method, body=body)
        error = info.value
        assert not isinstance(error, IncompleteBodyError)
        assert (error.code, error.phase, error.attempts) == (599, "wait", 1)
        assert error.bytes_sent > len(body or b"") + 16
        assert error.safe_to_retry is (method == "GET")
        assert isinstance(error.__cause__, StreamClosedError)
    assert server.connections == 2


def test_closed_inside_the_head(fetch: Any, answering: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Le")

    with pytest.raises(HTTPClosedError, match="closed inside the response's head"):
        fetch(serve(script).url())


HALVES = {
    "length": (response(b"0123456789")[:-6], "after 4 of 10 bytes", b"0123", 10),
    "length, nothing of it": (response(b"0123456789")[:-10], "after 0 of 10 bytes", b"", 10),
    "chunk": (chunked(b"0123", b"456789")[:-16], "after 4 bytes", b"0123", None),
    "last chunk": (chunked(b"0123", end=b""), "after 4 bytes", b"0123", None),
    "inside a chunk": (chunked(b"0123", b"456789")[:-9], "after 8 bytes", b"01234567", None),
}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("stream", [False, True])
def test_half_a_response(
    fetch: Any, serve: Any, client: AsyncHTTPClient, kind: str, stream: bool
) -> None:
    data, text, partial, expected = HALVES[kind]

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(data)

    pieces: list[bytes] = []
    options = {"streaming_callback": pieces.append} if stream else {}
    with pytest.raises(IncompleteBodyError, match=text) as info:
        fetch(serve(script).url(), **options)
    error = info.value
    assert (error.code, error.phase, error.attempts) == (599, "body", 1)
    assert error.expected == expected
    assert error.partial == (b"" if stream else partial)
    if stream:
        assert b"".join(pieces) == partial
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}


def test_a_compressed_half_is_partial_as_far_as_it_goes(fetch: Any, serve: Any) -> None:
    """What ``partial`` holds is in the coding that the caller would have got."""

    text = b"Generators all the way down. " * 500

    def script(peer: Any) -> Any:
        yield from peer.request()
        data = gzip.compress(text)
        yield peer.send(response(data, "Content-Encoding: gzip")[:-4])

    with pytest.raises(IncompleteBodyError) as info:
        fetch(serve(script).url())
    partial = info.value.partial
    assert 0 < len(partial) <= len(text)
    assert partial == text[: len(partial)]


@pytest.mark.parametrize("data", [b"", response(b"0123456789")[:-6], b"HTTP/1.1 200 OK\r\n\r\nabc"])
def test_reset(fetch: Any, serve: Any, data: bytes) -> None:
    """A body that ends with the connection must not end with a reset."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(data)
        yield sleep(1)
        peer.reset()

    server = serve(script)
    with pytest.raises(HTTPClosedError, match="reset by peer") as info:
        fetch(server.url())
    error = info.value
    assert isinstance(error, IncompleteBodyError) is (data != b"")
    if isinstance(error, IncompleteBodyError):
        assert error.partial == data.partition(b"\r\n\r\n")[2]


def test_a_slow_reader_and_an_early_end(fetch: Any, serve: Any) -> None:
    """A complete body is complete, also if the connection ended long before it was read."""
    body = bytes(3_000_000)

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + body)

    taken = []

    @coroutine
    def take(piece: bytes) -> Any:
        taken.append(len(piece))
        yield sleep(0.01)

    assert fetch(serve(script).url(), streaming_callback=take).code == 200
    assert sum(taken) == len(body)


NOT_HTTP = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"220 mail.example ESMTP\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.1 two hundred\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
]


@pytest.mark.parametrize("data", NOT_HTTP)
def test_not_http(fetch: Any, serve: Any, client: AsyncHTTPClient, data: bytes) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(data)
        yield from peer.silence()

    server = serve(script)
    with pytest.raises(HTTPProtocolError) as info:
        fetch(server.url())
    assert (info.value.code, info.value.attempts) == (599, 1)
    assert info.value.bytes_sent > 16
    assert isinstance(info.value.__cause__, HTTPInputError)
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}
    got = fetch(server.url(), raise_error=False)
    assert (got.code, type(got.error)) == (599, HTTPProtocolError)


def test_too_many_interim_responses(fetch: Any, answering: Any) -> None:
    server = answering(b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + response())
    with pytest.raises(HTTPProtocolError, match="interim"):
        fetch(server.url())
