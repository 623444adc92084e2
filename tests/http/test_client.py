"""``fetch`` as its caller sees it: what is sent, what comes back, how it fails.

Redirects, limits, the queue, cancellation, reuse and TLS have files of their own beside this one.
"""

from __future__ import annotations

import base64
import functools
import gzip
import logging
import zlib
from typing import Any

import pytest

import coro.http
from coro.errors import (
    HTTPClosedError,
    HTTPConnectError,
    HTTPError,
    HTTPInputError,
    HTTPProtocolError,
    IncompleteBodyError,
    RequestError,
    StreamClosedError,
    WrongLoopError,
)
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPClient, HTTPRequest, HTTPResponse
from coro.http.client import USER_AGENT
from coro.loop import IOLoop
from tests.conftest import RawServerFactory
from tests.http.serving import body_of, chunked, fields_of, response
from tests.support.raw_server import answer

# --- methods and bodies --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_methods_without_a_body(fetch: Any, answering: Any, method: str) -> None:
    server = answering(response(b"hello"))
    got = fetch(server.url("/path?query"), method=method)
    assert (got.code, got.reason, got.body) == (200, "OK", b"hello")
    (request,) = server.requests
    assert request.startswith(f"{method} /path?query HTTP/1.1\r\n".encode())
    fields = fields_of(request)
    assert fields == {
        "Host": f"127.0.0.1:{server.port}",
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "gzip, deflate",
    }
    assert body_of(request) == b""


def test_head_has_a_length_but_no_body(fetch: Any, answering: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server = answering(head)
    for _ in range(2):
        got = fetch(server.url(), method="HEAD")
        assert (got.headers["Content-Length"], got.body) == ("1000", b"")
    assert server.connections == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("body", [b"", b"\x00\xff" * 9, "Grüße", bytearray(b"array")])
def test_methods_with_a_body(fetch: Any, answering: Any, method: str, body: Any) -> None:
    server = answering(response())
    fetch(server.url(), method=method, body=body)
    (request,) = server.requests
    assert request.startswith(f"{method} / HTTP/1.1\r\n".encode())
    expected = body.encode() if isinstance(body, str) else bytes(body)
    assert body_of(request) == expected
    assert fields_of(request)["Content-Length"] == str(len(expected))
    assert "Transfer-Encoding" not in fields_of(request)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_body_is_required(fetch: Any, answering: Any, method: str) -> None:
    server = answering(response())
    with pytest.raises(ValueError, match=f"Body must not be None for method {method} "):
        fetch(server.url(), method=method)
    assert server.connections == 0
    fetch(server.url(), method=method, allow_nonstandard_methods=True)
    assert fields_of(server.requests[0])["Content-Length"] == "0"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_a_body_is_refused(fetch: Any, answering: Any, method: str) -> None:
    server = answering(response(b""))
    with pytest.raises(ValueError, match=f"Body must be None for method {method} "):
        fetch(server.url(), method=method, body=b"x")
    with pytest.raises(ValueError, match="Body must be None"):
        fetch(server.url(), method=method, body_producer=lambda write: None)
    assert server.connections == 0
    fetch(server.url(), method=method, body=b"x", allow_nonstandard_methods=True)
    assert body_of(server.requests[0]) == b"x"


def test_unknown_methods(fetch: Any, answering: Any) -> None:
    server = answering(response())
    for method in ("PURGE", "get", "TRACE"):
        with pytest.raises(KeyError, match=f"unknown method {method}"):
            fetch(server.url(), method=method)
    assert server.connections == 0
    fetch(server.url(), method="PURGE", allow_nonstandard_methods=True)
    fetch(server.url(), method="PROPFIND", body="<x/>", allow_nonstandard_methods=True)
    assert [request.split()[0] for request in server.requests] == [b"PURGE", b"PROPFIND"]
    assert "Content-Length" not in fields_of(server.requests[0])
    assert body_of(server.requests[1]) == b"<x/>"


def test_a_method_is_a_token(fetch: Any, answering: Any) -> None:
    server = answering(response())
    for method in ("GET /evil HTTP/1.1\r\nX: y\r\n\r\nGET", "", "G T"):
        with pytest.raises(ValueError, match="invalid HTTP method"):
            fetch(server.url(), method=method, allow_nonstandard_methods=True)
    assert server.connections == 0


def test_body_and_producer_exclude_each_other(fetch: Any, answering: Any) -> None:
    server = answering(response())
    with pytest.raises(ValueError, match="not both"):
        fetch(server.url(), method="POST", body=b"x", body_producer=lambda write: None)
    assert server.connections == 0


# --- producers -----------------------------------------------------------------------------


@coroutine
def produce_slowly(write: Any) -> Any:
    yield write(b"one ")
    yield sleep(0.5)
    yield write(b"")
    yield write(b"two ")
    write(b"three")


@coroutine
async def produce_natively(write: Any) -> Any:
    await write(b"one ")
    await sleep(0.5)
    write(b"two ")
    await write(b"three")


def produce_at_once(write: Any) -> None:
    write(b"one two ")
    write(b"three")


PRODUCERS = [produce_slowly, produce_natively, produce_at_once]


@pytest.mark.parametrize("producer", PRODUCERS)
def test_a_producer_writes_chunks(fetch: Any, answering: Any, producer: Any) -> None:
    server = answering(response())
    for _ in range(2):
        fetch(server.url(), method="PUT", body_producer=producer)
    assert server.connections == 1
    for request in server.requests:
        fields = fields_of(request)
        assert fields["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in fields
        assert body_of(request).endswith(b"\r\n5\r\nthree\r\n0\r\n\r\n")
        sizes, data = body_of(request).split(b"\r\n")[::2], body_of(request).split(b"\r\n")[1::2]
        assert b"".join(data) == b"one two three"
        assert [int(size, 16) for size in sizes if size] == [len(d) for d in data[:-1]] + [0]


@pytest.mark.parametrize("producer", PRODUCERS)
def test_a_producer_that_knows_the_length(fetch: Any, answering: Any, producer: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", body_producer=producer, headers={"Content-Length": "13"})
    fields = fields_of(server.requests[0])
    assert fields["Content-Length"] == "13"
    assert "Transfer-Encoding" not in fields
    assert body_of(server.requests[0]) == b"one two three"


@pytest.mark.parametrize("length", ["12", "14"])
def test_a_producer_is_held_to_its_length(
    fetch: Any, answering: Any, client: AsyncHTTPClient, length: str
) -> None:
    """One byte more would be read as the start of another request."""
    server = answering(response())
    with pytest.raises(ValueError, match=f"Content-Length.* {length}"):
        fetch(
            server.url(),
            method="POST",
            body_producer=produce_at_once,
            headers={"Content-Length": length},
        )
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}


@pytest.mark.parametrize("value", ["x", "-1", "1.0", "1, 1", "+1", "1_0"])
def test_a_length_is_a_number(fetch: Any, answering: Any, value: str) -> None:
    server = answering(response())
    with pytest.raises(ValueError, match="Content-Length"):
        fetch(
            server.url(),
            method="POST",
            body_producer=produce_at_once,
            headers={"Content-Length": value},
        )
    assert server.connections == 0


def test_a_producer_that_fails(fetch: Any, answering: Any, client: AsyncHTTPClient) -> None:
    server = answering(response())

    @coroutine
    def produce(write: Any) -> Any:
        yield write(b"half")
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        fetch(server.url(), method="POST", body_producer=produce)
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}


def test_a_producer_fed_from_a_connection_that_breaks(
    fetch: Any, answering: Any, serve: Any
) -> None:
    """The broken connection is another one, and its error is not taken for this one's."""
    server = answering(response())

    def produce(write: Any) -> None:
        raise StreamClosedError(ConnectionResetError("the source broke"))

    with pytest.raises(StreamClosedError, match="the source broke"):
        fetch(server.url(), method="POST", body_producer=produce)


# --- header fields -------------------------------------------------------------------------


def test_fields_of_the_caller(fetch: Any, answering: Any) -> None:
    server = answering(response())
    fetch(
        server.url(),
        headers={"x-one": "1", "Host": "elsewhere.example:81", "User-Agent": "mine"},
    )
    fetch(server.url(), headers=[("Accept-Encoding", "br")], user_agent="option")
    first, second = map(fields_of, server.requests)
    assert first == {
        "Host": "elsewhere.example:81",
        "User-Agent": "mine",
        "Accept-Encoding": "gzip, deflate",
        "X-One": "1",
    }
    assert second["Accept-Encoding"] == "br"
    assert second["User-Agent"] == "option"


def test_a_field_may_be_given_twice(fetch: Any, answering: Any) -> None:
    server = answering(response())
    headers = coro.http.HTTPHeaders()
    headers.add("X-Multi", "a")
    headers.add("X-Multi", "b")
    fetch(server.url(), headers=headers)
    assert server.requests[0].count(b"\r\nX-Multi: ") == 2
    assert headers.get_list("X-Multi") == ["a", "b"], "the caller's own are left alone"


def test_the_requests_own_headers_are_left_alone(fetch: Any, answering: Any) -> None:
    server = answering(response())
    request = HTTPRequest(
        server.url(), "POST", {"Host": "x", "Content-Length": "7"}, "hi", auth_username="u"
    )
    before = list(request.headers.get_all())
    fetch(request)
    fetch(request)
    assert list(request.headers.get_all()) == before
    assert server.requests[0] == server.requests[1]
    assert fields_of(server.requests[0])["Content-Length"] == "2"


def test_the_content_type_of_a_post(fetch: Any, answering: Any) -> None:
    server = answering(response())
    fetch(server.url(), method="POST", body="a=b")
    fetch(server.url(), method="POST", body="{}", headers={"content-type": "application/json"})
    fetch(server.url(), method="PUT", body="x")
    kinds = [fields_of(request).get("Content-Type") for request in server.requests]
    assert kinds == ["application/x-www-form-urlencoded", "application/json", None]


EVIL = ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\0", "\u010a", "\u560a", "\u2028"]


@pytest.mark.parametrize("evil", EVIL)
def test_no_line_end_is_ever_written(fetch: Any, answering: Any, evil: str) -> None:
    server = answering(response())
    url = server.url()
    attempts: list[dict[str, Any]] = [
        {"headers": {"X-A": evil}},
        {"headers": {f"X-{evil}": "a"}},
        {"headers": {"Host": evil}},
        {"headers": {"User-Agent": evil}},
        {"headers": {"Content-Length": f"1{evil}"}, "method": "PUT", "body": "x"},
        {"headers": {"Transfer-Encoding": evil}},
        {"user_agent": evil},
        {"method": f"GET{evil}", "allow_nonstandard_methods": True},
        {"auth_username": evil, "auth_password": evil},
    ]
    for options in attempts:
        try:
            fetch(url, **options)
        except ValueError:
            continue
        # Not refused, so what arrived must be one request of known fields.
        fields = fields_of(server.requests[-1])
        assert "X-Evil" not in fields
    fetch(f"{url}path{evil}?query{evil}")
    assert server.requests[-1].count(b" HTTP/1.1\r\n") == 1
    assert "X-Evil" not in fields_of(server.requests[-1])


def test_basic_credentials(fetch: Any, answering: Any) -> None:
    server = answering(response())
    fetch(server.url(), auth_username="Aladdin", auth_password="open sesame")
    fetch(server.url(), auth_username="only", auth_mode="basic")
    fetch(f"http://us%40er:p%3Aw%20%C3%BC@127.0.0.1:{server.port}/")
    sent = [fields_of(request)["Authorization"] for request in server.requests]
    assert sent[0] == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    decoded = [base64.b64decode(value.removeprefix("Basic ")).decode() for value in sent]
    assert decoded == ["Aladdin:open sesame", "only:", "us@er:p:w ü"]
    assert all(b"127.0.0.1" not in r.split(b"\r\n")[0] for r in server.requests)


def test_credentials_from_the_defaults(loop: IOLoop, answering: Any) -> None:
    server = answering(response())
    client = AsyncHTTPClient(
        force_instance=True, defaults={"auth_username": "u", "auth_password": "p"}
    )
    loop.run_sync(functools.partial(client.fetch, server.url()))
    assert fields_of(server.requests[0])["Authorization"] == "Basic dTpw"
    client.close()


def test_other_ways_of_authentication_are_refused(fetch: Any, answering: Any) -> None:
    server = answering(response())
    with pytest.raises(ValueError, match="unsupported auth_mode digest"):
        fetch(server.url(), auth_username="u", auth_password="p", auth_mode="digest")
    assert server.connections == 0


def test_if_modified_since(fetch: Any, answering: Any) -> None:
    server = answering(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 999999999\r\n\r\n")
    got = fetch(server.url(), if_modified_since=0, raise_error=False)
    assert fields_of(server.requests[0])["If-Modified-Since"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert (got.code, got.body) == (304, b"")


@pytest.mark.parametrize(
    "url",
    ["", "/relative", "example.com/x", "ftp://example.com/", "file:///etc/passwd", "http://[::1"],
)
def test_what_is_not_a_url(fetch: Any, client: AsyncHTTPClient, url: str) -> None:
    with pytest.raises(ValueError, match=r"not a URL|neither http nor https"):
        fetch(url)
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 0}


def test_a_request_object_takes_no_further_options(fetch: Any) -> None:
    with pytest.raises(ValueError, match="kwargs can't be used"):
        fetch(HTTPRequest("http://127.0.0.1/"), method="HEAD")
    with pytest.raises(TypeError, match="did you mean 'user_agent'"):
        fetch("http://127.0.0.1/", user_agnet="x")


def test_a_proxy_is_not_passed_by_in_silence(fetch: Any, answering: Any) -> None:
    server = answering(response())
    with pytest.raises(NotImplementedError, match="proxy_host"):
        fetch(server.url(), proxy_host="127.0.0.1", proxy_port=3128)
    assert server.connections == 0


# --- what comes back -----------------------------------------------------------------------


def test_the_response(fetch: Any, answering: Any) -> None:
    server = answering(
        response(b"body", "X-A: 1", "X-A: 2", "Set-Cookie: c", status="203 Very  Well")
    )
    request = HTTPRequest(server.url("/x#fragment"))
    got = fetch(request)
    assert (got.code, got.reason, got.body) == (203, "Very  Well", b"body")
    assert got.request is request
    assert got.effective_url == request.url
    assert got.headers.get_list("X-A") == ["1", "2"]
    assert got.buffer.read() == b"body"
    assert got.error is None
    got.rethrow()
    assert got.start_time == pytest.approx(request.start_time, abs=3600)
    assert b"#" not in server.requests[0]


BODIES = {
    "chunked": (chunked(b"he", b"l" * 2, b"o"), False),
    "trailers": (chunked(b"hello", end=b"0\r\nX-Sum: 7\r\n\r\n"), False),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nhello", True),
    "1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", True),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(), False),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_framings_however_they_are_cut(fetch: Any, serve: Any, kind: str, size: int) -> None:
    data, closes = BODIES[kind]

    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            for at in range(0, len(data), size):
                yield peer.send(data[at : at + size])
                yield sleep(0.001)
            if closes:
                return

    server = serve(script)
    for _ in range(2):
        got = fetch(server.url())
        assert (got.code, got.body) == (200, b"hello")
        assert got.trailers.get("X-Sum") == ("7" if kind == "trailers" else None)
        assert "Link" not in got.headers
    assert server.connections == (2 if closes else 1)


def test_a_large_body(fetch: Any, answering: Any) -> None:
    data = bytes(range(256)) * 40_000
    server = answering(response(data))
    assert fetch(server.url()).body == data


def test_a_status_that_is_an_error(fetch: Any, answering: Any) -> None:
    server = answering(response(b"nothing here", status="404 No Such Thing"))
    with pytest.raises(HTTPError, match=r"^HTTP 404: No Such Thing$") as info:
        fetch(server.url())
    assert not isinstance(info.value, RequestError)
    assert info.value.code == 404
    assert info.value.response.body == b"nothing here"
    got = fetch(server.url(), raise_error=False)
    assert (got.code, got.body) == (404, b"nothing here")
    assert isinstance(got.error, HTTPError)
    assert got.error.response is got
    with pytest.raises(HTTPError, match="404"):
        got.rethrow()
    assert server.connections == 1


# --- callback ------------------------------------------------------------------------------


def test_a_callback_gets_the_response(
    fetch: Any, loop: IOLoop, answering: Any, refused_port: int, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    server = answering(response(), response(status="500 Oops"), response(status="418 Tea"))
    seen: list[HTTPResponse] = []
    got = fetch(server.url(), seen.append)
    loop.run_sync(lambda: sleep(0))
    assert seen == [got]
    for raise_error in (True, False):
        try:
            fetch(server.url(), callback=seen.append, raise_error=raise_error)
        except HTTPError as error:
            assert raise_error
            assert error.response.code == 500
    loop.run_sync(lambda: sleep(0))
    assert [r.code for r in seen] == [200, 500, 418]
    request = HTTPRequest(f"http://127.0.0.1:{refused_port}/")
    with pytest.raises(HTTPConnectError) as info:
        fetch(request, callback=seen.append)
    loop.run_sync(lambda: sleep(0))
    assert seen[3].code == 599
    assert seen[3].request is request
    assert seen[3].error is info.value
    with pytest.raises(ValueError, match="not a URL"):
        fetch("nonsense", callback=seen.append)
    loop.run_sync(lambda: sleep(0))
    assert seen[4].code == 599
    assert isinstance(seen[4].error, ValueError)
    assert caplog.records == []


def test_with_a_callback_nobody_need_look_at_the_future(
    client: AsyncHTTPClient, loop: IOLoop, answering: Any, refused_port: int, caplog: Any
) -> None:
    server = answering(response(status="500 Oops"))
    seen: list[HTTPResponse] = []

    @coroutine
    def main() -> Any:
        client.fetch(server.url(), seen.append)
        client.fetch(f"http://127.0.0.1:{refused_port}/", seen.append)
        while len(seen) < 2:
            yield sleep(1)

    loop.run_sync(main)
    assert sorted(r.code for r in seen) == [500, 599]
    seen.clear()
    loop.run_sync(lambda: sleep(0))
    assert caplog.records == []


def test_a_callback_that_fails_is_logged(
    fetch: Any, loop: IOLoop, answering: Any, caplog: Any
) -> None:
    server = answering(response())

    def fail(_response: HTTPResponse) -> None:
        raise LookupError("callback")

    assert fetch(server.url(), callback=fail).code == 200
    loop.run_sync(lambda: sleep(0))
    (record,) = caplog.records
    assert record.name == "coro.application"
    assert "callback" in caplog.text


def test_a_callback_is_not_called_for_a_cancelled_fetch(
    client: AsyncHTTPClient, loop: IOLoop, serve: Any
) -> None:
    server = serve(lambda peer: peer.silence())
    seen: list[HTTPResponse] = []

    @coroutine
    def main() -> Any:
        task = client.fetch(server.url(), seen.append)
        yield sleep(1)
        task.cancel()
        yield sleep(1)
        return task.cancelled()

    assert loop.run_sync(main) is True
    assert seen == []


# --- compressed bodies ---------------------------------------------------------------------

TEXT = b"Generators all the way down. " * 500
RAW_DEFLATE = zlib.compressobj(wbits=-15)
CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "GZip": gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]),
    "deflate": zlib.compress(TEXT),
    "Deflate": RAW_DEFLATE.compress(TEXT) + RAW_DEFLATE.flush(),
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


@pytest.mark.parametrize("coding", ["br", "identity", "gzip, gzip"])
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


@pytest.mark.parametrize("data", [CODED["gzip"][:-1], CODED["gzip"][:20], b"not gzip", b"\x1f"])
@pytest.mark.parametrize("stream", [True, False])
def test_damaged_compression(
    fetch: Any, answering: Any, client: AsyncHTTPClient, data: bytes, stream: bool
) -> None:
    server = answering(response(data, "Content-Encoding: gzip"))
    options = {"streaming_callback": lambda piece: None} if stream else {}
    with pytest.raises(HTTPProtocolError, match="gzip") as info:
        fetch(server.url(), **options)
    assert info.value.code == 599
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}


# --- streaming -----------------------------------------------------------------------------


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


def test_a_taker_that_fails(
    fetch: Any, answering: Any, client: AsyncHTTPClient, serve: Any
) -> None:
    server = answering(response(bytes(1000)))

    def fail(piece: bytes) -> None:
        raise LookupError("taker")

    @coroutine
    def fail_later(piece: bytes) -> Any:
        yield sleep(1)
        raise LookupError("taker")

    for taker in (fail, fail_later):
        with pytest.raises(LookupError, match="taker"):
            fetch(server.url(), streaming_callback=taker)
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 2}


@pytest.mark.parametrize("error", [StreamClosedError(), HTTPClosedError("another fetch's")])
def test_a_taker_whose_own_connection_broke(fetch: Any, answering: Any, error: Exception) -> None:
    """A gateway whose client has left: the server that is fetched from is not to blame."""
    server = answering(response(b"first"), response(b"second"))
    fetch(server.url())

    def fail(piece: bytes) -> None:
        raise error

    with pytest.raises(type(error)) as info:
        fetch(server.url(), streaming_callback=fail)
    assert info.value is error
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


# --- failures without a response -----------------------------------------------------------


def test_refused(fetch: Any, client: AsyncHTTPClient, refused_port: int) -> None:
    url = f"http://127.0.0.1:{refused_port}/"
    with pytest.raises(HTTPConnectError, match="refused") as info:
        fetch(url)
    error = info.value
    assert (error.code, error.phase, error.attempts, error.bytes_sent) == (599, "connect", 0, 0)
    assert error.safe_to_retry
    assert error.__cause__ is not None
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

    def script(peer: Any) -> Any:
        yield from peer.request()
        data = gzip.compress(TEXT)
        yield peer.send(response(data, "Content-Encoding: gzip")[:-4])

    with pytest.raises(IncompleteBodyError) as info:
        fetch(serve(script).url())
    partial = info.value.partial
    assert 0 < len(partial) <= len(TEXT)
    assert partial == TEXT[: len(partial)]


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
    assert isinstance(info.value, IncompleteBodyError) is (data != b"")
    if data:
        assert info.value.partial == data.partition(b"\r\n\r\n")[2]


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


# --- times ---------------------------------------------------------------------------------

PHASES = ["queue", "dns", "connect", "tls", "sent", "first_byte", "total"]


def test_time_info(fetch: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            yield sleep(2)
            yield peer.send(response(b"hello")[:-1])
            yield sleep(3)
            yield peer.send(b"o")

    server = serve(script)
    fresh = fetch(server.url())
    kept = fetch(server.url())
    assert server.connections == 1
    for got in (fresh, kept):
        times = got.time_info
        assert list(times) == PHASES
        assert times["first_byte"] == pytest.approx(2, abs=0.01)
        assert times["total"] == pytest.approx(5, abs=0.01)
        assert times["total"] == pytest.approx(got.request_time)
        assert min(times.values()) >= 0
        assert sum(times[name] for name in PHASES[:-1]) <= times["total"]
    assert (kept.time_info["dns"], kept.time_info["connect"], kept.time_info["tls"]) == (0, 0, 0)


def test_times_of_a_failure(fetch: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield sleep(2)

    got = fetch(serve(script).url(), raise_error=False)
    assert got.code == 599
    assert got.request_time == pytest.approx(2, abs=0.01)
    assert got.time_info["total"] == pytest.approx(2, abs=0.01)
    assert got.time_info["first_byte"] == 0


# --- the clients ---------------------------------------------------------------------------


def test_one_client_per_loop(loop: IOLoop) -> None:
    shared = AsyncHTTPClient()
    assert AsyncHTTPClient() is shared
    assert shared.io_loop is loop
    own = AsyncHTTPClient(force_instance=True)
    assert own is not shared
    assert AsyncHTTPClient() is shared
    own.close()
    assert AsyncHTTPClient() is shared
    shared.close()
    renewed = AsyncHTTPClient()
    assert renewed is not shared
    other = IOLoop(make_current=True)
    assert AsyncHTTPClient() is not renewed
    other.close()
    loop.make_current()
    assert AsyncHTTPClient() is renewed


def test_closing_the_loop_closes_its_clients(answering: Any, loop: IOLoop) -> None:
    """The idle connections too: the descriptor check of every test would tell."""
    server = answering(response())
    own = AsyncHTTPClient(force_instance=True)
    shared = AsyncHTTPClient()
    for client in (own, shared):
        loop.run_sync(functools.partial(client.fetch, server.url()))
        assert client.statistics()["idle"] == 1
    server.close()
    loop.close()
    for client in (own, shared):
        assert client.statistics()["idle"] == 0
        assert "closed" in repr(client)


def test_a_closed_client(fetch: Any, client: AsyncHTTPClient, answering: Any) -> None:
    server = answering(response())
    fetch(server.url())
    assert client.statistics()["idle"] == 1
    client.close()
    client.close()
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 1}
    with pytest.raises(RuntimeError, match="fetch\\(\\) called on closed AsyncHTTPClient"):
        fetch(server.url())


def test_closing_lets_requests_under_way_end(loop: IOLoop, serve: Any) -> None:
    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            yield sleep(5)
            yield peer.send(response())

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True, max_clients=2)

    @coroutine
    def main() -> Any:
        fetches = [client.fetch(server.url()) for _ in range(5)]
        yield sleep(1)
        client.close()
        responses = yield fetches
        return [r.code for r in responses]

    assert loop.run_sync(main) == [200] * 5
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 5}


def test_settings_for_clients_to_come(loop: IOLoop, answering: Any) -> None:
    server = answering(response())
    try:
        AsyncHTTPClient.configure(None, max_clients=3, defaults={"user_agent": "configured"})
        first = AsyncHTTPClient()
        second = AsyncHTTPClient(force_instance=True, max_clients=4)
        assert (first.max_clients, second.max_clients) == (3, 4)
        loop.run_sync(functools.partial(first.fetch, server.url()))
        assert fields_of(server.requests[0])["User-Agent"] == "configured"
        with pytest.raises(ValueError, match="one HTTP client"):
            AsyncHTTPClient.configure("tornado.curl_httpclient.CurlAsyncHTTPClient")  # type: ignore[arg-type]
    finally:
        AsyncHTTPClient.configure(None)
        second.close()
    assert AsyncHTTPClient(force_instance=True).max_clients == 10


@pytest.mark.parametrize("settings", [{"max_clients": 0}, {"max_client": 1}])
def test_settings_that_make_no_sense(loop: IOLoop, settings: Any) -> None:
    for make in (functools.partial(AsyncHTTPClient, force_instance=True), HTTPClient):
        with pytest.raises((ValueError, TypeError), match="max_client"):
            make(**settings)


def test_defaults(loop: IOLoop, serve: Any, answering: Any) -> None:
    client = AsyncHTTPClient(force_instance=True, defaults={"request_timeout": 3})
    server = serve(lambda peer: peer.silence())
    for options in ({}, {"request_timeout": 2}):
        with pytest.raises(TimeoutError):
            loop.run_sync(functools.partial(client.fetch, server.url(), **options))
    before = loop.time()
    assert before >= 1005
    client.close()


def test_the_modules_fetch(loop: IOLoop, answering: Any) -> None:
    server = answering(response(b"hello"), response(status="500 No"))
    assert loop.run_sync(lambda: coro.http.fetch(server.url())).body == b"hello"
    got = loop.run_sync(lambda: coro.http.fetch(server.url(), raise_error=False, method="DELETE"))
    assert got.code == 500
    assert AsyncHTTPClient().statistics() == {"active": 0, "waiting": 0, "idle": 1, "opened": 1}


def test_a_client_serves_one_loop(
    client: AsyncHTTPClient, loop: IOLoop, answering: Any, raw_server: RawServerFactory
) -> None:
    """Made on one loop, used on another: said in one line, before anything hangs."""
    kept = answering(response())
    loop.run_sync(functools.partial(client.fetch, kept.url()))
    server = raw_server(answer(response()))
    other = IOLoop(make_current=False)
    with pytest.raises(WrongLoopError, match=r"IOLoop.*IOLoop"):
        other.run_sync(functools.partial(client.fetch, server.url()))
    other.close()
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 1, "opened": 1}


# --- the blocking client -------------------------------------------------------------------


def test_the_blocking_client(raw_server: RawServerFactory) -> None:
    server = raw_server(answer(response(b"one"), response(b"two", status="404 None")))
    with HTTPClient() as client:
        assert client.fetch(server.url()).body == b"one"
        with pytest.raises(HTTPError, match="404"):
            client.fetch(server.url())
    assert server.connections == 1
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.fetch(server.url())
    assert IOLoop.current(instance=False) is None


def test_the_blocking_client_inside_a_loop(loop: IOLoop) -> None:
    def misuse() -> None:
        HTTPClient()

    with pytest.raises(RuntimeError, match="running in this thread"):
        loop.run_sync(misuse)


def test_fetches_of_native_coroutines(loop: IOLoop, answering: Any) -> None:
    server = answering(response(b"hello"))

    async def main() -> list[bytes]:
        client = AsyncHTTPClient()
        first: Future[Any] = client.fetch(server.url())
        return [(await first).body, (await coro.http.fetch(server.url())).body]

    assert loop.run_sync(main) == [b"hello"] * 2
