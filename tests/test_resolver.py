"""Names to addresses: what needs a thread and what does not, and what is given up."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from coro.errors import CancelledError, ResolveError
from coro.gen import Task, convert_yielded
from coro.gen import timeout as time_limit
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6, AF_UNSPEC, Network
from coro.resolver import (
    OverrideResolver,
    Resolver,
    ThreadedResolver,
    resolve_literal,
    wait_for_threads,
)
from coro.task import coroutine
from tests.support.virtual import Clock, closing_loop, step, turns


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
        if host == "later.test":
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        if host.startswith("no-"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(AF_INET, ("192.0.2.1", port))]

    def let(self, count: int) -> None:
        """Let so many look-ups go on."""
        self.gate.release(count)


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


def test_no_name_of_a_class_means_the_system_s(loop: IOLoop, names: Names) -> None:
    resolver: Any = Resolver()
    assert type(resolver) is ThreadedResolver
    assert resolver.resolve("127.0.0.1", 80).result() == [(AF_INET, ("127.0.0.1", 80))]

    class Mine(Resolver):
        def __init__(self, one: int, *, two: int) -> None:
            self.sum = one + two

    assert Mine(1, two=2).sum == 3


def test_an_unknown_name(loop: IOLoop, names: Names) -> None:
    names.gate.release()
    with pytest.raises(ResolveError) as caught:
        loop.run_sync(lambda: ThreadedResolver().resolve("no-host.test", 80))
    assert str(caught.value) == "cannot resolve 'no-host.test': no such name"
    assert caught.value.errno == socket.EAI_NONAME
    assert caught.value.host == "no-host.test"
    assert isinstance(caught.value, socket.gaierror)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("", "it is empty"),
        ("a\0b", "it has a NUL character"),
        ("x" * 64 + ".test", "the label 'x"),
        ("a..b", "the label ''"),
        (".test", "the label ''"),
        ("a b", "the label 'a b'"),
        ("user@host", "the label 'user@host'"),
        ("host:80", "the label 'host:80'"),
        ("a." * 126 + "bb", "longer than 253"),
        ("a." * 127 + "b", "longer than 253"),
        ("\ud800", "internationalized"),
        ("a\u200db.test", "internationalized"),
        ("xn--\u0430.test", "internationalized"),
    ],
)
def test_what_is_no_host_name(loop: IOLoop, names: Names, host: str, reason: str) -> None:
    with pytest.raises(ResolveError, match=f"not a host name: .*{reason}") as caught:
        loop.run_sync(lambda: ThreadedResolver().resolve(host, 80))
    assert caught.value.host == host
    assert names.asked == []


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("bücher.test", "xn--bcher-kva.test"),
        ("FASS.test", "fass.test"),
        ("faß.test", "xn--fa-hia.test"),
        ("日本語。test", "xn--wgv71a119e.test"),
        ("_service.test", "_service.test"),
        ("host.test.", "host.test."),
        ("x" * 63 + ".test", "x" * 63 + ".test"),
        ("a." * 126 + "b.", "a." * 126 + "b."),
    ],
)
def test_what_is_a_host_name(loop: IOLoop, names: Names, host: str, asked: str) -> None:
    names.let(1)
    loop.run_sync(lambda: ThreadedResolver().resolve(host, 80))
    assert names.asked == [asked]


def test_a_literal_in_wide_digits(loop: IOLoop, names: Names) -> None:
    answer = ThreadedResolver().resolve("\uff11\uff12\uff17.0.0.1", 80)
    assert answer.result() == [(AF_INET, ("127.0.0.1", 80))]


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


def test_a_look_up_that_was_given_up_is_waited_for(loop: IOLoop, names: Names) -> None:
    """It has a descriptor perhaps, and whoever counts these is to know."""
    assert wait_for_threads(20)
    answer = ThreadedResolver().resolve("slow.test", 80)
    assert names.begun.acquire(timeout=10)
    answer.cancel()
    turns(loop)
    assert answer.cancelled()
    assert not wait_for_threads(0)
    assert not wait_for_threads(0.001)
    names.gate.release()
    assert wait_for_threads(20)
    assert names.asked == ["slow.test"]


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
    class Unfinished(Resolver):
        pass

    with pytest.raises(NotImplementedError):
        loop.run_sync(lambda: Unfinished().resolve("host.test", 80))
    Unfinished().close()


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", AF_INET6), ("::1", AF_INET)])
def test_a_literal_of_the_other_family_is_refused_at_once(
    loop: IOLoop, names: Names, host: str, family: int
) -> None:
    answer = ThreadedResolver().resolve(host, 80, family)
    with pytest.raises(ResolveError, match="address of another family"):
        answer.result()
    assert names.asked == []


def test_a_name_is_no_literal() -> None:
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


class TestSharing:
    def test_one_look_up_for_all_who_ask(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        answers = [resolver.resolve("host.test", port) for port in (80, 443)]
        answers.append(resolver.resolve("HOST.test", 80))
        names.let(1)
        found = loop.run_sync(lambda: convert_yielded(answers))
        assert found == [[(AF_INET, ("192.0.2.1", port))] for port in (80, 443, 80)]
        assert names.asked == ["host.test"]

    def test_families_are_looked_up_for_themselves(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        names.let(2)
        for family in (AF_INET, AF_INET6):
            loop.run_sync(partial(resolver.resolve, "host.test", 80, family))
        assert names.asked == ["host.test"] * 2

    def test_one_who_gives_up_leaves_it_to_the_others(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        first, second = (resolver.resolve("host.test", 80) for _ in range(2))
        first.cancel()
        names.let(1)
        assert loop.run_sync(lambda: second) == [(AF_INET, ("192.0.2.1", 80))]
        assert first.cancelled()
        assert names.asked == ["host.test"]

    def test_the_last_one_who_gives_up_ends_it(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        answers = [resolver.resolve("host.test", 80) for _ in range(2)]
        assert names.begun.acquire(timeout=10)
        for answer in answers:
            answer.cancel()
        turns(loop, 2)
        assert loop.statistics()["timers"] == 0
        # A new one, and not the one that was given up.
        again = resolver.resolve("host.test", 80)
        assert names.begun.acquire(timeout=10)
        names.let(2)
        loop.run_sync(lambda: again)
        assert names.asked == ["host.test"] * 2

    def test_an_error_for_each(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        answers = [resolver.resolve("no-host.test", 80) for _ in range(2)]
        names.let(1)
        errors = []
        for answer in answers:
            with pytest.raises(ResolveError) as caught:
                loop.run_sync(partial(convert_yielded, answer))
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert names.asked == ["no-host.test"]

    def test_loops_share_nothing(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        names.let(2)
        loop.run_sync(lambda: resolver.resolve("host.test", 80))
        other = IOLoop(make_current=False, network=names)
        other.run_sync(lambda: resolver.resolve("host.test", 80))
        other.close()
        assert names.asked == ["host.test"] * 2


class TestKeeping:
    """On a loop whose clock the test moves."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def loop(self, names: Names, clock: Clock) -> Iterator[IOLoop]:
        names.let(1000)
        loop = IOLoop(clock=clock, network=names)
        yield loop
        loop.close()

    def ask(self, loop: IOLoop, resolver: ThreadedResolver, host: str = "host.test") -> Any:
        try:
            return loop.run_sync(lambda: resolver.resolve(host, 80))
        except ResolveError as error:
            return error.errno

    def test_for_its_time(self, loop: IOLoop, names: Names, clock: Clock) -> None:
        resolver = ThreadedResolver(ttl=10)
        first = self.ask(loop, resolver)
        clock.now += 9.9
        assert self.ask(loop, resolver) == first
        assert len(names.asked) == 1
        clock.now += 0.1
        self.ask(loop, resolver)
        assert len(names.asked) == 2

    def test_what_a_caller_does_to_it_is_his_affair(self, loop: IOLoop) -> None:
        resolver = ThreadedResolver()
        first = self.ask(loop, resolver)
        first.clear()
        assert self.ask(loop, resolver)

    def test_absence_for_a_second(self, loop: IOLoop, names: Names, clock: Clock) -> None:
        resolver = ThreadedResolver(ttl=10)
        for after, asked in ((0, 1), (0.9, 1), (0.1, 2)):
            clock.now += after
            assert self.ask(loop, resolver, "no-host.test") == socket.EAI_NONAME
            assert len(names.asked) == asked

    def test_not_that_there_was_no_answer(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver()
        for _ in range(2):
            assert self.ask(loop, resolver, "later.test") == socket.EAI_AGAIN
        assert len(names.asked) == 2

    def test_nothing_if_so_wished(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver(ttl=0)
        for host in ("host.test", "no-host.test") * 2:
            self.ask(loop, resolver, host)
        assert len(names.asked) == 4

    def test_the_least_used_goes(self, loop: IOLoop, names: Names) -> None:
        resolver = ThreadedResolver(max_entries=2)
        for host in ("a", "b", "a", "c", "a", "b"):
            self.ask(loop, resolver, host)
        assert names.asked == ["a", "b", "c", "b"]


class TestLimits:
    def test_a_look_up_that_hangs_is_over_in_time(self, names: Names) -> None:
        with closing_loop() as loop:
            monkey = names.getaddrinfo
            loop.network.getaddrinfo = monkey  # type: ignore[method-assign]
            before = loop.time()
            with pytest.raises(ResolveError, match=r"no answer within 7 s$") as caught:
                loop.run_sync(lambda: ThreadedResolver(timeout=7).resolve("host.test", 80))
            assert caught.value.errno == socket.EAI_AGAIN
            assert loop.time() == before + 7
            assert loop.statistics()["timers"] == 0

    def test_waiting_for_a_turn_counts(self, names: Names) -> None:
        with closing_loop() as loop:
            loop.network.getaddrinfo = names.getaddrinfo  # type: ignore[method-assign]
            resolver = ThreadedResolver(max_threads=1, timeout=7)
            answers = [resolver.resolve(host, 80) for host in ("a.test", "b.test")]
            assert names.begun.acquire(timeout=10)
            for answer in answers:
                with pytest.raises(ResolveError, match="no answer within"):
                    loop.run_sync(partial(convert_yielded, answer))
            assert names.asked == ["a.test"]

    def test_the_loop_goes_on_meanwhile(self, loop: IOLoop, names: Names) -> None:
        answer = ThreadedResolver().resolve("host.test", 80)
        assert names.begun.acquire(timeout=10)
        turns(loop, 100)
        assert not answer.done()
        names.let(1)
        loop.run_sync(lambda: answer)

    def test_the_queue_has_an_end(
        self, loop: IOLoop, names: Names, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coro.resolver.MAX_QUEUE", 2)
        resolver = ThreadedResolver(max_threads=1)
        answers = [resolver.resolve("first.test", 80)]
        assert names.begun.acquire(timeout=10)
        answers += [resolver.resolve(f"host{n}.test", 80) for n in range(2)]
        with pytest.raises(ResolveError, match="2 look-ups are waiting"):
            resolver.resolve("more.test", 80).result()
        names.let(3)
        loop.run_sync(lambda: convert_yielded(answers))
        assert "more.test" not in names.asked

    def test_no_thread_can_be_started(
        self, loop: IOLoop, names: Names, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolver = ThreadedResolver()

        def start(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(ResolveError, match="can't start new thread"):
                resolver.resolve("host.test", 80).result()
        names.let(1)
        assert loop.run_sync(lambda: resolver.resolve("host.test", 80))
        assert names.asked == ["host.test"]

    @pytest.mark.parametrize("settings", [{"max_threads": 0}, {"timeout": 0}, {"timeout": -1}])
    def test_settings_that_make_no_sense(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            ThreadedResolver(**settings)

    def test_a_network_that_fails_in_its_own_way(self, loop: IOLoop) -> None:
        def getaddrinfo(host: str, port: int, family: int, *, numeric: bool) -> Any:
            raise socket.gaierror if numeric else ZeroDivisionError("oh")

        loop.network.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
        with pytest.raises(ResolveError, match="ZeroDivisionError"):
            loop.run_sync(lambda: ThreadedResolver().resolve("host.test", 80))

    def test_a_loop_that_closes_meanwhile(self, names: Names) -> None:
        resolver = ThreadedResolver()
        loop = IOLoop(network=names)
        answer = resolver.resolve("host.test", 80)
        assert names.begun.acquire(timeout=10)
        loop.close()
        names.let(1)
        resolver.close()
        assert not answer.done()


class TestOverrides:
    @pytest.mark.parametrize(
        ("mapping", "expected"),
        [
            ({"host.test": "127.0.0.1"}, ("127.0.0.1", 80)),
            ({("host.test", 80): "127.0.0.1"}, ("127.0.0.1", 80)),
            ({("host.test", 80): ("127.0.0.1", 8080)}, ("127.0.0.1", 8080)),
            ({("host.test", 80, AF_INET): ("127.0.0.1", 8080)}, ("127.0.0.1", 8080)),
            ({"host.test": "127.0.0.1", ("host.test", 80): "127.0.0.2"}, ("127.0.0.2", 80)),
            ({"host.test": "other.test"}, ("192.0.2.1", 80)),
            ({("host.test", 81): "127.0.0.1"}, ("192.0.2.1", 80)),
            ({("host.test", 80, AF_INET6): "::1"}, ("192.0.2.1", 80)),
        ],
    )
    def test_a_host_is_put_elsewhere(
        self, loop: IOLoop, names: Names, mapping: Any, expected: Any
    ) -> None:
        names.let(1)
        resolver = OverrideResolver(ThreadedResolver(), mapping)
        found = loop.run_sync(lambda: resolver.resolve("host.test", 80, AF_INET))
        assert found == [(AF_INET, expected)]
        assert names.asked == ([] if expected[0] != "192.0.2.1" else [names.asked[0]])
        resolver.close()


@pytest.mark.parametrize("how", ["fails", "is given up", "times out"])
def test_what_ended_leaves_no_circle(names: Names, how: str) -> None:
    with closing_loop() as loop:
        loop.network.getaddrinfo = names.getaddrinfo  # type: ignore[method-assign]
        gc.collect()
        gc.disable()
        try:
            resolver = ThreadedResolver()
            answer = resolver.resolve("no-host.test", 80)
            assert names.begun.acquire(timeout=10)
            if how == "is given up":
                answer.cancel()
            elif how == "fails":
                # Handed over by the thread before the clock leaps.
                names.let(1)
                while not loop._ready:
                    pass
            while not answer.done():
                step(loop)
            assert answer.cancelled() or isinstance(answer.exception(), ResolveError)
            died = weakref.ref(answer)
            del answer
            turns(loop)
            assert died() is None
            assert gc.collect() == 0
        finally:
            gc.enable()
