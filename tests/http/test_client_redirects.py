"""Redirects: what is sent on, where to, and what the caller sees of it."""

from __future__ import annotations

import base64
import functools
import gc
from typing import Any

import pytest

from coro.errors import (
    HTTPError,
    HTTPProtocolError,
    IncompleteBodyError,
    TooManyRedirectsError,
)
from coro.gen import sleep
from coro.http import AsyncHTTPClient, HTTPRequest
from coro.http.connection import HTTPConnection
from coro.loop import IOLoop
from tests.http.serving import body_of, chunked, fields_of, redirect, response

CODES = (301, 302, 303, 307, 308)
KEPT = {
    # code: what becomes of GET, HEAD, POST, PUT, DELETE
    301: ("GET", "HEAD", "GET", "PUT", "DELETE"),
    302: ("GET", "HEAD", "GET", "PUT", "DELETE"),
    303: ("GET", "HEAD", "GET", "GET", "GET"),
    307: ("GET", "HEAD", "POST", "PUT", "DELETE"),
    308: ("GET", "HEAD", "POST", "PUT", "DELETE"),
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("method", "index"), [("GET", 0), ("HEAD", 1), ("POST", 2), ("PUT", 3), ("DELETE", 4)]
)
def test_methods_and_bodies(fetch: Any, answering: Any, code: int, method: str, index: int) -> None:
    first = redirect("/there?a=b", code)
    last = response(b"arrived")
    if method == "HEAD":
        first, last = (data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for data in (first, last))
    server = answering(first, last)
    body = b"payload" if method in ("POST", "PUT") else None
    headers = {"X-Mine": "1"} | ({"Content-Type": "text/x"} if body else {})
    request = HTTPRequest(server.url("/here"), method, headers, body)
    got = fetch(request)
    assert got.code == 200
    assert got.effective_url == server.url("/there?a=b")
    assert got.request is request
    assert (request.method, request.body, request.url) == (method, body, server.url("/here"))
    second = server.requests[1]
    expected = KEPT[code][index]
    assert second.startswith(f"{expected} /there?a=b HTTP/1.1\r\n".encode())
    fields = fields_of(second)
    assert fields["X-Mine"] == "1"
    if body and expected == method:
        assert body_of(second) == b"payload"
        assert (fields["Content-Type"], fields["Content-Length"]) == ("text/x", "7")
    else:
        assert body_of(second) == b""
        for name in ("Content-Type", "Content-Length", "Transfer-Encoding"):
            assert name not in fields
    assert server.connections == 1


def produce(write: Any) -> None:
    write(b"pay")
    write(b"load")


@pytest.mark.parametrize("code", CODES)
def test_a_producer_produces_again(fetch: Any, answering: Any, code: int) -> None:
    server = answering(redirect("/there", code), response(b"arrived"))
    assert fetch(server.url(), method="POST", body_producer=produce).body == b"arrived"
    expected = b"3\r\npay\r\n4\r\nload\r\n0\r\n\r\n" if code in (307, 308) else b""
    assert body_of(server.requests[1]) == expected


LOCATIONS = [
    ("/root", "/a/b?c", "/root"),
    ("next", "/a/b?c", "/a/next"),
    ("../up", "/a/b/c", "/a/up"),
    ("?query", "/a/b?c", "/a/b?query"),
    ("/ü ö", "/", "/%C3%BC%20%C3%B6"),
    ("", "/a?b", "/a?b"),
    ("//127.0.0.1:{port}/x", "/", "/x"),
    ("http://127.0.0.1:{port}/full", "/", "/full"),
    ("HTTP://127.0.0.1:{port}/full", "/", "/full"),
    ("/x#part", "/", "/x"),
]


@pytest.mark.parametrize(("location", "start", "path"), LOCATIONS)
def test_locations(fetch: Any, answering: Any, location: str, start: str, path: str) -> None:
    server = answering(None, response(b"arrived"))
    # As bytes of UTF-8, which is what servers send.
    field = location.format(port=server.port).encode().decode("latin-1")
    server.answers[0] = redirect(field)
    got = fetch(server.url(start))
    assert got.body == b"arrived"
    assert server.requests[1].split()[1].decode() == path
    assert got.effective_url.partition("#")[0] == server.url(path)


def test_a_fragment_is_handed_down(fetch: Any, answering: Any) -> None:
    server = answering(redirect("/one"), redirect("/two#own"), response())
    assert fetch(server.url("/#given")).effective_url == server.url("/two#own")
    server = answering(redirect("/one"), response())
    assert fetch(server.url("/#given")).effective_url == server.url("/one#given")


def test_the_limit(fetch: Any, answering: Any) -> None:
    server = answering(redirect("/again"))
    for limit in (0, 1, 3, 5, None):
        server.requests.clear()
        options = {} if limit is None else {"max_redirects": limit}
        with pytest.raises(HTTPError) as info:
            fetch(server.url(), **options)
        assert info.value.code == 302
        assert info.value.response.headers["Location"] == "/again"
        assert info.value.response.body == b"elsewhere"
        assert len(server.requests) == (5 if limit is None else limit) + 1
    chain = [redirect("/again")] * 3
    server = answering(*chain, response(b"arrived"))
    assert fetch(server.url(), max_redirects=3).body == b"arrived"


def test_where_too_many_redirects_led(fetch: Any, answering: Any) -> None:
    server = answering({f"/{n}": redirect(f"/{n + 1}") for n in range(9)})
    urls = [server.url(f"/{n}") for n in range(4)]
    with pytest.raises(TooManyRedirectsError, match=r"^HTTP 302: more than 3 redirects") as info:
        fetch(urls[0], max_redirects=3)
    assert info.value.urls == tuple(urls)
    assert str(info.value).endswith(f", the last one at {urls[-1]}")
    assert info.value.response.effective_url == urls[-1]
    got = fetch(urls[0], max_redirects=3, raise_error=False)
    assert isinstance(got.error, TooManyRedirectsError)
    assert got.error.urls == tuple(urls)


def test_a_circle_is_told(fetch: Any, answering: Any) -> None:
    ways = {"/start": "/a", "/a": "/b", "/b": "/a"}
    server = answering({path: redirect(place) for path, place in ways.items()})
    a, b = server.url("/a"), server.url("/b")
    with pytest.raises(TooManyRedirectsError, match=f"lead in a circle: {b} -> {a} -> {b}$"):
        fetch(server.url("/start"), max_redirects=4)
    secret = server.url("/start").replace("//", "//user:secret@")
    with pytest.raises(TooManyRedirectsError) as info:
        fetch(secret, max_redirects=1)
    assert "secret" not in str(info.value)


@pytest.mark.parametrize("code", [301, 404])
def test_what_is_no_redirect_too_many(fetch: Any, answering: Any, code: int) -> None:
    last = response(status=f"{code} Without a place")
    server = answering(redirect("/there"), last)
    with pytest.raises(HTTPError) as info:
        fetch(server.url(), max_redirects=1)
    assert type(info.value) is HTTPError
    assert len(server.requests) == 2


def test_not_followed(fetch: Any, answering: Any) -> None:
    server = answering(redirect("/there"))
    with pytest.raises(HTTPError, match="302"):
        fetch(server.url(), follow_redirects=False)
    got = fetch(server.url(), follow_redirects=False, raise_error=False)
    assert (got.code, got.headers["Location"], got.body) == (302, "/there", b"elsewhere")
    assert len(server.requests) == 2


@pytest.mark.parametrize("code", [300, 304, 305, 399])
def test_no_redirects(fetch: Any, answering: Any, code: int) -> None:
    data = redirect("/there", code)
    if code == 304:
        data = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    server = answering(data)
    assert fetch(server.url(), raise_error=False).code == code
    assert len(server.requests) == 1


def test_a_redirect_to_nowhere(fetch: Any, answering: Any) -> None:
    server = answering(response(b"where?", status="302 Found"))
    got = fetch(server.url(), raise_error=False)
    assert (got.code, got.body) == (302, b"where?")


@pytest.mark.parametrize("location", ["http://", "ftp://host/", "javascript:alert(1)", "http://[x"])
def test_a_redirect_to_nonsense(
    fetch: Any, answering: Any, client: AsyncHTTPClient, location: str
) -> None:
    server = answering(redirect(location))
    with pytest.raises(HTTPProtocolError, match="cannot follow the redirect") as info:
        fetch(server.url())
    assert isinstance(info.value.__cause__, ValueError)
    assert info.value.attempts == 1
    assert fetch(server.url(), raise_error=False).code == 599
    assert client.statistics()["active"] == 0


def test_callbacks_see_the_last_response_only(fetch: Any, answering: Any) -> None:
    server = answering(redirect("/x"), chunked(b"a", b"b", fields=("X-Last: 1",)))
    lines: list[str] = []
    pieces: list[bytes] = []
    fetch(server.url(), header_callback=lines.append, streaming_callback=pieces.append)
    assert "".join(lines).startswith("HTTP/1.1 200 OK\r\nX-Last: 1\r\n")
    assert b"".join(pieces) == b"ab"
    # Unless the redirect is the last.
    server = answering(redirect("/x"))
    lines.clear()
    pieces.clear()
    fetch(
        server.url(),
        header_callback=lines.append,
        streaming_callback=pieces.append,
        max_redirects=1,
        raise_error=False,
    )
    assert lines[0] == "HTTP/1.1 302 Elsewhere\r\n"
    assert sum(line.startswith("HTTP/") for line in lines) == 1
    assert b"".join(pieces) == b"elsewhere"


@pytest.mark.parametrize("framing", ["Content-Length: 60000", "Transfer-Encoding: chunked"])
def test_the_body_of_a_redirect_is_dropped(fetch: Any, serve: Any, framing: str) -> None:
    """It occupies nothing, and the connection is gone on with."""
    held = []
    others = _connections()

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(f"HTTP/1.1 302 Found\r\nLocation: /x\r\n{framing}\r\n\r\n".encode())
        for _ in range(6):
            data = bytes(10_000)
            yield peer.send(data if "60000" in framing else b"2710\r\n" + data + b"\r\n")
            yield sleep(0.01)
            held.append(_held(others))
        if "60000" not in framing:
            yield peer.send(b"0\r\n\r\n")
        yield from peer.request()
        yield peer.send(response(b"arrived"))

    server = serve(script)
    assert fetch(server.url()).body == b"arrived"
    assert server.connections == 1
    assert held == [0] * 6


@pytest.mark.parametrize("fields", ["", "Content-Length: 5000000", "Transfer-Encoding: chunked"])
def test_a_redirect_with_much_body_costs_its_connection(
    fetch: Any, serve: Any, fields: str
) -> None:
    """That is cheaper than to receive it."""
    sent = []

    def script(peer: Any) -> Any:
        yield from peer.request()
        if peer.number == 1:
            head = ["HTTP/1.1 302 Found", "Location: /x", *([fields] if fields else []), "", ""]
            yield peer.send("\r\n".join(head).encode())
            while True:
                yield peer.send(b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")
                sent.append(1)
        yield peer.send(response(b"arrived"))

    server = serve(script)
    assert fetch(server.url()).body == b"arrived"
    assert server.connections == 2
    assert len(sent) < 200


def _connections() -> list[HTTPConnection]:
    return [each for each in gc.get_objects() if isinstance(each, HTTPConnection)]


def _held(others: list[HTTPConnection]) -> int:
    """Count the bytes of bodies that connections have collected, but for others' ones."""
    ours = [each for each in _connections() if each not in others]
    assert ours
    return sum(len(each.decoder.body) for each in ours)


def test_a_redirect_cut_short(fetch: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(redirect("/x")[:-3])

    with pytest.raises(IncompleteBodyError):
        fetch(serve(script).url())


def test_a_redirect_that_closes(fetch: Any, answering: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        first = peer.number == 1
        field = "Connection: close\r\nLocation: /x" if first else "Connection: close"
        yield peer.send(response(b"x", field, status="302 Found" if first else "200 OK"))

    server = serve(script)
    assert fetch(server.url()).code == 200
    assert server.connections == 2


# --- other origins ---------------------------------------------------------------------------

SECRETS = {
    "Authorization": "Bearer secret",
    "Cookie": "session=secret",
    "Proxy-Authorization": "Basic secret",
    "X-Mine": "1",
}


def test_credentials_stay_with_their_origin(fetch: Any, answering: Any) -> None:
    """Another port is another origin."""
    other = answering(response(b"arrived"))
    server = answering(redirect(other.url("/x"), 307))
    request = HTTPRequest(server.url(), "POST", SECRETS, b"payload")
    assert fetch(request).body == b"arrived"
    (seen,) = other.requests
    fields = fields_of(seen)
    assert fields["X-Mine"] == "1"
    assert fields["Host"] == f"127.0.0.1:{other.port}"
    assert b"secret" not in seen
    assert b"secret" in server.requests[0]
    assert request.headers["Authorization"] == "Bearer secret"
    assert body_of(seen) == b"payload"


def test_credentials_go_along_within_their_origin(fetch: Any, answering: Any) -> None:
    server = answering(redirect("/x"), response(b"arrived"))
    fetch(server.url(), headers=SECRETS)
    assert fields_of(server.requests[1]).items() >= SECRETS.items()


def test_credentials_do_not_come_back(fetch: Any, answering: Any) -> None:
    """The way leads out and back in: what was once left behind is not sent again."""
    server = answering({})
    other = answering(redirect(server.url("/back")))
    server.answers[:] = [
        {"/": redirect(other.url("/")), "/back": response(b"arrived")},
    ]
    fetch(server.url(), headers=SECRETS, auth_username="user", auth_password="secret")
    assert len(server.requests) == 2
    assert b"secret" not in server.requests[1]
    assert "Authorization" not in fields_of(server.requests[1])
    assert "Authorization" not in fields_of(other.requests[0])


@pytest.mark.parametrize("credentials", ["me:secret@", "me@", ":secret@"])
def test_credentials_that_a_redirect_names(fetch: Any, answering: Any, credentials: str) -> None:
    """Within the origin they are taken; who sends to another one has none to give away."""
    other = answering(response(b"arrived"))
    server = answering({})
    server.answers[:] = [
        {
            "/": redirect(server.url("/in").replace("//", f"//{credentials}")),
            "/in": redirect(other.url("/out@x").replace("//", f"//{credentials}")),
        }
    ]
    got = fetch(server.url())
    assert got.effective_url == other.url("/out@x")
    assert ("Authorization" in fields_of(server.requests[1])) == credentials.startswith("me")
    assert "Authorization" not in fields_of(other.requests[0])


@pytest.mark.parametrize("given", ["options", "defaults", "url"])
def test_basic_credentials_and_redirects(loop: IOLoop, answering: Any, given: str) -> None:
    expected = "Basic " + base64.b64encode(b"user:secret").decode()
    auth = {"auth_username": "user", "auth_password": "secret"}
    other = answering(response(b"arrived"))
    server = answering(redirect("/same"), redirect(other.url()), response())
    client = AsyncHTTPClient(force_instance=True, defaults=auth if given == "defaults" else None)
    url = server.url().replace("//", "//user:secret@") if given == "url" else server.url()
    options: dict[str, Any] = auth if given == "options" else {}
    loop.run_sync(functools.partial(client.fetch, url, **options))
    for request in server.requests:
        assert fields_of(request)["Authorization"] == expected
    assert "Authorization" not in fields_of(other.requests[0])
    # The next request of the same client has its credentials again.
    if given == "defaults":
        loop.run_sync(functools.partial(client.fetch, server.url()))
        assert fields_of(server.requests[-1])["Authorization"] == expected
    client.close()


def test_a_host_of_the_callers_is_for_the_first_request(fetch: Any, answering: Any) -> None:
    server = answering(redirect("/x"), response())
    fetch(server.url(), headers={"Host": "elsewhere.example"})
    hosts = [fields_of(request)["Host"] for request in server.requests]
    assert hosts == ["elsewhere.example", f"127.0.0.1:{server.port}"]


# --- times and limits ------------------------------------------------------------------------


def test_times(loop: IOLoop, serve: Any, client: AsyncHTTPClient) -> None:
    """The phases are the last request's, and none is negative; the total is all of it."""

    def script(peer: Any) -> Any:
        for answer in (redirect("/x"), response()):
            yield from peer.request()
            yield sleep(2)
            yield peer.send(answer)

    server = serve(script)
    got = loop.run_sync(functools.partial(client.fetch, server.url()))
    times = got.time_info
    assert times["first_byte"] == pytest.approx(2, abs=0.01)
    assert times["total"] == pytest.approx(4, abs=0.01)
    assert min(times.values()) >= 0
    assert sum(times.values()) - times["total"] <= times["total"]


def test_one_limit_for_the_whole(fetch: Any, serve: Any, loop: IOLoop) -> None:
    def script(peer: Any) -> Any:
        while True:
            yield from peer.request()
            yield sleep(4)
            yield peer.send(redirect("/x"))

    server = serve(script)
    begun = loop.time()
    with pytest.raises(TimeoutError, match="Timeout during request"):
        fetch(server.url(), request_timeout=10)
    assert loop.time() - begun == pytest.approx(10)


def test_connecting_has_its_time_for_each_connection(
    fetch: Any, answering: Any, serve: Any, client: AsyncHTTPClient
) -> None:
    """A slow first answer leaves the second connection all of its time."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield sleep(30)
        yield peer.send(redirect(other.url()))

    other = answering(response(b"arrived"))
    server = serve(script)
    got = fetch(server.url(), connect_timeout=5, request_timeout=None)
    assert got.body == b"arrived"


def test_a_slot_is_taken_for_each_request(loop: IOLoop, serve: Any, answering: Any) -> None:
    """Between two requests of a chain those that wait have their turn."""
    server = answering({"/": redirect("/x"), "/x": response(), "/other": response()})
    client = AsyncHTTPClient(force_instance=True, max_clients=1)

    def both() -> Any:
        return [client.fetch(server.url("/")), client.fetch(server.url("/other"))]

    loop.run_sync(both)
    assert [request.split()[1] for request in server.requests] == [b"/", b"/other", b"/x"]
    client.close()


def test_a_wait_between_two_requests_is_a_wait_in_the_queue(loop: IOLoop, serve: Any) -> None:
    def script(peer: Any) -> Any:
        while True:
            request = yield from peer.request()
            if request.startswith(b"GET /slow"):
                yield from peer.silence()
            yield peer.send(redirect("/x"))

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True, max_clients=1)

    def both() -> Any:
        return [
            client.fetch(server.url("/"), request_timeout=5, raise_error=False),
            client.fetch(server.url("/slow"), request_timeout=30, raise_error=False),
        ]

    first, second = loop.run_sync(both)
    assert str(first.error) == "Timeout in request queue"
    assert str(second.error) == "Timeout during request"
    client.close()
