"""Names to addresses: what needs a thread and what does not, and what is given up."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from coro.errors import CancelledError, ResolveError
from coro.gen import Task
from coro.gen import timeout as time_limit
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6, AF_UNSPEC, Network
from coro.resolver import Resolver, ThreadedResolver, resolve_literal
from coro.task import coroutine


class Names(Network):
    """A network whose names the test knows; a look-up waits until the test lets it go on.

    Attributes:
        asked: the names that were looked up, in order.
        most: how many look-ups were under way at once, at the most.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = threading.Semaphore(0)
        self.most = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self.begun = threading.Semaphore(0)

    def getaddrinfo(self, host: str, port: int, family: int, *, numeric: bool) -> list[Any]:
        if numeric:
            return super().getaddrinfo(host, port, family, numeric=True)
        with self._lock:
            self.asked.append(host)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        self.begun.release()
        self.gate.acquire(timeout=20)
        with self._lock:
            self._under_way -= 1
        if host.startswith("no-"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(AF_INET, ("192.0.2.1", port))]


@pytest.fixture
def names() -> Iterator[Names]:
    network = Names()
    yield network
    for _ in range(100):
        network.gate.release()


@pytest.fixture
def loop(names: Names) -> Iterator[IOLoop]:
    loop = IOLoop(network=names)
    yield loop
    assert loop.statistics()["tasks"] == 0
    assert loop.statistics()["timers"] == 0
    loop.close()


@pytest.mark.parametrize(
    ("host", "family", "expected"),
    [
        ("127.0.0.1", AF_UNSPEC, [(AF_INET, ("127.0.0.1", 80))]),
        ("127.0.0.1", AF_INET, [(AF_INET, ("127.0.0.1", 80))]),
        ("::1", AF_UNSPEC, [(AF_INET6, ("::1", 80, 0, 0))]),
        ("::1", AF_INET6, [(AF_INET6, ("::1", 80, 0, 0))]),
    ],
)
def test_a_literal_is_answered_at_once(
    loop: IOLoop, names: Names, host: str, family: int, expected: list[Any]
) -> None:
    answer = ThreadedResolver().resolve(host, 80, family)
    assert answer.done()
    assert answer.result() == expected
    assert names.asked == []


def test_a_name_is_looked_up(loop: IOLoop, names: Names) -> None:
    names.gate.release()
    found = loop.run_sync(lambda: ThreadedResolver().resolve("host.test", 8080))
    assert found == [(AF_INET, ("192.0.2.1", 8080))]
    assert names.asked == ["host.test"]


def test_an_unknown_name(loop: IOLoop, names: Names) -> None:
    names.gate.release()
    with pytest.raises(ResolveError) as caught:
        loop.run_sync(lambda: ThreadedResolver().resolve("no-host.test", 80))
    assert str(caught.value) == "cannot resolve 'no-host.test': no such name"
    assert caught.value.errno == socket.EAI_NONAME
    assert caught.value.host == "no-host.test"
    assert isinstance(caught.value, socket.gaierror)


@pytest.mark.parametrize("host", ["", "a\0b", "x" * 64 + ".test", "a..b", ".test", "\ud800"])
def test_what_is_no_host_name(loop: IOLoop, names: Names, host: str) -> None:
    names.gate.release()
    with pytest.raises(ResolveError):
        loop.run_sync(lambda: ThreadedResolver().resolve(host, 80))


def test_names_beyond_the_threads_wait_their_turn(loop: IOLoop, names: Names) -> None:
    resolver = ThreadedResolver(max_threads=3)
    hosts = [f"host{n}.test" for n in range(10)]

    @coroutine
    def main() -> Any:
        lookups = [resolver.resolve(host, 80) for host in hosts]
        for _ in hosts:
            names.gate.release()
        return (yield lookups)

    assert loop.run_sync(main) == [[(AF_INET, ("192.0.2.1", 80))]] * 10
    assert sorted(names.asked) == sorted(hosts)
    assert names.most <= 3


def test_a_look_up_is_given_up_at_once(loop: IOLoop, names: Names) -> None:
    resolver = ThreadedResolver()
    lookups: list[Task[Any]] = []

    @coroutine
    def main() -> Any:
        lookups.append(resolver.resolve("slow.test", 80))
        with time_limit(0.001):
            yield lookups[0]

    with pytest.raises(TimeoutError):
        loop.run_sync(main)
    assert lookups[0].cancelled()
    # The answer that comes too late goes nowhere, also where the loop is closed meanwhile.
    names.gate.release()
    loop.run_sync(lambda: resolver.resolve("127.0.0.1", 80))


def test_one_that_was_given_up_in_the_queue_is_not_looked_up(loop: IOLoop, names: Names) -> None:
    resolver = ThreadedResolver(max_threads=1)

    @coroutine
    def main() -> Any:
        first = resolver.resolve("first.test", 80)
        assert names.begun.acquire(timeout=10)
        second = resolver.resolve("second.test", 80)
        third = resolver.resolve("third.test", 80)
        second.cancel()
        names.gate.release()
        names.gate.release()
        yield [first, third]
        with pytest.raises(CancelledError):
            yield second

    loop.run_sync(main)
    assert names.asked == ["first.test", "third.test"]


def test_a_hanging_look_up_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import socket, time
import coro
from coro.gen import coroutine, timeout
from coro.net import Network
from coro.resolver import ThreadedResolver

def getaddrinfo(self, host, port, family, *, numeric):
    if numeric:
        raise socket.gaierror
    time.sleep(3600)

Network.getaddrinfo = getaddrinfo

@coroutine
def main():
    with timeout(0.01):
        yield ThreadedResolver().resolve("slow.test", 80)

try:
    coro.run(main)
except TimeoutError:
    print("given up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "given up\n"
    assert done.stderr == ""


def test_the_interface_says_so_where_nothing_is_implemented(loop: IOLoop) -> None:
    with pytest.raises(NotImplementedError):
        loop.run_sync(lambda: Resolver().resolve("host.test", 80))
    Resolver().close()


def test_a_literal_of_the_other_family_is_none() -> None:
    assert resolve_literal(Network(), "127.0.0.1", 80, AF_INET6) is None
    assert resolve_literal(Network(), "host.test", 80, AF_UNSPEC) is None


def test_a_forked_child_starts_threads_of_its_own() -> None:
    program = """
import os, sys
import coro
from coro.net import Network
from coro.resolver import ThreadedResolver

def getaddrinfo(self, host, port, family, *, numeric):
    return None if numeric else [(family, (host, port))]

Network.getaddrinfo = getaddrinfo
resolver = ThreadedResolver(max_threads=1)
coro.run(resolver.resolve, "parent.test", 80)
child = os.fork()
if child == 0:
    print(coro.run(resolver.resolve, "child.test", 80)[0][1], flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout == "('child.test', 80)\n"
