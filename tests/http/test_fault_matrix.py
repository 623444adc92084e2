"""Whatever goes wrong, and whatever is done about it: a fetch ends on time, and nothing remains.

One side of the matrix: names that nobody answers for, servers that are not there, silent, rude,
broken or not trusted, and a client whose slots are all taken. The other side: each kind of time
limit, cancellation at every point of the way, and the closing of the client at every point. For
each, the descriptors, handlers, timers, tasks and slots are counted before and after.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coro.errors import (
    BodyTooLargeError,
    CancelledError,
    ConnectTimeoutError,
    HTTPClosedError,
    HTTPError,
    HTTPProtocolError,
    HTTPTLSError,
    IncompleteBodyError,
    QueueTimeoutError,
    ReadTimeoutError,
    RequestError,
    TotalTimeoutError,
    WriteTimeoutError,
)
from coro.future import Future
from coro.gen import Task, coroutine, sleep
from coro.http import AsyncHTTPClient
from coro.loop import IOLoop
from coro.resolver import Resolver
from tests.http.cancelling import MANY, OK, Rig, fixed
from tests.http.serving import LoopServer, Peer, Script, chunked, redirect, response
from tests.support.authority import Authority
from tests.support.zstandard import zstd

# A fetch that hangs does so after fewer turns.
HANGS_BEFORE = 20

# Each kind of time limit alone; and all of them, as programs have them.
LIMITS: dict[str, dict[str, float | None]] = {
    "queue": {"queue_timeout": 2},
    "connect": {"connect_timeout": 5},
    "write": {"write_timeout": 4},
    "inactivity": {"inactivity_timeout": 3},
    "total": {"request_timeout": 7},
}
ALL = {name: limit for each in LIMITS.values() for name, limit in each.items()}
OFF: dict[str, Any] = {"connect_timeout": None, "request_timeout": None}

# How the limits end what hangs; what is not here does not bound that phase. If all of them are set,
# it is "all", or else the nearest one.
QUEUEING: dict[str, tuple[type, float]] = {
    "queue": (QueueTimeoutError, 2),
    "connect": (QueueTimeoutError, 5),
    "total": (QueueTimeoutError, 7),
}
CONNECTING: dict[str, tuple[type, float]] = {
    "connect": (ConnectTimeoutError, 5),
    "total": (TotalTimeoutError, 7),
}
ANSWERING: dict[str, tuple[type, float]] = {
    "inactivity": (ReadTimeoutError, 3),
    "total": (TotalTimeoutError, 7),
}
SENDING: dict[str, tuple[type, float]] = {
    "write": (WriteTimeoutError, 4),
    "all": (WriteTimeoutError, 4),  # which takes the place of the one for silence
    "inactivity": (ReadTimeoutError, 3),
    "total": (TotalTimeoutError, 7),
}
DRIPPING: dict[str, tuple[type, float]] = {"total": (TotalTimeoutError, 7)}


class SilentResolver(Resolver):
    """Never answers."""

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        yield Future()


class Place:
    """Where a fault is to be met.

    Attributes:
        server: its server, or an honest one if it has none.
        url: what to fetch.
        options: of the fetch.
        settings: of the client.
        linger: seconds until the server notices that a client has left.
    """

    linger = 0

    def __init__(self, server: LoopServer, url: str = "", **options: Any) -> None:
        self.server = server
        self.url = url or server.url()
        self.options = options
        self.settings: dict[str, Any] = {}

    def begin(self, client: AsyncHTTPClient, **options: Any) -> Task[Any]:
        return client.fetch(self.url, **self.options, **options)


class FullPool(Place):
    """Another fetch has the only slot, and no answer."""

    def __init__(self, server: LoopServer) -> None:
        super().__init__(server)
        self.settings = {"max_clients": 1}

    @coroutine
    def begin(self, client: AsyncHTTPClient, **options: Any) -> Any:
        holder = client.fetch(self.url, **OFF)
        try:
            return (yield client.fetch(self.url, **options))
        finally:
            holder.cancel()
            try:
                yield holder
            except CancelledError:
                pass


class World:
    """What the faults are made of."""

    def __init__(self, rig: Rig, serve: Callable[[Script], LoopServer], ca: Authority) -> None:
        self.good = rig.good
        self.serve = serve
        self.ca = ca
        self.deaf_port = 0

    def plain(self, *steps: Any) -> Place:
        return Place(self.serve(fixed(*steps)))

    def secure(self, *steps: Any, names: tuple[str, ...] = (), trusted: bool = True) -> Place:
        context = self.ca.server_context(*names)

        def script(peer: Peer) -> Any:
            peer.stream = yield peer.stream.start_tls(True, context)
            try:
                yield from fixed(*steps)(peer)
                # The end of the connection, which TLS knows nothing of.
                with contextlib.suppress(OSError):  # The client may have left.
                    socket.socket.shutdown(peer.stream.socket, socket.SHUT_WR)
                    yield from peer.silence()
            finally:
                peer.stream.close()

        server = self.serve(script)
        url = f"https://127.0.0.1:{server.port}/"
        return Place(server, url, **({"ca_certs": str(self.ca.pem)} if trusted else {}))


def dns_hangs(world: World) -> Place:
    return Place(world.good, "http://any.example/", resolver=SilentResolver())


def connecting_hangs(world: World) -> Place:
    return Place(world.good, f"http://127.0.0.1:{world.deaf_port}/")


def tls_is_silent(world: World) -> Place:
    server = world.serve(Peer.silence)
    return Place(server, f"https://127.0.0.1:{server.port}/")


def tls_is_another_protocol(world: World) -> Place:
    def script(peer: Peer) -> Any:
        yield peer.send(b"220 mail.example ESMTP\r\n")
        yield from peer.silence()

    server = world.serve(script)
    return Place(server, f"https://127.0.0.1:{server.port}/")


def nothing_is_taken(world: World) -> Place:
    def script(peer: Peer) -> Any:
        peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield peer.stream.read_until(b"\r\n\r\n")
        yield sleep(8)
        peer.reset()

    place = Place(world.serve(script), method="POST", body=bytes(10_000_000))
    place.linger = 8
    return place


def dripping(world: World) -> Place:
    def script(peer: Peer) -> Any:
        yield from peer.request()
        yield peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            yield sleep(2)
            yield peer.send(b".")

    place = Place(world.serve(script))
    place.linger = 4
    return place


def redirected_to_a_hanging_name(world: World) -> Place:
    place = world.plain(redirect("http://any.example/"), "silence")
    place.options = {"resolver": SilentResolver()}
    return place


def redirected_to_silence(world: World) -> Place:
    def script(peer: Peer) -> Any:
        if b" / " in (yield from peer.request()):
            yield peer.send(redirect("/elsewhere"))
        yield from peer.silence()

    return Place(world.serve(script))


BOMB = zstd.compress(bytes(5_000_000))


def a_bomb(world: World) -> Place:
    place = world.plain(response(BOMB, "Content-Encoding: zstd"))
    place.settings = {"max_body_size": 1_000_000}
    return place


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

# What becomes of a fetch: by each limit, or at once.
FAULTS: dict[str, tuple[Callable[[World], Place], dict[str, tuple[type, float]] | type]] = {
    "dns hangs": (dns_hangs, CONNECTING),
    "connecting hangs": (connecting_hangs, CONNECTING),
    "silent tls": (tls_is_silent, CONNECTING),
    "no tls": (tls_is_another_protocol, HTTPTLSError),
    "untrusted": (lambda world: world.secure(OK, trusted=False), HTTPTLSError),
    "certificate of another": (lambda world: world.secure(OK, names=("a.test",)), HTTPTLSError),
    "no close_notify": (lambda world: world.secure(UNTIL_CLOSE + b"half"), IncompleteBodyError),
    "silence over tls": (lambda world: world.secure("silence"), ANSWERING),
    "half a body over tls": (lambda world: world.secure(OK[:-5], "silence"), ANSWERING),
    "reset": (lambda world: world.plain("reset"), HTTPClosedError),
    "reset in the body": (lambda world: world.plain(OK[:-5], "reset"), IncompleteBodyError),
    "silence": (lambda world: world.plain("silence"), ANSWERING),
    "half a head": (lambda world: world.plain(OK[:20], "silence"), ANSWERING),
    "half a head and the end": (lambda world: world.plain(OK[:20]), HTTPClosedError),
    "half a body": (lambda world: world.plain(OK[:-5], "silence"), ANSWERING),
    "half a body and the end": (lambda world: world.plain(OK[:-5]), IncompleteBodyError),
    "half a chunk": (lambda world: world.plain(chunked(b"0123")[:-9], "silence"), ANSWERING),
    "a bad chunk": (lambda world: world.plain(chunked(b"01", end=b"x\r\n")), HTTPProtocolError),
    "not what its coding says": (
        lambda world: world.plain(response(b"hello", "Content-Encoding: br, gzip, zstd")),
        HTTPProtocolError,
    ),
    "a bomb": (a_bomb, BodyTooLargeError),
    "half of what is coded": (
        lambda world: world.plain(response(BOMB, "Content-Encoding: zstd")[:-5], "silence"),
        ANSWERING,
    ),
    "interim and silence": (
        lambda world: world.plain(b"HTTP/1.1 103 Hints\r\n\r\n", "silence"),
        ANSWERING,
    ),
    "drops": (dripping, DRIPPING),
    "nothing is taken": (nothing_is_taken, SENDING),
    "redirect to ftp": (lambda world: world.plain(redirect("ftp://a.test/")), HTTPProtocolError),
    "redirect to a hanging name": (redirected_to_a_hanging_name, CONNECTING),
    "redirect to silence": (redirected_to_silence, ANSWERING),
    "full pool": (lambda world: FullPool(world.serve(Peer.silence)), QUEUEING),
}


@pytest.fixture
def rig(loop: IOLoop, serve: Any) -> Rig:
    return Rig(loop, serve)


@pytest.fixture
def world(rig: Rig, serve: Any, ca: Authority, deaf_port: int) -> World:
    made = World(rig, serve, ca)
    made.deaf_port = deaf_port
    return made


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged but what TLS has to say: whoever fetches is told, and nobody else."""
    caplog.set_level(logging.INFO)
    yield
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert [message for message in messages if "[SSL:" not in message] == []


@coroutine
def pull(client: AsyncHTTPClient, place: Place, **options: Any) -> Any:
    """Fetch for a reader, and read."""
    response = yield place.begin(client, stream=True, **options)
    with response:
        while (yield response.read()):
            pass
    return response


def begin(client: AsyncHTTPClient, place: Place, how: str, **options: Any) -> Task[Any]:
    if how == "pulled":
        return pull(client, place, **options)
    if how == "posting" and "method" not in place.options:
        options |= {"method": "POST", "body": b"x" * 10}
    return place.begin(client, **options)


WAYS = ("collected", "pulled", "posting")


def expected(fault: str, limit: str = "all") -> tuple[type, float] | None:
    """Return the error that ends a fetch, and after how many seconds; None: nothing does."""
    outcome = FAULTS[fault][1]
    if isinstance(outcome, type):
        return outcome, 0
    if limit in outcome or limit != "all":
        return outcome.get(limit)
    return min(outcome.values(), key=lambda each: each[1])


IN_TIME = [
    (fault, limit) for fault in FAULTS for limit in (*LIMITS, "all") if expected(fault, limit)
]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("fault", "limit"), IN_TIME)
def test_time_limits(
    loop: IOLoop,
    rig: Rig,
    world: World,
    no_collector: None,
    quiet: None,
    fault: str,
    limit: str,
    how: str,
) -> None:
    outcome = expected(fault, limit)
    assert outcome is not None
    kind, seconds = outcome
    place = FAULTS[fault][0](world)
    options = {**OFF, **(ALL if limit == "all" else LIMITS[limit])}
    before = rig.left()
    client = AsyncHTTPClient(force_instance=True, **place.settings)
    gc.collect()
    begun = loop.time()
    with pytest.raises(HTTPError) as info:
        loop.run_sync(functools.partial(begin, client, place, how, **options))
    assert type(info.value) is kind
    assert info.value.code == 599
    assert loop.time() - begun == pytest.approx(seconds, abs=0.1)
    del info
    rig.check_slots(client)
    again = loop.run_sync(functools.partial(client.fetch, rig.good.url()))
    assert again.body == b"0123456789"
    client.close()
    rig.check_left(before, place.server, place.linger, fault)
    del again, client, place
    assert gc.collect() == 0


@pytest.mark.parametrize("at_turn_end", [False, True])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_cancellation(rig: Rig, world: World, fault: str, how: str, at_turn_end: bool) -> None:
    place = FAULTS[fault][0](world)
    hangs = not isinstance(FAULTS[fault][1], type)
    most = HANGS_BEFORE if hangs else MANY
    count = rig.run(
        place.server,
        lambda client: begin(client, place, how, **OFF),
        at_turn_end=at_turn_end,
        most=most,
        linger=place.linger,
        **place.settings,
    )
    assert (count == most) is hangs


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_closing_the_client(rig: Rig, world: World, quiet: None, fault: str, how: str) -> None:
    """What is under way goes on, and ends as it would have."""
    place = FAULTS[fault][0](world)
    outcome = expected(fault)
    assert outcome is not None
    kind, seconds = outcome

    def check(task: Task[Any], took: float) -> None:
        assert type(task.exception()) is kind
        assert took == pytest.approx(seconds, abs=0.1)

    most = HANGS_BEFORE if seconds else MANY
    count = rig.run_closing(
        place.server,
        lambda client: begin(client, place, how, **{**OFF, **ALL}),
        check,
        most=most,
        linger=place.linger,
        **place.settings,
    )
    assert (count == most) is bool(seconds)


class SlowResolver(Resolver):
    """Answers after a second."""

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        yield sleep(1)
        if family == socket.AF_INET6:
            return []
        return [(socket.AF_INET, ("127.0.0.1", port))]


@pytest.mark.parametrize("how", WAYS)
def test_a_limit_at_every_stage(loop: IOLoop, rig: Rig, world: World, how: str) -> None:
    """Everything takes its second; the limit is half a second, one and a half, and so on."""
    context = world.ca.server_context("slow.test")

    def script(peer: Peer) -> Any:
        yield sleep(1)
        try:
            peer.stream = yield peer.stream.start_tls(True, context)
        except (OSError, ssl.SSLError):
            return
        try:
            yield from peer.request()
            for at in range(0, len(OK), 12):
                yield sleep(1)
                yield peer.send(OK[at : at + 12])
            yield from peer.silence()
        finally:
            peer.stream.close()

    server = world.serve(script)
    options: dict[str, Any] = {"resolver": SlowResolver(), "ca_certs": str(world.ca.pem)}
    place = Place(server, f"https://slow.test:{server.port}/", **options)
    phases = []
    before = rig.left()
    for limit in range(MANY):
        client = AsyncHTTPClient(force_instance=True)
        begun = loop.time()
        error: HTTPError | None = None
        try:
            loop.run_sync(
                functools.partial(
                    begin, client, place, how, connect_timeout=None, request_timeout=limit + 0.5
                )
            )
        except RequestError as failed:
            error = failed
            phases.append(failed.phase)
            assert loop.time() - begun == pytest.approx(limit + 0.5)
        rig.check_slots(client)
        client.close()
        rig.check_left(before, server, 1, f"after {limit}.5 seconds")
        if error is None:
            break
    assert phases[:3] == ["dns", "tls", "wait"]
    assert set(phases) == {"dns", "tls", "wait", "body"}
