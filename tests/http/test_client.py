"""``fetch`` as its caller sees it: what is sent, what comes back, how it fails.

Requests, bodies, failures, redirects, limits and cancellation have files of their own beside this
one; connections that are kept, and TLS, are in
``test_connection`` and ``test_connection_tls``.
"""

from __future__ import annotations

import functools
import logging
import socket
import time
from typing import Any

import pytest

import coro.http
from coro.errors import (
    HTTPConnectError,
    HTTPError,
    RequestError,
    WrongLoopError,
)
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPClient, HTTPRequest, HTTPResponse, pool
from coro.loop import IOLoop
from coro.resolver import Resolver
from tests.conftest import RawServerFactory
from tests.http.serving import chunked, fields_of, redirect, response
from tests.support.authority import Authority
from tests.support.hosting import of_the_system
from tests.support.raw_server import answer

# --- what comes back -------------------------------------------------------------------------


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


def test_a_fetch_that_begins_before_the_loop_runs(
    loop: IOLoop, client: AsyncHTTPClient, answering: Any
) -> None:
    """On a connection that is there already, so that nothing but its sending makes a turn."""
    server = answering(response(), response(b"again"))
    loop.run_sync(functools.partial(client.fetch, server.url()))
    fetching = client.fetch(server.url())
    fetching.add_done_callback(lambda _: loop.stop())
    loop.start()
    assert fetching.result().body == b"again"
    assert server.connections == 1


# --- callback --------------------------------------------------------------------------------


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
    assert seen[3].reason == info.value.message
    assert seen[3].request_time is not None
    assert 0 <= seen[3].request_time < 60
    assert seen[3].start_time is not None
    assert abs(seen[3].start_time - time.time()) < 60
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


# --- times -----------------------------------------------------------------------------------

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


class SlowResolver(Resolver):
    """Answers after a second."""

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        yield sleep(1)
        return [] if family == socket.AF_INET6 else [(socket.AF_INET, ("127.0.0.1", port))]


@of_the_system  # A server's TLS in simulation is not begun by a script.
def test_the_time_of_each_phase(loop: IOLoop, serve: Any, ca: Authority) -> None:
    """Each takes as many seconds as its number, but for connecting, which takes none here."""
    context = ca.server_context("slow.test")

    def script(peer: Any) -> Any:
        yield sleep(2)
        peer.stream = yield peer.stream.start_tls(True, context)
        while b"/last" not in (yield from peer.request()):
            yield sleep(4)
            yield peer.send(redirect("/last"))
        yield sleep(5)
        yield peer.send(response(b"hello", "Connection: close")[:-1])
        yield sleep(6)
        yield peer.send(b"o")
        peer.stream.close()

    @coroutine
    def upload(write: Any) -> Any:
        yield sleep(3)
        yield write(b"x")

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True, max_clients=1, resolver=SlowResolver())
    options: dict[str, Any] = {
        "method": "POST",
        "body_producer": upload,
        "headers": {"Content-Length": "1"},
        "ca_certs": str(ca.pem),
        "request_timeout": 100,
        "queue_timeout": 100,
    }

    @coroutine
    def main() -> Any:
        url = f"https://slow.test:{server.port}/"
        fetches = [client.fetch(f"{url}{name}", **options) for name in ("last", "last", "")]
        return (yield fetches)

    first, second, redirected = loop.run_sync(main)
    client.close()
    seconds = [got.time_info for got in (first, second, redirected)]
    assert [[round(times[name], 2) for name in PHASES] for times in seconds] == [
        [0, 1, 0, 2, 3, 5, 17],
        [17, 1, 0, 2, 3, 5, 34],
        # Of the last request alone, a GET on the connection of the first; the total is of all.
        [0, 0, 0, 0, 0, 5, 34 + 1 + 2 + 3 + 4 + 5 + 6],
    ]


def test_the_times_of_an_early_answer(fetch: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield peer.stream.read_until(b"\r\n\r\n")
        yield sleep(1)
        yield peer.send(b"HTTP/1.1 103 Hints\r\n\r\n")
        yield peer.stream.read_bytes(1)
        yield peer.send(response())

    @coroutine
    def upload(write: Any) -> Any:
        yield sleep(3)
        yield write(b"x")

    headers = {"Content-Length": "1"}
    got = fetch(serve(script).url(), method="POST", body_producer=upload, headers=headers)
    times = got.time_info
    assert (times["sent"], times["first_byte"]) == (pytest.approx(3, abs=0.01), 0)
    assert min(times.values()) >= 0


def test_times_of_a_failure(fetch: Any, serve: Any) -> None:
    def script(peer: Any) -> Any:
        yield from peer.request()
        yield sleep(2)

    got = fetch(serve(script).url(), raise_error=False)
    assert got.code == 599
    assert got.request_time == pytest.approx(2, abs=0.01)
    assert got.time_info["total"] == pytest.approx(2, abs=0.01)
    assert got.time_info["first_byte"] == 0


# --- the clients -----------------------------------------------------------------------------


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
        AsyncHTTPClient.configure(AsyncHTTPClient, max_clients=5)
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


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_clients": 0}, "max_clients"),
        ({"max_client": 1}, "max_client"),
        ({"max_connection_idle": 0}, "max_connection_idle"),
        ({"defaults": {"request_timeut": 1}}, "did you mean 'request_timeout'"),
        ({"defaults": {"stream": True}}, "stream is no default of a client"),
        ({"defaults": {"header_callback": print}}, "header_callback is no default"),
    ],
)
def test_settings_that_make_no_sense(loop: IOLoop, settings: Any, told: str) -> None:
    for make in (functools.partial(AsyncHTTPClient, force_instance=True), HTTPClient):
        with pytest.raises((ValueError, TypeError), match=told):
            make(**settings)


def test_defaults(loop: IOLoop, serve: Any, answering: Any) -> None:
    client = AsyncHTTPClient(force_instance=True, defaults={"request_timeout": 3})
    server = serve(lambda peer: peer.silence())
    given: tuple[dict[str, Any], ...] = ({}, {"request_timeout": 2}, {"request_timeout": 4})
    for options in given:
        begun = loop.time()
        with pytest.raises(TimeoutError):
            loop.run_sync(functools.partial(client.fetch, server.url(), **options))
        assert loop.time() - begun == pytest.approx(options.get("request_timeout", 3))
    client.close()


def test_the_modules_fetch(loop: IOLoop, answering: Any) -> None:
    server = answering(response(b"hello"), response(status="500 No"))
    assert loop.run_sync(lambda: coro.http.fetch(server.url())).body == b"hello"
    got = loop.run_sync(lambda: coro.http.fetch(server.url(), raise_error=False, method="DELETE"))
    assert got.code == 500
    assert AsyncHTTPClient().statistics() == {"active": 0, "waiting": 0, "idle": 1, "opened": 1}


def test_statistics_by_origin(loop: IOLoop, answering: Any, serve: Any) -> None:
    client = AsyncHTTPClient(force_instance=True, max_clients=2)
    kept, closing = answering(response()), answering(response(b"x", "Connection: close"))
    silent = serve(lambda peer: peer.silence())
    origins = {server: f"http://127.0.0.1:{server.port}" for server in (kept, closing, silent)}

    def counts() -> Any:
        found = client.statistics_by_origin()
        return [
            tuple(found[origins[server]].values()) for server in origins if origins[server] in found
        ]

    @coroutine
    def main() -> Any:
        for server in (kept, kept, kept, closing, closing):
            yield client.fetch(server.url())
        yield sleep(0.1)
        names = ("open", "idle", "busy", "waiting", "opened", "reused")
        assert tuple(client.statistics_by_origin()[origins[kept]]) == names
        assert counts() == [(1, 1, 0, 0, 1, 2), (0, 0, 0, 0, 2, 0)]
        tasks = [client.fetch(silent.url()) for _ in range(3)] + [client.fetch(kept.url())]
        yield sleep(0.1)
        assert counts() == [(1, 1, 0, 1, 1, 2), (0, 0, 0, 0, 2, 0), (2, 0, 2, 1, 2, 0)]
        for task in tasks[:3]:
            task.cancel()
        yield tasks[3]
        yield sleep(0.1)
        assert counts() == [(1, 1, 0, 0, 1, 3), (0, 0, 0, 0, 2, 0), (0, 0, 0, 0, 2, 0)]

    loop.run_sync(main)
    client.close()
    assert counts()[0] == (0, 0, 0, 0, 1, 3)


def test_statistics_by_origin_are_those_of_the_last_ones(
    loop: IOLoop, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_ORIGINS", 2)
    client = AsyncHTTPClient(force_instance=True)
    server = answering(response(b"x", "Connection: close"))
    for name in "abac":
        url = f"http://{name}.test:{server.port}/"
        overrides = {f"{name}.test": "127.0.0.1"}
        loop.run_sync(functools.partial(client.fetch, url, overrides=overrides))
    assert [*client.statistics_by_origin()] == [f"http://{n}.test:{server.port}" for n in "ac"]
    client.close()


def test_a_loop_is_no_argument(loop: IOLoop) -> None:
    with pytest.raises(TypeError, match="force_instance is True or False, not <IOLoop"):
        AsyncHTTPClient(loop)  # type: ignore[arg-type]


def test_hosts_that_a_client_finds_elsewhere(loop: IOLoop, answering: Any) -> None:
    server = answering(response(b"x"))
    client = AsyncHTTPClient(
        force_instance=True,
        hostname_mapping={"a.test": "127.0.0.1", ("b.test", 81): ("127.0.0.1", server.port)},
    )
    for url in (f"http://a.test:{server.port}/", "http://b.test:81/"):
        assert loop.run_sync(functools.partial(client.fetch, url)).body == b"x"
    client.close()


def test_without_ipv6(loop: IOLoop, answering: Any) -> None:
    server = answering(response(b"x"))
    asked: list[int] = []

    class Noting(Resolver):
        @coroutine
        def resolve(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> Any:
            asked.append(family)
            return [(socket.AF_INET, ("127.0.0.1", port))] if family != socket.AF_INET6 else []

    url = f"http://a.test:{server.port}/"
    client = AsyncHTTPClient(force_instance=True, resolver=Noting())
    loop.run_sync(functools.partial(client.fetch, url, allow_ipv6=False))
    assert asked == [socket.AF_INET]
    loop.run_sync(functools.partial(client.fetch, url, allow_ipv6=False))
    assert server.connections == 1
    # A connection that may have been made to either family is another one.
    for allow in (True, None):
        loop.run_sync(functools.partial(client.fetch, url, allow_ipv6=allow))
    assert asked.count(socket.AF_INET6) == 2
    loop.run_sync(functools.partial(client.fetch, url, allow_ipv6=False, af=socket.AF_INET))
    client.close()


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


# --- the blocking client ---------------------------------------------------------------------


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


# --- interim responses, and the client as a block --------------------------------------------


def test_interim_responses_are_told(fetch: Any, answering: Any) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    server = answering(hint * 2 + response(), response())
    seen: list[Any] = []
    for _ in range(2):
        assert fetch(server.url(), on_informational=seen.append).body == b"hello"
    assert [(head.status, head.headers["Link"]) for head in seen] == [(103, "</a.css>")] * 2


def test_too_many_interim_responses(fetch: Any, answering: Any) -> None:
    server = answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17 + response())
    seen: list[Any] = []
    with pytest.raises(HTTPError, match="interim"):
        fetch(server.url(), on_informational=seen.append)
    assert len(seen) == 16


def test_a_client_as_a_block(loop: IOLoop, answering: Any) -> None:
    server = answering(response())

    async def main() -> AsyncHTTPClient:
        async with AsyncHTTPClient(force_instance=True) as client:
            await client.fetch(server.url())
            assert client.statistics()["idle"] == 1
        return client

    client = loop.run_sync(main)
    assert client.statistics()["idle"] == 0
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_sync(lambda: client.fetch(server.url()))
