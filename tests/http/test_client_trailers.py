"""Fields after the body, sent and received (RFC 9110 section 6.5)."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPServer, HTTPServerRequest, Response
from coro.http.headers import InvalidHeaderError
from coro.loop import IOLoop
from tests.http.serving import body_of, chunked, fields_of, redirect, response

# --- sending ---------------------------------------------------------------------------------


BODIES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"hello",
    "file": lambda: io.BytesIO(b"hello"),
    "pieces": lambda: [b"hello"],
}


@pytest.mark.parametrize("kind", BODIES)
def test_after_any_body(fetch: Any, answering: Any, kind: str) -> None:
    server = answering(response())
    for _ in range(2):
        trailers = {"X-Sum": "7", "Server-Timing": "a"}
        fetch(server.url(), method="PUT", body=BODIES[kind](), trailers=trailers)
    for request in server.requests:
        fields = fields_of(request)
        assert fields["Trailer"] == "X-Sum, Server-Timing"
        assert fields["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in fields
        assert body_of(request) == b"5\r\nhello\r\n0\r\nX-Sum: 7\r\nServer-Timing: a\r\n\r\n"
    assert server.connections == 1


@pytest.mark.parametrize("given", [{"body": b""}, {"data": {}}, {"json": 1}, {"files": {}}])
def test_after_forms_and_the_like(fetch: Any, answering: Any, given: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", trailers={"A": "b"}, **given)
    assert body_of(server.requests[0]).endswith(b"0\r\nA: b\r\n\r\n")


def test_a_function_is_asked_when_the_body_was_sent(fetch: Any, answering: Any) -> None:
    digest = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for piece in (b"he", b"llo"):
            digest.update(piece)
            yield piece

    server = answering(response())
    fetch(server.url(), method="POST", body=pieces(), trailers={"X-Digest": digest.hexdigest})
    expected = hashlib.sha256(b"hello").hexdigest()
    assert body_of(server.requests[0]).endswith(f"0\r\nX-Digest: {expected}\r\n\r\n".encode())


def test_none(fetch: Any, answering: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", body=[b"x"], trailers={})
    assert "Trailer" not in fields_of(server.requests[0])
    assert body_of(server.requests[0]) == b"1\r\nx\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "name", ["Content-Length", "host", "Trailer", "content-type", "Authorization", "Set-Cookie"]
)
def test_forbidden_ones(fetch: Any, answering: Any, client: AsyncHTTPClient, name: str) -> None:
    server = answering(response())
    with pytest.raises(ValueError, match="not allowed in trailers"):
        fetch(server.url(), method="POST", body=b"x", trailers={name: "1"})
    assert server.connections == 0


@pytest.mark.parametrize("bad", [{"X": "a\r\nb: c"}, {"X\r\n": "a"}, {"": "a"}, {"X": "ű"}])
def test_what_may_not_be_written(fetch: Any, answering: Any, bad: dict[str, str]) -> None:
    server = answering(response())
    with pytest.raises(InvalidHeaderError):
        fetch(server.url(), method="POST", body=b"x", trailers=bad)
    assert server.connections == 0


def test_a_function_that_gives_what_may_not_be_written(
    fetch: Any, answering: Any, client: AsyncHTTPClient
) -> None:
    server = answering(response())
    with pytest.raises(ValueError, match="control characters"):
        fetch(server.url(), method="POST", body=b"x", trailers={"X": lambda: "a\r\nb: c"})
    assert client.statistics()["idle"] == 0
    assert fetch(server.url()).code == 200


@pytest.mark.parametrize(
    "given",
    [
        {"method": "GET"},
        {"method": "POST", "body": b"x", "headers": {"Content-Length": "1"}},
        {"method": "POST", "body": [b"x"], "headers": {"Content-Length": "1"}},
    ],
)
def test_only_after_chunks(fetch: Any, answering: Any, given: Any) -> None:
    with pytest.raises(ValueError, match="body that is sent in chunks"):
        fetch(answering(response()).url(), trailers={"X": "1"}, **given)


@pytest.mark.parametrize("code", [303, 307])
def test_redirects(fetch: Any, answering: Any, code: int) -> None:
    server = answering(redirect("/again", code), response())
    fetch(server.url(), method="POST", body=b"x", trailers={"X": "1"})
    again = fields_of(server.requests[1])
    assert again.get("Trailer") == ("X" if code == 307 else None)
    assert body_of(server.requests[1]) == (b"1\r\nx\r\n0\r\nX: 1\r\n\r\n" if code == 307 else b"")


def test_a_server_takes_them(loop: IOLoop, client: AsyncHTTPClient) -> None:
    def handler(request: HTTPServerRequest) -> Response:
        return Response(request.body + request.trailers["X-Sum"].encode())

    server = HTTPServer(handler)
    server.listen(0, "127.0.0.1")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    options: Any = {"method": "POST", "body": b"hello", "trailers": {"X-Sum": "7"}}
    got = loop.run_sync(functools.partial(client.fetch, url, **options))
    assert got.body == b"hello7"
    client.close()
    loop.run_sync(lambda: server.shutdown(1))


# --- receiving -------------------------------------------------------------------------------

WITH_TRAILERS = chunked(b"hello", end=b"0\r\nX-Sum: 7\r\nx-sum: 8\r\n\r\n")


def test_received(fetch: Any, answering: Any) -> None:
    server = answering(WITH_TRAILERS, response())
    got = fetch(server.url())
    assert got.trailers.get_list("X-Sum") == ["7", "8"]
    assert "X-Sum" not in got.headers
    assert len(fetch(server.url()).trailers) == 0
    assert server.connections == 1


def test_received_after_a_body_that_is_pulled(
    loop: IOLoop, answering: Any, client: AsyncHTTPClient
) -> None:
    server = answering(WITH_TRAILERS)

    @coroutine
    def main() -> Any:
        got = yield client.fetch(server.url(), stream=True)
        assert len(got.trailers) == 0
        assert (yield got.read_all()) == b"hello"
        return got.trailers

    assert loop.run_sync(main).get_list("X-Sum") == ["7", "8"]


def test_received_after_a_body_that_is_handed_over(fetch: Any, answering: Any) -> None:
    server = answering(WITH_TRAILERS)
    assert fetch(server.url(), streaming_callback=lambda piece: None).trailers["X-Sum"] == "7,8"
