"""The race for the first connection, with addresses and attempts that the test plays itself."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from coro.connector import ATTEMPT_DELAY, RESOLUTION_DELAY, connect_first
from coro.errors import Attempt, CancelledError, ConnectError, ResolveError
from coro.future import Future
from coro.gen import Task, coroutine, sleep
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6
from tests.support.virtual import closing_loop, step, turns

V6 = [(AF_INET6, (f"2001:db8::{n}", 80, 0, 0)) for n in range(1, 4)]
V4 = [(AF_INET, (f"192.0.2.{n}", 80)) for n in range(1, 4)]


class Stream:
    """What an attempt of the test connects."""

    def __init__(self, address: Any) -> None:
        self.address = address
        self.attempts: Any = ()
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Play:
    """A race whose look-ups and attempts end when the test says so.

    Attributes:
        begun: the addresses tried, each with the seconds after the start at which it was.
        ends: by address, the future that ends its attempt.
        given_up: the addresses whose attempts were cancelled.
        refused: the addresses to which attempts cannot even begin.
        resolved: the seconds at which the first answers were told.
    """

    def __init__(self, loop: IOLoop, *families: int, **settings: Any) -> None:
        self.loop = loop
        self.began = loop.time()
        self.lookups: dict[int, Future[Any]] = {f: Future(loop=loop) for f in families}
        self.begun: list[tuple[Any, float]] = []
        self.ends: dict[Any, Future[Any]] = {}
        self.given_up: list[Any] = []
        self.made: list[Stream] = []
        self.refused: set[Any] = set()
        self.resolved: list[float] = []
        self.attempts: list[Attempt] = []
        self.race: Task[Any] = self._race(settings)

    @coroutine
    def _race(self, settings: dict[str, Any]) -> Any:
        return (
            yield from connect_first(
                "example.test:80",
                dict(self.lookups),
                self._begin,
                self._on_resolved,
                self.attempts,
                **settings,
            )
        )

    def _on_resolved(self) -> None:
        self.resolved.append(self.loop.time() - self.began)

    def _begin(self, address: Any) -> Any:
        if address in self.refused:
            raise OSError(errno.EADDRNOTAVAIL, "not ours")
        return self._attempt(address)

    @coroutine
    def _attempt(self, address: Any) -> Any:
        self.begun.append((address, round(self.loop.time() - self.began, 6)))
        end = self.ends[address] = Future(loop=self.loop)
        try:
            yield end
        except CancelledError:
            self.given_up.append(address)
            raise
        stream = Stream(address)
        self.made.append(stream)
        return stream

    def fail(self, address: Any, code: int = errno.ECONNREFUSED) -> None:
        self.ends[address].set_exception(OSError(code, "it failed"))

    def run(self) -> Any:
        return self.loop.run_sync(lambda: self.race)

    @property
    def tried(self) -> list[Any]:
        return [address for address, _ in self.begun]


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop
        assert loop.statistics()["timers"] == 0
        assert loop.statistics()["tasks"] == 0


def settle(loop: IOLoop) -> None:
    """Run turns until nothing is ready."""
    while loop._ready:
        turns(loop)


def test_families_take_turns(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET6].set_result(V6)
    play.lookups[AF_INET].set_result(V4)
    expected = [V6[0], V4[0], V6[1], V4[1], V6[2], V4[2]]
    for address in expected:
        settle(loop)
        assert play.tried[-1] == address
        play.fail(address)
    with pytest.raises(ConnectError) as caught:
        play.run()
    assert play.tried == expected
    assert [attempt.address for attempt in caught.value.attempts] == [a[1] for a in expected]
    assert caught.value.errno == errno.ECONNREFUSED
    assert "example.test:80" in str(caught.value)
    assert "[2001:db8::1]:80: [Errno 111] it failed" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_silent_address_delays_the_next_by_a_quarter_of_a_second(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET6].set_result(V6[:2])
    play.lookups[AF_INET].set_result(V4[:1])
    while len(play.begun) < 3:
        step(loop)
    times = [time for _, time in play.begun]
    assert times == [0, ATTEMPT_DELAY, 2 * ATTEMPT_DELAY]
    play.ends[V4[0]].set_result(None)
    stream = play.run()
    assert stream.address == V4[0]
    assert sorted(play.given_up) == [V6[0], V6[1]]


def test_a_failure_begins_the_next_at_once(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4[:2])
    settle(loop)
    play.fail(V4[0])
    settle(loop)
    assert play.begun == [(V4[0], 0), (V4[1], 0)]
    play.ends[V4[1]].set_result(None)
    stream = play.run()
    assert [attempt.error is None for attempt in stream.attempts] == [False, True]


def test_ipv6_goes_first_if_it_answers_within_its_delay(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET].set_result(V4[:1])
    settle(loop)
    assert play.begun == []
    assert play.resolved == [0]
    play.lookups[AF_INET6].set_result(V6[:1])
    settle(loop)
    assert play.tried == [V6[0]]
    play.ends[V6[0]].set_result(None)
    assert play.run().address == V6[0]


def test_ipv4_does_not_wait_longer(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET].set_result(V4[:1])
    while not play.begun:
        step(loop)
    assert play.begun == [(V4[0], RESOLUTION_DELAY)]
    play.ends[V4[0]].set_result(None)
    assert play.run().address == V4[0]
    assert play.lookups[AF_INET6].cancelled()


def test_ipv4_does_not_wait_for_ipv6_that_failed(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET6].set_exception(ResolveError(-2, "no such name", "example.test"))
    play.lookups[AF_INET].set_result(V4[:1])
    settle(loop)
    assert play.begun == [(V4[0], 0)]
    play.ends[V4[0]].set_result(None)
    assert play.run().address == V4[0]


def test_addresses_that_come_late_are_tried_too(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET6].set_result(V6[:1])
    settle(loop)
    play.fail(V6[0])
    settle(loop)
    assert not play.race.done()
    play.lookups[AF_INET].set_result(V4[:1])
    settle(loop)
    play.ends[V4[0]].set_result(None)
    assert play.run().address == V4[0]


def test_an_address_that_both_answers_have_is_tried_once(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET6].set_result(V4[:1])
    play.lookups[AF_INET].set_result(V4[:1])
    settle(loop)
    play.fail(V4[0])
    with pytest.raises(ConnectError):
        play.run()
    assert play.tried == [V4[0]]


def test_no_family_resolves(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    first = ResolveError(-2, "no such name", "example.test")
    play.lookups[AF_INET6].set_exception(first)
    play.lookups[AF_INET].set_exception(ResolveError(-3, "again later", "example.test"))
    with pytest.raises(ResolveError) as caught:
        play.run()
    assert caught.value is first


def test_answers_without_addresses(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result([])
    with pytest.raises(ResolveError, match=r"example\.test"):
        play.run()


def test_two_that_connect_in_one_turn_leave_one(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4[:2])
    while len(play.begun) < 2:
        step(loop)
    play.ends[V4[0]].set_result(None)
    play.ends[V4[1]].set_result(None)
    stream = play.run()
    assert len(play.made) == 2
    assert [made for made in play.made if not made.closed] == [stream]


@pytest.mark.parametrize("wait", range(12))
def test_cancelled_at_every_turn(loop: IOLoop, wait: int) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    loop.call_later(0.02, play.lookups[AF_INET].set_result, V4[:2])
    late = loop.call_later(0.03, play.lookups[AF_INET6].set_exception, ValueError("no"))
    for _ in range(wait):
        step(loop)
    play.race.cancel()
    with pytest.raises(CancelledError):
        play.run()
    settle(loop)
    assert sorted(play.given_up) == sorted(play.tried)
    for lookup in play.lookups.values():
        if not lookup.done():
            pytest.fail("a look-up goes on")
        elif not lookup.cancelled():
            lookup.exception()
    loop._timers.clear()
    assert late.callback is None


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [V6[0], V4[0], V6[1], V4[1], V6[2], V4[2]]),
        (2, [V6[0], V6[1], V4[0], V6[2], V4[1], V4[2]]),
        (9, [V6[0], V6[1], V6[2], V4[0], V4[1], V4[2]]),
    ],
)
def test_how_many_of_the_first_family_go_first(
    loop: IOLoop, count: int, expected: list[Any]
) -> None:
    play = Play(loop, AF_INET6, AF_INET, first_family_count=count)
    play.lookups[AF_INET6].set_result(V6)
    play.lookups[AF_INET].set_result(V4)
    for address in expected:
        settle(loop)
        assert play.tried[-1] == address
        play.fail(address)
    with pytest.raises(ConnectError):
        play.run()
    assert play.tried == expected


@pytest.mark.parametrize("delay", [0.01, 2])
def test_the_delay_may_be_set(loop: IOLoop, delay: float) -> None:
    play = Play(loop, AF_INET, attempt_delay=delay)
    play.lookups[AF_INET].set_result(V4)
    while len(play.begun) < 3:
        step(loop)
    assert [time for _, time in play.begun] == [0, delay, 2 * delay]
    play.ends[V4[0]].set_result(None)
    play.run()


@pytest.mark.parametrize(
    "settings",
    [
        {"attempt_delay": 0.0099},
        {"attempt_delay": 2.001},
        {"attempt_delay": float("nan")},
        {"first_family_count": 0},
    ],
)
def test_settings_out_of_bounds(loop: IOLoop, settings: dict[str, Any]) -> None:
    play = Play(loop, AF_INET6, AF_INET, **settings)
    with pytest.raises(ValueError, match=next(iter(settings))):
        play.run()
    # The look-ups that were under way are given up.
    assert all(lookup.cancelled() for lookup in play.lookups.values())


def test_a_failure_does_not_put_off_the_next_one(loop: IOLoop) -> None:
    """The delay counts from the last attempt that began; a failure ends it, whichever fails."""
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4)
    while len(play.begun) < 2:
        step(loop)
    loop.call_later(0.1, play.fail, V4[0])
    while len(play.begun) < 3:
        step(loop)
    assert play.begun[2] == (V4[2], ATTEMPT_DELAY + 0.1)
    play.ends[V4[1]].set_result(None)
    play.run()


def test_an_attempt_that_cannot_begin(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.refused.add(V4[0])
    play.lookups[AF_INET].set_result(V4[:2])
    settle(loop)
    assert play.begun == [(V4[1], 0)]
    play.ends[V4[1]].set_result(None)
    stream = play.run()
    assert [attempt.address for attempt in stream.attempts] == [V4[0][1], V4[1][1]]
    assert stream.attempts[0].error.errno == errno.EADDRNOTAVAIL


def test_the_record_of_a_race_that_was_won(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4)
    while len(play.begun) < 3:
        step(loop)
    play.fail(V4[1])
    settle(loop)
    play.ends[V4[0]].set_result(None)
    stream = play.run()
    failed, abandoned, won = stream.attempts
    assert isinstance(failed.error, OSError)
    assert (failed.address, round(failed.seconds, 6)) == (V4[1][1], ATTEMPT_DELAY)
    assert abandoned.error is None
    assert (abandoned.address, abandoned.seconds) == (V4[2][1], 0)
    assert won.error is None
    assert (won.address, round(won.seconds, 6)) == (V4[0][1], 2 * ATTEMPT_DELAY)
    assert play.attempts is stream.attempts


def test_the_record_of_a_race_that_was_given_up(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4)
    while len(play.begun) < 2:
        step(loop)
    play.race.cancel()
    with pytest.raises(CancelledError):
        play.run()
    assert [(attempt.address, attempt.error) for attempt in play.attempts] == [
        (V4[0][1], None),
        (V4[1][1], None),
    ]
    assert str(play.attempts[0]) == "192.0.2.1:80: abandoned (250 ms)"


def test_the_order_within_a_family_is_kept(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    order = [V4[2], V4[0], V4[1]]
    play.lookups[AF_INET].set_result(order)
    for address in order:
        settle(loop)
        play.fail(address)
    with pytest.raises(ConnectError):
        play.run()
    assert play.tried == order


def test_addresses_that_come_in_mid_race_take_their_turn(loop: IOLoop) -> None:
    play = Play(loop, AF_INET6, AF_INET)
    play.lookups[AF_INET].set_result(V4)
    while len(play.begun) < 2:
        step(loop)
    play.lookups[AF_INET6].set_result(V6)
    while len(play.begun) < 5:
        step(loop)
    assert play.tried == [V4[0], V4[1], V6[0], V4[2], V6[1]]
    assert play.resolved == [0]
    play.ends[V4[0]].set_result(None)
    play.run()


def test_cancelled_in_the_turn_in_which_it_is_won(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4[:1])
    settle(loop)
    play.ends[V4[0]].set_result(None)
    turns(loop)
    assert play.made
    assert not play.race.done()
    play.race.cancel()
    with pytest.raises(CancelledError):
        play.run()
    assert play.made[0].closed


def test_the_time_limit_of_the_caller_ends_it(loop: IOLoop) -> None:
    play = Play(loop, AF_INET)
    play.lookups[AF_INET].set_result(V4[:1])

    @coroutine
    def main() -> Any:
        yield sleep(1)
        play.race.cancel()
        yield play.race

    with pytest.raises(CancelledError):
        loop.run_sync(main)
    assert play.given_up == [V4[0]]
