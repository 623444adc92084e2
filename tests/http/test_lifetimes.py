"""With the collector off, whatever became of its fetches, a client leaves nothing behind."""

from __future__ import annotations

import functools
import gc
import gzip
import logging
import socket
import tracemalloc
import weakref
from collections.abc import Callable, Generator
from typing import Any

import pytest

from coro.errors import (
    BodyTooLargeError,
    HTTPClosedError,
    HTTPConnectError,
    HTTPError,
    HTTPProtocolError,
    HTTPTimeoutError,
    IncompleteBodyError,
    ResolveError,
)
from coro.gen import coroutine, sleep
from coro.http import AsyncHTTPClient, HTTPResponse
from coro.loop import IOLoop
from coro.resolver import Resolver
from coro.tls import client_context
from tests.conftest import RawServerFactory
from tests.http.serving import LoopServer, chunked, redirect, response
from tests.support.authority import Authority
from tests.support.hosting import new_loop
from tests.support.leaks import count_fds
from tests.support.raw_server import read_request
from tests.support.virtual import turns


def unreachable() -> list[Any]:
    """Return the objects that only the collector frees."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [*gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def left(loop: IOLoop) -> dict[str, float]:
    counts = loop.statistics()
    return {key: counts[key] for key in ("tasks", "timers", "handlers")} | {"fds": count_fds()}


class TinyServer:
    """Answers by path, with one call and no object for each request: 10,000 are many.

    ``/ok`` answers, ``/404`` does not find, ``/half`` closes inside the body, ``/closed`` instead
    of an answer, ``/reset`` likewise with a reset.
    """

    HALF = response(b"0123456789")[:-5]

    def __init__(self, loop: IOLoop) -> None:
        self._loop = loop
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._answers = {
            b"/ok": response(b"0123456789"),
            b"/404": response(b"no", status="404 Not Found"),
            b"/half": self.HALF,
            b"/closed": b"",
        }
        loop.add_handler(self._listener, self._accept, loop.READ)

    def _accept(self, listener: socket.socket, _events: int) -> None:
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        self._open.add(accepted)
        self._loop.add_handler(accepted, self._answer, self._loop.READ)

    def _answer(self, conn: socket.socket, _events: int) -> None:
        try:
            request = conn.recv(65536)
        except ConnectionError:
            request = b""
        path = request.split(b" ", 2)[1] if request else b""
        answer = self._answers.get(path, b"")
        if answer:
            conn.send(answer)
        if path == b"/reset":
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if not answer or answer is self.HALF:
            self._loop.remove_handler(conn)
            self._open.discard(conn)
            conn.close()

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            self._loop.remove_handler(sock)
            sock.close()


@pytest.mark.usefixtures("no_collector")
def test_ten_thousand_fetches_half_of_them_failing(
    loop: IOLoop, refused_port: int, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    server = TinyServer(loop)
    turns(loop, 2)
    before = left(loop)
    assert unreachable() == []
    client = AsyncHTTPClient(force_instance=True, max_clients=20)
    refused = f"http://127.0.0.1:{refused_port}/"
    kinds: list[tuple[str, type | None]] = [
        (f"{server.url}/ok", None),
        (refused, HTTPConnectError),
        (f"{server.url}/ok", None),
        (f"{server.url}/404", HTTPError),
        (f"{server.url}/ok", None),
        (f"{server.url}/closed", HTTPClosedError),
        (f"{server.url}/ok", None),
        (f"{server.url}/half", IncompleteBodyError),
        (f"{server.url}/ok", None),
        (f"{server.url}/reset", HTTPClosedError),
    ]
    outcomes: dict[type | None, int] = {}

    @coroutine
    def worker(begin: int, end: int) -> Generator[Any, Any, None]:
        for number in range(begin, end):
            url, expected = kinds[number % len(kinds)]
            try:
                got = yield client.fetch(url)
                assert got.body == b"0123456789"
                outcome = None
            except HTTPError as error:
                assert expected is not None
                assert isinstance(error, expected), error
                outcome = type(error)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    @coroutine
    def main() -> Generator[Any, Any, None]:
        yield [worker(at, at + 500) for at in range(0, 10_000, 500)]

    loop.run_sync(main)
    assert outcomes == {
        None: 5000,
        HTTPConnectError: 1000,
        HTTPError: 1000,
        HTTPClosedError: 2000,
        IncompleteBodyError: 1000,
    }
    client.close()
    turns(loop, 3)
    assert unreachable() == []
    assert gc.collect() == 0
    server_side = {"handlers": len(server._open), "fds": len(server._open)}
    after = left(loop)
    assert {key: after[key] - server_side.get(key, 0) for key in after} == before
    server.close()
    assert caplog.records == []


# --- each way that a fetch can go, one by one ------------------------------------------------


def answer_with(*steps: Any) -> Callable[[Any], Any]:
    def script(peer: Any) -> Any:
        for step in steps:
            yield from peer.request()
            if step == "reset":
                peer.reset()
            elif step == "silence":
                yield from peer.silence()
            else:
                yield peer.send(step)

    return script


@coroutine
def take_later(piece: bytes) -> Any:
    yield sleep(1)


@coroutine
def fail_later(piece: bytes) -> Any:
    yield sleep(1)
    raise LookupError


@coroutine
def produce_and_fail(write: Any) -> Any:
    yield write(b"some")
    raise LookupError


OK = response(b"0123456789")
WAYS: dict[str, tuple[Any, dict[str, Any], type | None]] = {
    "ok": (answer_with(OK), {}, None),
    "not kept": (answer_with(response(b"", "Connection: close")), {}, None),
    "until close": (answer_with(b"HTTP/1.1 200 OK\r\n\r\nbody"), {}, None),
    "chunks and trailers": (answer_with(chunked(b"ab", end=b"0\r\nA: b\r\n\r\n")), {}, None),
    "surplus": (answer_with(OK + OK), {}, None),
    "gzip": (answer_with(response(gzip.compress(b"x"), "Content-Encoding: gzip")), {}, None),
    "damaged gzip": (answer_with(response(b"x", "Content-Encoding: gzip")), {}, HTTPProtocolError),
    "streamed": (answer_with(OK), {"streaming_callback": take_later}, None),
    "taker fails": (answer_with(OK), {"streaming_callback": fail_later}, HTTPClosedError),
    "head": (answer_with(OK), {"header_callback": lambda line: None}, None),
    "posted": (answer_with(OK), {"method": "POST", "body": b"x"}, None),
    "producer fails": (
        answer_with(OK),
        {"method": "POST", "body_producer": produce_and_fail},
        LookupError,
    ),
    "redirected": (answer_with(redirect("/x"), OK), {}, None),
    "redirected to nonsense": (answer_with(redirect("ftp://x")), {}, HTTPProtocolError),
    "redirected too often": (
        answer_with(redirect("/x"), redirect("/x")),
        {"max_redirects": 1},
        HTTPError,
    ),
    "404": (answer_with(response(status="404 No")), {}, HTTPError),
    "closed": (answer_with(b""), {}, HTTPClosedError),
    "half": (answer_with(OK[:-3]), {}, IncompleteBodyError),
    "reset": (answer_with("reset"), {}, HTTPClosedError),
    "not HTTP": (answer_with(b"nonsense"), {}, HTTPProtocolError),
    "too large": (answer_with(response(bytes(999))), {}, BodyTooLargeError),
    "silent": (answer_with("silence"), {"request_timeout": 5}, HTTPTimeoutError),
    "inactive": (answer_with("silence"), {"inactivity_timeout": 5}, HTTPTimeoutError),
    "no URL": (answer_with(), {"url": "nonsense"}, ValueError),
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["raised", "returned", "called back", "kept"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way(loop: IOLoop, serve: Any, way: str, how: str) -> None:
    script, options, expected = WAYS[way]
    server: LoopServer = serve(script)
    options = dict(options)
    url = options.pop("url", server.url())
    turns(loop, 2)
    before = left(loop)
    unreachable()
    kept: list[HTTPResponse] = []
    ended: list[type | None] = []

    @coroutine
    def main() -> Any:
        client = AsyncHTTPClient(force_instance=True, max_body_size=500)
        callback = kept.append if how == "called back" else None
        try:
            got = yield client.fetch(
                url, callback=callback, raise_error=how != "returned", **options
            )
            ended.append(type(got.error) if got.error else None)
            if how in ("returned", "kept"):
                kept.append(got)
        except (HTTPError, ValueError, LookupError) as error:
            ended.append(type(error))
        # In a frame that is no part of the error's traceback.
        client.close()
        yield sleep(2)

    loop.run_sync(main)
    assert [*map(_is(expected), ended)] == [True], ended
    if how == "called back":
        assert len(kept) == 1
    kept.clear()
    turns(loop, 5)
    assert unreachable() == []
    assert left(loop) == before


def _is(expected: type | None) -> Callable[[type | None], bool]:
    if expected is None:
        return lambda ended: ended is None
    return lambda ended: ended is not None and issubclass(ended, expected)


def speak_plainly(peer: Any) -> Any:
    yield peer.stream.read_bytes(10)
    yield peer.send(response())


def leave(peer: Any) -> Any:
    yield peer.stream.read_bytes(10)


TLS_WAYS: dict[str, Any] = {
    "silence": answer_with("silence"),
    "no TLS": speak_plainly,
    "closed": leave,
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", TLS_WAYS)
def test_each_way_of_a_handshake(loop: IOLoop, serve: Any, way: str) -> None:
    server = serve(TLS_WAYS[way])
    url = server.url().replace("http:", "https:")
    client_context()  # Made once for all, and kept.
    _check(loop, lambda client: client.fetch(url, raise_error=False))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("trusted", [False, True])
def test_certificates(raw_server: RawServerFactory, ca: Authority, trusted: bool) -> None:
    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(response())

    server = raw_server(script, tls=ca.server_context())
    loop = new_loop()
    trust = str(ca.pem) if trusted else None
    client_context(ca_certs=trust)
    _check(
        loop,
        lambda client: client.fetch(server.url(), ca_certs=trust, raise_error=False),
        settle=server.settle,
    )
    loop.close()


class FailingResolver(Resolver):
    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        yield sleep(1)
        if host.startswith("unknown"):
            raise ResolveError(-2, "Name or service not known", host)
        if host.startswith("slow"):
            yield sleep(1000)
        return [(socket.AF_INET, ("127.0.0.1", port))]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("host", ["unknown.example", "slow.example", "127.0.0.1", "localhost"])
def test_each_way_of_connecting(loop: IOLoop, deaf_port: int, host: str) -> None:
    url = f"http://{host}:{deaf_port}/"
    resolver = FailingResolver()
    _check(loop, lambda client: client.fetch(url, raise_error=False), resolver=resolver)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("seconds", [0, 1, 2.5, 3.5, 10])
def test_cancelled(loop: IOLoop, serve: Any, seconds: float) -> None:
    """While it resolves, waits in the queue, waits for the answer, or after its end."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield sleep(1)
        yield peer.send(OK)

    server = serve(script)

    @coroutine
    def work(client: AsyncHTTPClient) -> Any:
        tasks = [client.fetch(f"http://any.example:{server.port}/") for _ in range(3)]
        yield sleep(seconds)
        for task in tasks:
            task.cancel()
        yield sleep(5)
        del tasks, task

    _check(loop, work, resolver=FailingResolver(), max_clients=1)


@pytest.mark.usefixtures("no_collector")
def test_timed_out_in_the_queue(loop: IOLoop, serve: Any) -> None:
    server = serve(answer_with("silence"))

    def work(client: AsyncHTTPClient) -> Any:
        return [
            client.fetch(server.url(), request_timeout=seconds, raise_error=False)
            for seconds in (5, 3, 10)
        ]

    _check(loop, work, max_clients=1)


def _check(
    loop: IOLoop,
    work: Callable[[AsyncHTTPClient], Any],
    settle: Callable[[], None] = lambda: None,
    **settings: Any,
) -> None:
    """Let a client work, close it, and fail if anything remains once its servers are settled."""
    turns(loop, 2)
    before = left(loop)
    unreachable()
    client = AsyncHTTPClient(force_instance=True, **settings)
    loop.run_sync(functools.partial(work, client))
    client.close()
    loop.run_sync(lambda: sleep(0.01))
    turns(loop, 5)
    counts = client.statistics()
    assert (counts["active"], counts["waiting"], counts["idle"]) == (0, 0, 0)
    del client
    assert unreachable() == []
    settle()
    assert left(loop) == before


@pytest.mark.usefixtures("no_collector")
def test_a_response_dies_with_its_last_reference(loop: IOLoop, serve: Any) -> None:
    """A 404 of 100 MB must not wait for the collector, though its error knows it."""
    server = serve(answer_with(response(status="404 No"), OK))
    client = AsyncHTTPClient(force_instance=True)
    dead: list[weakref.ref[Any]] = []

    @coroutine
    def main() -> Any:
        try:
            yield client.fetch(server.url())
        except HTTPError as error:
            assert error.response.error is error
            dead.append(weakref.ref(error.response))
        got = yield client.fetch(server.url())
        dead.append(weakref.ref(got))

    loop.run_sync(main)
    turns(loop)
    assert [each() for each in dead] == [None, None]
    client.close()


@pytest.mark.usefixtures("no_collector")
def test_an_idle_connection_keeps_no_body(loop: IOLoop, serve: Any) -> None:
    server = serve(answer_with(response(bytes(3_000_000)), "silence"))
    client = AsyncHTTPClient(force_instance=True)

    @coroutine
    def main() -> Any:
        got = yield client.fetch(server.url())
        return len(got.body)

    assert loop.run_sync(main) == 3_000_000
    (connections,) = client._pool._idle.values()
    (connection,) = connections
    assert connection.decoder.body == b""
    assert connection.decoder.head is None
    client.close()


def test_long_names_and_places_are_not_kept(loop: IOLoop, serve: Any) -> None:
    """What is prepared once and kept is what comes again; a peer may send others for ever."""
    count = 0

    def script(peer: Any) -> Any:
        nonlocal count
        while True:
            request = yield from peer.request()
            count += 1
            long = f"{count}{'x' * 50_000}"
            if b"GET /start" in request:
                yield peer.send(redirect(f"/{long}"))
            else:
                yield peer.send(response(b"", f"X{long}: y"))

    server = serve(script)
    client = AsyncHTTPClient(force_instance=True)

    def fetch_some() -> None:
        for number in range(20):
            for url in (server.url("/start"), server.url(f"/{count}{'y' * 50_000}")):
                got = loop.run_sync(functools.partial(client.fetch, url))
                assert got.headers.get("X") is None
                loop.run_sync(functools.partial(client.fetch, url, headers={"A": str(number)}))

    fetch_some()
    gc.collect()
    tracemalloc.start()
    try:
        fetch_some()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
    client.close()
