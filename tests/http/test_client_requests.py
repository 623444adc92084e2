"""What a request may be, and what is sent for it."""

from __future__ import annotations

import base64
import functools
import socket
from typing import Any

import pytest

import coro.http
from coro.errors import (
    StreamClosedError,
)
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPRequest
from coro.http.client import USER_AGENT
from coro.loop import IOLoop
from coro.resolver import Resolver
from tests.http.serving import body_of, fields_of, redirect, response

# --- methods and bodies ----------------------------------------------------------------------


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
        "Accept-Encoding": "gzip, deflate, br, zstd",
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


# --- producers -------------------------------------------------------------------------------


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


# --- header fields ---------------------------------------------------------------------------


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
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "X-One": "1",
    }
    assert second["Accept-Encoding"] == "br"
    assert second["User-Agent"] == "option"


def test_a_zone_is_for_this_machine_alone(fetch: Any, answering: Any) -> None:
    asked = []

    class Recording(Resolver):
        @coroutine
        def resolve(self, host: str, port: int, family: int = 0) -> Any:
            asked.append(host)
            return [] if family == socket.AF_INET6 else [(socket.AF_INET, ("127.0.0.1", port))]

    server = answering(redirect("/x"), response())
    got = fetch(f"http://[fe80::1%25eth0]:{server.port}/", resolver=Recording())
    assert got.effective_url == f"http://[fe80::1%25eth0]:{server.port}/x"
    assert {*asked} == {"fe80::1%eth0"}
    for request in server.requests:
        assert fields_of(request)["Host"] == f"[fe80::1]:{server.port}"
    assert server.connections == 1


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
    with pytest.raises(ValueError, match="unsupported auth_mode ntlm"):
        fetch(server.url(), auth_username="u", auth_password="p", auth_mode="ntlm")
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


@pytest.mark.parametrize("url", [None, b"http://127.0.0.1/", 80])
def test_what_is_not_even_text(fetch: Any, url: Any) -> None:
    with pytest.raises(TypeError, match="a URL is text, not "):
        fetch(url)


def test_a_request_object_takes_no_further_options(fetch: Any) -> None:
    with pytest.raises(ValueError, match="kwargs can't be used"):
        fetch(HTTPRequest("http://127.0.0.1/"), method="HEAD")
    with pytest.raises(TypeError, match="did you mean 'user_agent'"):
        fetch("http://127.0.0.1/", user_agnet="x")
