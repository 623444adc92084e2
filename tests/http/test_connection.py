"""Connections: kept whenever they may be, never when not, and replaced when they went stale."""

from __future__ import annotations

import functools
import socket
import threading
from typing import Any

import pytest

from coro.errors import (
    HTTPClosedError,
    HTTPError,
    HTTPProtocolError,
    IncompleteBodyError,
    TotalTimeoutError,
)
from coro.future import Future
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPHeaders, HTTPRequest
from coro.http.connection import HTTPConnection, Progress
from coro.loop import IOLoop
from coro.resolver import Resolver
from coro.stream import IOStream
from tests.conftest import RawServerFactory
from tests.http.serving import chunked, response
from tests.support.hosting import new_loop, of_the_system
from tests.support.raw_server import answer, read_request
from tests.support.virtual import turns

IDLE = {"active": 0, "waiting": 0, "idle": 0}


# --- kept ------------------------------------------------------------------------------------


def test_a_thousand_fetches_on_one_connection(fetch: Any, client: Any, answering: Any) -> None:
    server = answering(response())
    for _ in range(1000):
        assert fetch(server.url()).body == b"hello"
    assert server.connections == 1
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 1, "opened": 1}


HEAD = response(b"hello").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
KEPT: dict[str, tuple[bytes, dict[str, Any]]] = {
    "length": (response(), {}),
    "no bytes": (response(b""), {}),
    "chunks": (chunked(b"a", b"b"), {}),
    "chunks and trailers": (chunked(b"a", end=b"0\r\nX: y\r\n\r\n"), {}),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", {}),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", {"raise_error": False}),
    "404": (response(status="404 No"), {"raise_error": False}),
    "500": (response(status="500 No"), {"raise_error": False}),
    "head": (HEAD, {"method": "HEAD"}),
    "keep-alive": (response(b"x", "Connection: keep-alive"), {}),
    "Connection: Upgrade": (response(b"x", "Connection: Upgrade", "Upgrade: h2c"), {}),
    "closer": (response(b"x", "Connection: closer"), {}),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" + response(), {}),
    "post": (response(), {"method": "POST", "body": b"x"}),
    "streamed": (response(), {"streaming_callback": lambda piece: None}),
}


@pytest.mark.parametrize("kind", KEPT)
def test_kept(fetch: Any, answering: Any, kind: str) -> None:
    data, options = KEPT[kind]
    server = answering(data)
    for _ in range(3):
        fetch(server.url(), **options)
    assert server.connections == 1


def test_kept_across_errors_of_the_caller(fetch: Any, answering: Any) -> None:
    server = answering(response(status="404 No"))
    for _ in range(3):
        with pytest.raises(HTTPError, match="404"):
            fetch(server.url())
        with pytest.raises(ValueError, match="Body must be None"):
            fetch(server.url(), body=b"x")
    assert server.connections == 1


def test_the_one_used_last_is_used_first(loop: IOLoop, fetch: Any, serve: Any) -> None:
    used = []

    def script(peer: Any) -> Any:
        while True:
            request = yield from peer.request()
            used.append(peer.number)
            yield sleep(int(request.split()[1][1:]))
            yield peer.send(response())

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True)
    loop.run_sync(lambda: [client.fetch(server.url(f"/{n}")) for n in (1, 2, 3)])
    used.clear()
    for _ in range(3):
        loop.run_sync(lambda: client.fetch(server.url("/0")))
    assert used == [3, 3, 3]
    client.close()


# --- not kept --------------------------------------------------------------------------------

NOT_KEPT: dict[str, tuple[bytes, dict[str, Any]]] = {
    "close": (response(b"x", "Connection: close"), {}),
    "Close": (response(b"x", "connection: Close"), {}),
    "close in a list": (response(b"x", "Connection: upgrade, close"), {}),
    "close in a second field": (response(b"x", "Connection: a", "Connection: close"), {}),
    "1.0": (response().replace(b"/1.1", b"/1.0"), {}),
    "1.0 with keep-alive": (
        response(b"x", "Connection: keep-alive").replace(b"/1.1", b"/1.0"),
        {},
    ),
    "surplus": (response() + b"x", {}),
    "surplus response": (response() + response(b"never asked for"), {}),
    "surplus after chunks": (chunked(b"a") + b"\r\n", {}),
    "surplus after a head": (response(), {"method": "HEAD"}),
    "surplus after 204": (b"HTTP/1.1 204 No Content\r\n\r\nx", {}),
    "upgrade": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        {"raise_error": False},
    ),
    "asked to close": (response(), {"headers": {"Connection": "close"}}),
    "asked to close among others": (response(), {"headers": {"Connection": "TE, Close"}}),
}


@pytest.mark.parametrize("kind", NOT_KEPT)
def test_not_kept(fetch: Any, client: Any, serve: Any, kind: str) -> None:
    data, options = NOT_KEPT[kind]
    left = []

    def script(peer: Any) -> Any:
        # The server does not end it: that is left to the client.
        yield from peer.request()
        yield peer.send(data)
        yield from peer.silence()
        left.append(peer.number)

    server = serve(script)
    for number in (1, 2):
        fetch(server.url(), **options)
        assert client.statistics() == {**IDLE, "opened": number}
        turns(client.io_loop, 5)
        assert left == [1, 2][:number]


BROKEN: dict[str, tuple[bytes, dict[str, Any], type]] = {
    "not HTTP": (b"nonsense\r\n\r\n", {}, HTTPProtocolError),
    "framing": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", {}, HTTPProtocolError),
    "chunk": (chunked(b"a", end=b"zzz"), {}, HTTPProtocolError),
    "too slow": (response()[:-1], {"request_timeout": 3}, TotalTimeoutError),
    "gzip": (response(b"x", "Content-Encoding: gzip"), {}, HTTPProtocolError),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_not_kept_after_an_error(fetch: Any, client: Any, serve: Any, kind: str) -> None:
    data, options, error = BROKEN[kind]

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(data)
        yield from peer.silence()

    server = serve(script)
    for number in (1, 2):
        with pytest.raises(error):
            fetch(server.url(), **options)
        assert client.statistics() == {**IDLE, "opened": number}


@pytest.mark.parametrize("unasked", [response(b"wrong"), b"\n", b""])
def test_not_kept_with_bytes_that_nobody_asked_for(
    fetch: Any, client: Any, loop: IOLoop, serve: Any, unasked: bytes
) -> None:
    """They come when the connection is idle; as an answer to the next request they would lie.

    It is closed at once, as when the server ends it (here: with no bytes).
    """
    left = []

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(response(b"right"))
        yield sleep(1)
        if unasked:
            yield peer.send(unasked)
            yield from peer.silence()
        left.append(loop.time())

    server = serve(script)
    begun = loop.time()
    for number in (1, 2):
        assert fetch(server.url()).body == b"right"
        assert client.statistics() == {**IDLE, "idle": 1, "opened": number}
        loop.run_sync(lambda: sleep(2))
        assert client.statistics() == {**IDLE, "opened": number}
        assert loop.statistics()["timers"] == 1
    assert left == [pytest.approx(begun + 1, abs=0.1), pytest.approx(begun + 3, abs=0.1)]


@of_the_system
@pytest.mark.parametrize("unasked", [response(b"wrong"), b""])
def test_what_came_while_the_loop_was_kept_busy(
    raw_server: RawServerFactory, loop: IOLoop, client: AsyncHTTPClient, unasked: bytes
) -> None:
    """The loop has not heard of it when the next request begins: a POST, which is sent once."""
    said = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(response(b"right"))
        assert asked.wait(30)
        if unasked:
            conn.sendall(unasked)
        else:
            conn.shutdown(socket.SHUT_WR)
        said.set()
        assert conn.recv(100) == b""

    server = raw_server(script)
    asked = threading.Event()
    no_limit: dict[str, Any] = {"connect_timeout": None, "request_timeout": None}
    clock: Any = loop.time

    @coroutine
    def main() -> Any:
        for number in (1, 2):
            asked.clear()
            said.clear()
            got = yield client.fetch(server.url(), method="POST", body=b"once", **no_limit)
            assert (got.body, got.attempts) == (b"right", 1)
            assert server.connections == number
            # For some seconds the program computes, and meanwhile the server speaks.
            asked.set()
            assert said.wait(30)
            clock.now += 10

    loop.run_sync(main)


def test_not_kept_while_the_request_is_still_being_sent(
    fetch: Any, client: Any, serve: Any
) -> None:
    """The server answers before it has read everything, and reads no further."""

    def script(peer: Any) -> Any:
        yield peer.stream.read_until(b"\r\n\r\n")
        yield peer.send(response(status="413 Too Large"))
        yield sleep(5)

    server = serve(script)
    for number in (1, 2):
        got = fetch(server.url(), method="POST", body=bytes(20_000_000), raise_error=False)
        assert got.code == 413
        assert client.statistics() == {**IDLE, "opened": number}


def test_not_kept_longer_than_a_minute(fetch: Any, loop: IOLoop, client: Any, serve: Any) -> None:
    left = []

    def script(peer: Any) -> Any:
        while True:
            try:
                yield from peer.request()
            except OSError:
                left.append(loop.time())
                raise
            yield peer.send(response())

    server = serve(script)
    begun = loop.time()
    fetch(server.url())
    loop.run_sync(lambda: sleep(59))
    assert client.statistics()["idle"] == 1
    fetch(server.url())
    assert server.connections == 1
    loop.run_sync(lambda: sleep(130))
    assert client.statistics()["idle"] == 0
    assert len(left) == 1
    assert begun + 119 <= left[0] <= begun + 180
    assert loop.statistics()["timers"] == 0


def test_not_kept_longer_than_asked_for(loop: IOLoop, answering: Any) -> None:
    server = answering(response())
    client = AsyncHTTPClient(force_instance=True, max_connection_idle=5)

    @coroutine
    def main() -> Any:
        for pause in (4, 4, 6, 6):
            yield client.fetch(server.url())
            yield sleep(pause)

    loop.run_sync(main)
    assert server.connections == 2
    loop.run_sync(lambda: sleep(5))
    assert client.statistics() == {**IDLE, "opened": 2}
    client.close()


# --- what distinguishes connections ----------------------------------------------------------


def test_other_ports(fetch: Any, answering: Any) -> None:
    first, second = answering(response(b"1")), answering(response(b"2"))
    for _ in range(2):
        assert fetch(first.url()).body == b"1"
        assert fetch(second.url()).body == b"2"
    assert (first.connections, second.connections) == (1, 1)


def test_other_names_and_addresses_of_one_server(
    raw_server: RawServerFactory,
) -> None:
    server = raw_server(answer(response(), response()))
    loop = new_loop()
    client = AsyncHTTPClient(force_instance=True)
    urls = [f"http://{host}:{server.port}/" for host in ("127.0.0.1", "localhost", "LOCALHOST")]
    for url in urls:
        loop.run_sync(functools.partial(client.fetch, url))
    assert server.connections == 2
    client.close()
    loop.close()


def test_another_source_address(fetch: Any, answering: Any) -> None:
    server = answering(response())
    for source in (None, "127.0.0.1", None, "127.0.0.1", "127.0.0.2"):
        fetch(server.url(), network_interface=source)
    assert server.connections == 3


def test_what_has_left_http_is_not_held(loop: IOLoop, client: AsyncHTTPClient, serve: Any) -> None:
    """Such as a WebSocket's connection, of which a client may make one after the other."""
    fields = {"Connection": "upgrade", "Upgrade": "x"}
    lines = [f"{name}: {value}" for name, value in fields.items()]

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send("\r\n".join(["HTTP/1.1 101 Now", *lines, "", "first"]).encode())
        yield from peer.silence()

    server = serve(script)

    @coroutine
    def main() -> Any:
        request = HTTPRequest(server.url())
        got, stream = yield from client.switch_protocols(request, request.url, HTTPHeaders(fields))
        assert got.code == 101
        assert stream is not None
        assert (yield stream.read_bytes(5)) == b"first"
        counts = {"open": 0, "idle": 0, "busy": 0, "waiting": 0, "opened": 1, "reused": 0}
        assert client.statistics_by_origin() == {server.url().rstrip("/"): counts}
        assert not client._pool._open
        stream.close()

    loop.run_sync(main)


# --- stale -----------------------------------------------------------------------------------


def one_each(peer: Any) -> Any:
    """Keep the connection by word, close it in deed."""
    yield from peer.request()
    yield peer.send(response())


def test_a_server_that_closes_after_each_reply(loop: IOLoop, serve: Any) -> None:
    server = serve(one_each)
    client = AsyncHTTPClient(force_instance=True, max_clients=4)
    failed = 0

    @coroutine
    def worker() -> Any:
        nonlocal failed
        for _ in range(250):
            got = yield client.fetch(server.url(), raise_error=False)
            failed += got.code != 200

    loop.run_sync(lambda: [worker() for _ in range(4)])
    assert failed == 0
    assert server.connections >= 1000
    client.close()


def test_a_server_in_threads_that_closes_after_each_reply(raw_server: RawServerFactory) -> None:
    """As it is between two machines: the end may be under way when the request is sent."""
    server = raw_server(answer(response()))
    loop = new_loop()
    client = AsyncHTTPClient(force_instance=True)

    @coroutine
    def main() -> Any:
        for _ in range(1000):
            got = yield client.fetch(server.url())
            assert got.body == b"hello"

    loop.run_sync(main)
    client.close()
    loop.close()


def closes_at_second(seen: list[bytes], rudely: bool = False) -> Any:
    """A script that answers the first request of a connection and hangs up on the second."""

    def script(peer: Any) -> Any:
        seen.append((yield from peer.request()))
        yield peer.send(response())
        seen.append((yield from peer.request()))
        if rudely:
            peer.reset()

    return script


@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"])
def test_sent_once_more(fetch: Any, serve: Any, client: Any, method: str, rudely: bool) -> None:
    seen: list[bytes] = []
    server = serve(closes_at_second(seen, rudely))
    fetch(server.url("/first"), method="GET")
    body = b"body" if method == "PUT" else None
    if method == "HEAD":
        # The script answers with a body: surplus after HEAD, but an answer.
        assert fetch(server.url("/second"), method=method, body=body).code == 200
    else:
        assert fetch(server.url("/second"), method=method, body=body).body == b"hello"
    assert [request.split()[1] for request in seen] == [b"/first", b"/second", b"/second"]
    assert seen[1] == seen[2]
    assert server.connections == 2


@pytest.mark.parametrize("rudely", [False, True])
def test_once_only(fetch: Any, serve: Any, rudely: bool) -> None:
    seen = []

    def script(peer: Any) -> Any:
        seen.append((yield from peer.request()))
        if len(seen) > 1:
            if rudely:
                peer.reset()
            return
        yield peer.send(response())
        seen.append((yield from peer.request()))

    server = serve(script)
    fetch(server.url())
    with pytest.raises(HTTPClosedError) as info:
        fetch(server.url())
    assert info.value.attempts == 2
    assert len(seen) == 3


@coroutine
def produce(write: Any) -> Any:
    yield write(b"x")


UNSAFE: dict[str, dict[str, Any]] = {
    "POST": {"method": "POST", "body": b"pay twice?"},
    "PATCH": {"method": "PATCH", "body": b"pay twice?"},
    "extension": {"method": "PURGE", "allow_nonstandard_methods": True},
    "producer": {"method": "PUT", "body_producer": produce},
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_never_sent_twice(fetch: Any, serve: Any, kind: str) -> None:
    seen: list[bytes] = []
    server = serve(closes_at_second(seen))
    fetch(server.url())
    with pytest.raises(HTTPClosedError, match="before any response") as info:
        fetch(server.url(), **UNSAFE[kind])
    assert (info.value.attempts, info.value.safe_to_retry) == (1, False)
    assert len(seen) == 2
    assert server.connections == 1


def test_an_answer_that_has_begun_is_not_asked_for_again(fetch: Any, serve: Any) -> None:
    seen = []

    def script(peer: Any) -> Any:
        while True:
            seen.append((yield from peer.request()))
            if len(seen) > 1:
                yield peer.send(response()[:-1])
                return
            yield peer.send(response())

    server = serve(script)
    fetch(server.url())
    with pytest.raises(IncompleteBodyError):
        fetch(server.url())
    assert len(seen) == 2


def test_an_end_that_is_known_costs_no_attempt(fetch: Any, loop: IOLoop, serve: Any) -> None:
    """The idle connection was closed by the server: the client has noticed and opens another."""
    server = serve(one_each)
    got = fetch(server.url())
    turns(loop, 3)
    body = b"not to be sent twice"
    got = fetch(server.url(), method="POST", body=body)
    assert got.code == 200
    assert server.connections == 2


# --- the room by itself ----------------------------------------------------------------------


@of_the_system  # Makes its own sockets.
def test_statements_of_a_connection(loop: IOLoop) -> None:
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    connection = HTTPConnection(stream, "key", 1000, ("http", "a", 80))
    closed: list[HTTPConnection] = []
    connection.on_close = closed.append
    assert repr(connection).startswith("<HTTPConnection http://a:80 exchanges=0 <IOStream fd=")
    assert connection.stream.idle()
    assert not connection.reusable()
    assert connection.stream.still_idle()
    theirs.send(b"unasked")
    assert not connection.stream.still_idle()
    connection.close()
    connection.close()
    turns(loop, 2)
    assert closed == [connection]
    assert not connection.stream.idle()
    theirs.close()


def test_the_times_of_phases_that_were_not_passed() -> None:
    progress = Progress(100.0)
    progress.acquired = 101.0
    progress.sent = 104.0
    progress.ended = 110.0
    assert progress.time_info() == {
        "queue": 1.0,
        "dns": 0.0,
        "connect": 0.0,
        "tls": 0.0,
        "sent": 3.0,
        "first_byte": 0.0,
        "total": 10.0,
    }


def test_not_sent_once_more_on_request(fetch: Any, serve: Any) -> None:
    server = serve(closes_at_second([]))
    fetch(server.url())
    with pytest.raises(HTTPClosedError) as info:
        fetch(server.url(), retry=False)
    assert info.value.attempts == 1
    assert info.value.safe_to_retry


def test_how_often_it_was_sent(fetch: Any, serve: Any) -> None:
    server = serve(closes_at_second([]))
    assert fetch(server.url()).attempts == 1
    assert fetch(server.url()).attempts == 2


# --- options of the connection itself --------------------------------------------------------


def test_a_connection_serves_those_who_asked_for_one_like_it(
    fetch: Any, answering: Any, client: Any
) -> None:
    server = answering(response())
    url = f"http://name.test:{server.port}/"
    to_server = {"name.test": "127.0.0.1"}
    also_there = {("name.test", server.port): "127.0.0.1"}
    keep_alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    kinds: list[dict[str, Any]] = [
        {"overrides": to_server},
        {"overrides": also_there},
        {"overrides": to_server, "socket_options": [(*keep_alive, 0)]},
        {"overrides": to_server, "socket_options": [(*keep_alive, 1)]},
        {"overrides": to_server, "af": socket.AF_INET},
        {"overrides": to_server, "network_interface": "127.0.0.1"},
        {"resolver": Here()},
    ]
    for number, options in enumerate(kinds, 1):
        for _ in range(2):
            assert fetch(url, **options).body == b"hello"
        assert server.connections == number
    for options in kinds:
        fetch(url, **options)
    count = len(kinds)
    assert server.connections == count
    assert client.statistics() == {**IDLE, "idle": count, "opened": count}


class Here(Resolver):
    """Every name is this machine."""

    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        future: Future[Any] = Future()
        future.set_result([(socket.AF_INET, ("127.0.0.1", port))])
        return future


@of_the_system  # It has a unix socket.
def test_a_unix_socket(loop: IOLoop, fetch: Any, tmp_path: Any) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        heads: list[bytes] = []

        @coroutine
        def serve_one(stream: IOStream) -> Any:
            for _ in range(2):
                heads.append((yield stream.read_until(b"\r\n\r\n")))
                yield stream.write(response())
            stream.close()

        loop.add_handler(listener, lambda *_: serve_one(IOStream(listener.accept()[0])), loop.READ)
        for _ in range(2):
            assert fetch("http://name.test/x", unix_socket=path).body == b"hello"
        loop.remove_handler(listener)
    assert [head.split(b"\r\n")[1] for head in heads] == [b"Host: name.test"] * 2


def test_a_limit_for_each_origin(loop: IOLoop, answering: Any) -> None:
    one, other = answering(response()), answering(response())
    client = AsyncHTTPClient(force_instance=True, max_clients=10, max_clients_per_origin=2)
    urls = [one.url()] * 6 + [other.url()]
    loop.run_sync(lambda: [client.fetch(url) for url in urls])
    assert (one.connections, other.connections) == (2, 1)
    assert client.statistics() == {**IDLE, "idle": 3, "opened": 3}
    client.close()
    with pytest.raises(ValueError, match="max_clients_per_origin must be at least 1"):
        AsyncHTTPClient(force_instance=True, max_clients_per_origin=0)


def test_a_connection_of_a_certain_age_is_replaced(loop: IOLoop, answering: Any) -> None:
    server = answering(response())
    client = AsyncHTTPClient(force_instance=True, max_connection_age=30)

    @coroutine
    def main() -> Any:
        for _ in range(4):
            yield client.fetch(server.url())
            yield sleep(11)

    loop.run_sync(main)
    assert server.connections == 2
    client.close()
