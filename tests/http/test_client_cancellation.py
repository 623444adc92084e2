"""A fetch is cancelled at every point where it can be, and nothing of it remains.

The points are counted in turns of the loop, see ``cancelling``.
"""

from __future__ import annotations

import functools
import gzip
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest

from coro.gen import coroutine, sleep, timeout
from coro.http import AsyncHTTPClient
from coro.loop import IOLoop
from coro.resolver import Resolver
from tests.http.cancelling import MANY, OK, Rig, fixed, settle
from tests.http.serving import chunked, redirect, response
from tests.support.authority import Authority
from tests.support.virtual import turns


def close_at_once(peer: Any) -> Any:
    yield None


def silent_from_the_start(peer: Any) -> Any:
    yield from peer.silence()


GZIP = response(gzip.compress(bytes(100_000)), "Content-Encoding: gzip")

SCRIPTS: dict[str, Callable[[Any], Any]] = {
    "answers": fixed(OK),
    "answers in pieces": fixed(*(OK[at : at + 8] for at in range(0, len(OK), 8))),
    "answers in chunks": fixed(*(chunked(b"01", b"23")[at : at + 9] for at in range(0, 99, 9))),
    "answers until it closes": fixed(b"HTTP/1.1 200 OK\r\n\r\n", b"01234", b"56789"),
    "answers twice": fixed(OK + OK),
    "says it closes": fixed(response(b"0123456789", "Connection: close")),
    "compresses": fixed(GZIP[:100], GZIP[100:]),
    "closes at once": close_at_once,
    "closes instead of an answer": fixed(),
    "resets instead of an answer": fixed("reset"),
    "closes inside the head": fixed(OK[:20]),
    "closes inside the body": fixed(OK[:-5]),
    "resets inside the body": fixed(OK[:-5], "reset"),
    "says nothing": silent_from_the_start,
    "stops inside the head": fixed(OK[:20], "silence"),
    "stops inside the body": fixed(OK[:-5], "silence"),
    "speaks something else": fixed(b"220 mail.example ESMTP\r\n", "silence"),
    "goes on and on": fixed(*[b"HTTP/1.1 102 Processing\r\n\r\n"] * 9, OK),
    "redirects": fixed(redirect("/elsewhere"), "again", OK),
    "redirects and closes": fixed(redirect("/elsewhere")),
    "finds nothing": fixed(response(status="404 Not Found")),
}


@coroutine
def take_slowly(piece: bytes) -> Any:
    yield None
    yield None


@coroutine
def produce(write: Any) -> Any:
    for _ in range(3):
        yield write(b"01")
        yield None


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limited": {"connect_timeout": 5, "request_timeout": 10, "inactivity_timeout": 3},
    "unlimited": {"connect_timeout": None, "request_timeout": None},
    "streaming": {"streaming_callback": take_slowly},
    "posting": {"method": "POST", "body": b"x" * 10},
    "producing": {"method": "PUT", "body_producer": produce, "headers": {"Content-Length": "6"}},
}


@pytest.fixture
def rig(loop: IOLoop, serve: Any) -> Rig:
    return Rig(loop, serve)


NEVER_ENDING = {"says nothing", "stops inside the head", "stops inside the body"}


@pytest.mark.parametrize("at_turn_end", [False, True])
@pytest.mark.parametrize("options", REQUESTS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_cancelled_at_every_turn(
    rig: Rig, serve: Any, script: str, options: str, at_turn_end: bool, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    server = serve(SCRIPTS[script])
    count = rig.run(
        server,
        lambda client: client.fetch(server.url(), **REQUESTS[options]),
        at_turn_end=at_turn_end,
    )
    assert (count == MANY) is (script in NEVER_ENDING)
    assert count >= 2 or script == "closes at once"
    assert caplog.records == []


def test_cancelled_through_the_tasks_above(rig: Rig, serve: Any) -> None:
    server = serve(SCRIPTS["answers in pieces"])

    @coroutine
    def one(client: AsyncHTTPClient) -> Any:
        with timeout(50):
            return (yield client.fetch(server.url()))

    @coroutine
    def several(client: AsyncHTTPClient) -> Any:
        return (yield [one(client), one(client), client.fetch(server.url())])

    assert 5 < rig.run(server, several, max_clients=2) < MANY


def test_cancelled_twice(rig: Rig, serve: Any) -> None:
    server = serve(SCRIPTS["answers in pieces"])
    assert 5 < rig.run(server, lambda client: client.fetch(server.url()), times=2) < MANY


def test_cancelled_while_a_kept_connection_fails(rig: Rig, serve: Any) -> None:
    """The fetch is begun on a kept connection that its server closes then, and begun again."""

    def script(peer: Any) -> Any:
        yield from peer.request()
        yield peer.send(OK)
        yield from peer.request()
        if peer.number % 2 == 0:
            yield peer.send(OK)

    server = serve(script)

    @coroutine
    def begin(client: AsyncHTTPClient) -> Any:
        yield client.fetch(server.url())
        return (yield client.fetch(server.url()))

    assert 6 < rig.run(server, begin) < MANY


def test_cancelled_while_a_redirect_leads_elsewhere(rig: Rig, serve: Any) -> None:
    target = serve(fixed(OK))
    server = serve(fixed(redirect(target.url())))
    assert 8 < rig.run(server, lambda client: client.fetch(server.url())) < MANY


def test_cancelled_while_connecting(rig: Rig, loop: IOLoop, deaf_port: int) -> None:
    assert rig.run(rig.good, lambda c: c.fetch(f"http://127.0.0.1:{deaf_port}/")) == MANY


def test_cancelled_while_refused(rig: Rig, refused_port: int) -> None:
    assert 1 <= rig.run(rig.good, lambda c: c.fetch(f"http://127.0.0.1:{refused_port}/")) < MANY


class TurnsResolver(Resolver):
    """Needs some turns for each answer; IPv6 has none."""

    @coroutine
    def resolve(self, host: str, port: int, family: int = 0) -> Any:
        for _ in range(4):
            yield None
        if family == socket.AF_INET6:
            return []
        return [(socket.AF_INET, ("127.0.0.1", port))]


def test_cancelled_while_resolving(rig: Rig, serve: Any) -> None:
    server = serve(SCRIPTS["answers"])
    url = f"http://any.example:{server.port}/"
    count = rig.run(server, lambda client: client.fetch(url), resolver=TurnsResolver())
    assert 8 < count < MANY


def test_cancelled_during_the_handshake(rig: Rig, serve: Any, ca: Authority) -> None:
    context = ca.server_context()

    def secure(peer: Any) -> Any:
        peer.stream = yield peer.stream.start_tls(True, context)
        try:
            yield from fixed(OK[:30], OK[30:], "silence")(peer)
        finally:
            peer.stream.close()

    server = serve(secure)
    url = f"https://127.0.0.1:{server.port}/"
    trust = str(ca.pem)
    assert 6 < rig.run(server, lambda c: c.fetch(url, ca_certs=trust)) < MANY
    silent = serve(SCRIPTS["says nothing"])
    url = f"https://127.0.0.1:{silent.port}/"
    assert rig.run(silent, lambda c: c.fetch(url, ca_certs=trust)) == MANY


def test_untrusted_and_cancelled(rig: Rig, serve: Any, ca: Authority, caplog: Any) -> None:
    context = ca.server_context()

    def secure(peer: Any) -> Any:
        try:
            yield peer.stream.start_tls(True, context)
        except OSError:
            pass

    server = serve(secure)
    url = f"https://127.0.0.1:{server.port}/"
    assert 4 < rig.run(server, lambda client: client.fetch(url)) < MANY


# --- slots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", range(6))
def test_no_slot_is_lost(loop: IOLoop, serve: Any, victim: int) -> None:
    """Two slots, six fetches; whichever is cancelled, whenever: the others succeed."""
    server = serve(fixed(OK[:20], OK[20:], "again", OK[:20], OK[20:], "again", OK))
    ended = 0

    @coroutine
    def main(count: int) -> Any:
        nonlocal ended
        tasks = [client.fetch(server.url(f"/{number}")) for number in range(6)]
        for _ in range(count):
            yield None
        ended += tasks[victim].done()
        tasks[victim].cancel()
        for number, task in enumerate(tasks):
            if number != victim:
                assert (yield task).body == b"0123456789"
            assert client.statistics()["active"] <= 2

    for count in range(MANY):
        client = AsyncHTTPClient(force_instance=True, max_clients=2)
        loop.run_sync(functools.partial(main, count))
        settle(loop, server)
        counts = client.statistics()
        assert (counts["active"], counts["waiting"]) == (0, 0), count
        client.close()
        settle(loop, server)
        if ended:
            break
    assert ended
    assert count > 3


def test_all_that_wait_are_cancelled(loop: IOLoop, serve: Any) -> None:
    server = serve(SCRIPTS["says nothing"])
    client = AsyncHTTPClient(force_instance=True, max_clients=10)

    @coroutine
    def main() -> Any:
        tasks = [client.fetch(server.url()) for _ in range(20)]
        yield sleep(1)
        assert client.statistics() == {"active": 10, "waiting": 10, "idle": 0, "opened": 10}
        for task in tasks[::-1]:
            task.cancel()
        while not all(task.done() for task in tasks):
            yield None
        return [task.cancelled() for task in tasks]

    assert loop.run_sync(main) == [True] * 20
    assert client.statistics() == {"active": 0, "waiting": 0, "idle": 0, "opened": 10}
    client.close()


def test_a_loop_that_closes_over_fetches(loop: IOLoop, serve: Any) -> None:
    """As after an error in the main program: fetches that nobody cancelled, in every stage."""
    silent = serve(SCRIPTS["says nothing"])
    client = AsyncHTTPClient(force_instance=True, max_clients=2)
    tasks = loop.run_sync(functools.partial(_begin, client, silent.url(), 4))
    turns(loop, 10)
    assert client.statistics()["waiting"] == 2
    for task in tasks:
        task.cancel()
    silent.close()
    loop.run_sync(lambda: sleep(0))
    assert all(task.cancelled() for task in tasks)
    loop.close()
    counts = client.statistics()
    assert (counts["active"], counts["waiting"]) == (0, 0)


def _begin(client: AsyncHTTPClient, url: str, count: int) -> Any:
    tasks = [client.fetch(url) for _ in range(count)]

    @coroutine
    def hand_over() -> Any:
        yield sleep(1)
        return tasks

    return hand_over()
