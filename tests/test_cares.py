"""c-ares on the loop, against a name server that the test plays itself."""

from __future__ import annotations

import gc
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from coro.cares import CaresResolver
from coro.errors import ResolveError
from coro.gen import coroutine
from coro.gen import timeout as time_limit
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6
from coro.tcp import connect
from tests.conftest import RawServerFactory
from tests.support.leaks import count_fds
from tests.support.raw_server import stay_silent
from tests.support.virtual import Clock, turns

A, AAAA = 1, 28
NO_ERROR, SERVER_FAILED, NO_NAME = 0, 2, 3


class NameServer:
    """Answers A and AAAA queries over UDP from tables.

    Attributes:
        zone: by name and type: the addresses, and their TTL.
        codes: by name, the code to answer with where there is no address.
        silent: names for which there is no answer at all.
        asked: name and type of each query, in order.
    """

    def __init__(self) -> None:
        self.zone: dict[tuple[str, int], tuple[list[str], int]] = {}
        self.codes: dict[str, int] = {}
        self.silent: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.heard = threading.Semaphore(0)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(4096)
            if not query:
                return
            name, kind, end = self._question(query)
            self.asked.append((name, kind))
            if name not in self.silent:
                self._socket.sendto(self._answer(query[:2], query[12:end], name, kind), peer)
            self.heard.release()

    @staticmethod
    def _question(query: bytes) -> tuple[str, int, int]:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        (kind,) = struct.unpack_from("!H", query, at + 1)
        return ".".join(labels).lower(), kind, at + 5

    def _answer(self, number: bytes, question: bytes, name: str, kind: int) -> bytes:
        addresses, ttl = self.zone.get((name, kind), ([], 0))
        known = any(key[0] == name for key in self.zone)
        code = self.codes.get(name, NO_ERROR if known else NO_NAME)
        family = AF_INET if kind == A else AF_INET6
        packed = [socket.inet_pton(family, address) for address in addresses]
        # A pointer to the question's name, the type, the class IN, the TTL, the length.
        records = [struct.pack("!HHHIH", 0xC00C, kind, 1, ttl, len(data)) + data for data in packed]
        head = struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        return number + head + question + b"".join(records)


@pytest.fixture
def server() -> Iterator[NameServer]:
    server = NameServer()
    server.zone["host.test", A] = (["192.0.2.1", "192.0.2.2"], 60)
    server.zone["host.test", AAAA] = (["2001:db8::1"], 60)
    server.zone["old.test", A] = (["192.0.2.3"], 60)
    yield server
    server.close()


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = IOLoop()
    yield loop
    assert_nothing_left(loop)
    loop.close()


@pytest.fixture
def resolver(loop: IOLoop, server: NameServer) -> Iterator[CaresResolver]:
    resolver = CaresResolver([server.address])
    yield resolver
    resolver.close()


def assert_nothing_left(loop: IOLoop) -> None:
    left = loop.statistics()
    assert left["timers"] == 0
    assert left["handlers"] == 0
    assert left["tasks"] == 0


def ask(loop: IOLoop, resolver: CaresResolver, host: str, family: int = 0) -> Any:
    return loop.run_sync(lambda: resolver.resolve(host, 80, family))


def test_one_family(loop: IOLoop, resolver: CaresResolver, server: NameServer) -> None:
    found = ask(loop, resolver, "host.test", AF_INET)
    assert sorted(found) == [(AF_INET, ("192.0.2.1", 80)), (AF_INET, ("192.0.2.2", 80))]
    assert ask(loop, resolver, "host.test", AF_INET6) == [(AF_INET6, ("2001:db8::1", 80, 0, 0))]
    assert server.asked == [("host.test", A), ("host.test", AAAA)]


def test_both_families(loop: IOLoop, resolver: CaresResolver, server: NameServer) -> None:
    found = ask(loop, resolver, "host.test")
    assert sorted(family for family, _ in found) == [AF_INET, AF_INET, AF_INET6]
    assert sorted(server.asked) == [("host.test", A), ("host.test", AAAA)]


def test_a_name_of_one_family(loop: IOLoop, resolver: CaresResolver) -> None:
    assert ask(loop, resolver, "old.test") == [(AF_INET, ("192.0.2.3", 80))]
    with pytest.raises(ResolveError) as caught:
        ask(loop, resolver, "old.test", AF_INET6)
    assert caught.value.errno == socket.EAI_NODATA


def test_an_international_name(loop: IOLoop, resolver: CaresResolver, server: NameServer) -> None:
    server.zone["xn--bcher-kva.test", A] = (["192.0.2.4"], 60)
    assert ask(loop, resolver, "bücher.test", AF_INET) == [(AF_INET, ("192.0.2.4", 80))]


def test_no_such_name(loop: IOLoop, resolver: CaresResolver) -> None:
    with pytest.raises(ResolveError, match=r"^cannot resolve 'nowhere\.test': ") as caught:
        ask(loop, resolver, "nowhere.test")
    assert caught.value.errno == socket.EAI_NONAME


def test_a_server_that_fails(loop: IOLoop, server: NameServer) -> None:
    server.codes["broken.test"] = SERVER_FAILED
    resolver = CaresResolver([server.address], tries=1)
    for _ in range(2):
        with pytest.raises(ResolveError) as caught:
            ask(loop, resolver, "broken.test", AF_INET)
        assert caught.value.errno == socket.EAI_AGAIN
    resolver.close()


def test_a_server_that_is_silent(loop: IOLoop, server: NameServer) -> None:
    server.silent.add("host.test")
    resolver = CaresResolver([server.address], query_timeout=0.05, tries=2)
    with pytest.raises(ResolveError, match=r"(?i)timeout") as caught:
        ask(loop, resolver, "host.test", AF_INET)
    assert caught.value.errno == socket.EAI_AGAIN
    assert len(server.asked) == 2
    assert_nothing_left(loop)
    resolver.close()


def test_a_look_up_has_a_limit_of_its_own(loop: IOLoop, server: NameServer) -> None:
    server.silent.add("host.test")
    resolver = CaresResolver([server.address], timeout=0.01)
    with pytest.raises(ResolveError, match=r"no answer within 0.01 s"):
        ask(loop, resolver, "host.test", AF_INET)
    assert_nothing_left(loop)
    resolver.close()


def test_no_server_is_there(loop: IOLoop) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*bound.getsockname())
    resolver = CaresResolver([address], query_timeout=0.05, tries=1)
    with pytest.raises(ResolveError):
        ask(loop, resolver, "host.test", AF_INET)
    assert_nothing_left(loop)
    resolver.close()


def test_what_etc_hosts_says(loop: IOLoop, resolver: CaresResolver, server: NameServer) -> None:
    assert (AF_INET, ("127.0.0.1", 80)) in ask(loop, resolver, "localhost")
    assert server.asked == []


def test_a_literal(loop: IOLoop, resolver: CaresResolver, server: NameServer) -> None:
    assert resolver.resolve("::1", 80).result() == [(AF_INET6, ("::1", 80, 0, 0))]
    assert server.asked == []


def test_answers_are_kept_as_long_as_they_say_but_not_longer_than_wished(
    server: NameServer,
) -> None:
    server.zone["host.test", A] = (["192.0.2.1"], 60)
    server.zone["long.test", A] = (["192.0.2.1"], 100_000)
    server.zone["never.test", A] = (["192.0.2.1"], 0)
    resolver = CaresResolver([server.address], ttl=300)
    clock = Clock()
    loop = IOLoop(clock=clock)

    for host, seconds in (("host.test", 60), ("long.test", 300), ("never.test", 0)):
        ask(loop, resolver, host, AF_INET)
        memory = resolver._memories[loop]
        key = (host, AF_INET)
        if seconds:
            assert memory.recall(key, clock.now + seconds - 1) is not None
        assert memory.recall(key, clock.now + seconds) is None
    resolver.close()
    loop.close()


def test_one_who_gives_up_leaves_it_to_the_others(
    loop: IOLoop, resolver: CaresResolver, server: NameServer
) -> None:
    server.silent.add("slow.test")
    slow = resolver.resolve("slow.test", 80, AF_INET)
    first, second = (resolver.resolve("host.test", 80, AF_INET) for _ in range(2))
    first.cancel()
    slow.cancel()
    assert len(loop.run_sync(lambda: second)) == 2
    assert first.cancelled()
    assert slow.cancelled()


def test_the_last_one_who_gives_up_leaves_nothing(
    loop: IOLoop, resolver: CaresResolver, server: NameServer
) -> None:
    server.silent.add("slow.test")
    before = count_fds()

    @coroutine
    def main() -> Any:
        with time_limit(0.01):
            yield resolver.resolve("slow.test", 80)

    with pytest.raises(TimeoutError):
        loop.run_sync(main)
    assert_nothing_left(loop)
    assert count_fds() == before
    # It still serves.
    assert len(ask(loop, resolver, "host.test", AF_INET)) == 2


def test_closed_with_a_look_up_under_way(
    loop: IOLoop, resolver: CaresResolver, server: NameServer
) -> None:
    server.silent.add("slow.test")
    before = count_fds()
    answer = resolver.resolve("slow.test", 80)
    assert server.heard.acquire(timeout=10)
    resolver.close()
    with pytest.raises(ResolveError) as caught:
        loop.run_sync(lambda: answer)
    assert caught.value.errno == socket.EAI_AGAIN
    assert_nothing_left(loop)
    assert count_fds() == before
    # A new channel is made if it is asked again.
    assert len(ask(loop, resolver, "host.test", AF_INET)) == 2


def test_its_loop_closes_with_a_look_up_under_way(server: NameServer) -> None:
    server.silent.add("slow.test")
    before = count_fds()
    loop = IOLoop()
    resolver = CaresResolver([server.address])
    answer = resolver.resolve("slow.test", 80)
    assert server.heard.acquire(timeout=10)
    loop.close()
    assert not answer.done()
    assert count_fds() == before
    other = IOLoop()
    assert len(ask(other, resolver, "host.test", AF_INET)) == 2
    resolver.close()
    other.close()


def test_connect(
    loop: IOLoop, resolver: CaresResolver, server: NameServer, raw_server: RawServerFactory
) -> None:
    server.zone["service.test", A] = (["127.0.0.1"], 60)
    port = raw_server(stay_silent).port

    @coroutine
    def main() -> Any:
        stream = yield connect("service.test", port, resolver=resolver)
        stream.close()

    loop.run_sync(main)
    assert sorted(server.asked) == [("service.test", A), ("service.test", AAAA)]


def test_no_thread_serves(loop: IOLoop, resolver: CaresResolver) -> None:
    ask(loop, resolver, "localhost")
    before = threading.active_count()
    ask(loop, resolver, "host.test")
    assert threading.active_count() == before


def test_parent_and_child_of_a_fork_each_ask_for_themselves(server: NameServer) -> None:
    program = f"""
import os
from coro.cares import CaresResolver
from coro.loop import IOLoop

loop = IOLoop()
resolver = CaresResolver([{server.address!r}], ttl=0)

def ask(name):
    return loop.run_sync(lambda: resolver.resolve(name, 80), timeout=10)

assert len(ask("old.test")) == 1
child = os.fork()
assert len(ask("host.test")) == 3
resolver.close()
loop.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert server.asked.count(("host.test", A)) == 2


def test_the_channel_dies_when_it_is_closed(loop: IOLoop, server: NameServer) -> None:
    gc.collect()
    gc.disable()
    try:
        resolver = CaresResolver([server.address])
        ask(loop, resolver, "host.test")
        with pytest.raises(ResolveError):
            ask(loop, resolver, "nowhere.test")
        died = weakref.ref(resolver._channels[loop])
        resolver.close()
        turns(loop)
        assert died() is None
    finally:
        gc.enable()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coro.cares.pycares", None)
    with pytest.raises(ImportError, match=r"pip install 'coro-loop\[dns\]'"):
        CaresResolver()
