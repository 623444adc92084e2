"""The pool by itself: slots are never lost, connections never given away twice."""

from __future__ import annotations

import gc
import random
from collections.abc import Generator, Iterator
from typing import Any
from weakref import ref

import pytest

from coro.gen import Task, coroutine, sleep
from coro.http.connection import HTTPConnection
from coro.http.pool import JUST_NOW, ConnectionPool
from coro.loop import IOLoop
from tests.support.hosting import of_the_system
from tests.support.virtual import turns


@pytest.fixture
def pool(loop: IOLoop) -> Iterator[ConnectionPool]:
    made = ConnectionPool(loop, 2)
    yield made
    made.close()


class FakeStream:
    """Its connection's state."""

    def __init__(self, connection: ref[FakeConnection]) -> None:
        self._connection = connection

    def idle(self) -> bool:
        connection = self._connection()
        return connection is not None and connection.open and connection.clean

    def closed(self) -> bool:
        # Bytes that nobody asked for close it.
        return not self.idle()

    def still_idle(self) -> bool:
        connection = self._connection()
        assert connection is not None
        connection.asked += 1
        return self.idle()


class FakeConnection:
    """What the pool asks of a connection."""

    def __init__(self, key: str = "origin") -> None:
        self.key = key
        self.origin = ("http", key, 80)
        self.exchanges = 1
        self.idle_since = 0.0
        self.on_close: Any = None
        self.open = True
        self.clean = True
        self.asked = 0
        self.stream = FakeStream(ref(self))

    def close(self) -> None:
        if self.open:
            self.open = False
            on_close, self.on_close = self.on_close, None
            if on_close is not None:
                on_close(self)


def fake(key: str = "origin") -> HTTPConnection:
    made: Any = FakeConnection(key)
    return made  # type: ignore[no-any-return]


# --- slots -----------------------------------------------------------------------------------


@coroutine
def hold(pool: ConnectionPool, log: list[Any], name: Any = None) -> Generator[Any, Any, None]:
    """Take a slot and keep it for a second."""
    if not pool.try_acquire():
        yield from pool.acquire()
    try:
        log.append(name)
        assert 0 < pool.active <= pool.max_active
        yield sleep(1)
    finally:
        pool.release()


def counts(pool: ConnectionPool) -> tuple[int, int]:
    found = pool.statistics()
    return found["active"], found["waiting"]


def test_slots(loop: IOLoop, pool: ConnectionPool) -> None:
    assert [pool.try_acquire() for _ in range(3)] == [True, True, False]
    assert repr(pool) == "<ConnectionPool active=2/2 waiting=0 idle=0>"
    pool.release()
    assert pool.try_acquire()
    pool.release()
    pool.release()
    assert counts(pool) == (0, 0)


@of_the_system  # Which of several that end in one turn goes on first.
def test_first_come_first_served(loop: IOLoop, pool: ConnectionPool) -> None:
    log: list[int] = []
    loop.run_sync(lambda: [hold(pool, log, number) for number in range(7)])
    assert log == list(range(7))
    assert counts(pool) == (0, 0)


@of_the_system  # Which of several that end in one turn goes on first.
def test_nobody_overtakes_those_who_wait(loop: IOLoop, pool: ConnectionPool) -> None:
    """A slot given back goes to the first that waits, in that very moment."""
    log: list[str] = []
    tasks = [hold(pool, log, name) for name in ("a", "b", "waits", "waits too")]
    assert counts(pool) == (2, 2)

    @coroutine
    def newcomer() -> Any:
        yield sleep(1)
        assert not pool.try_acquire()
        yield hold(pool, log, "newcomer")

    loop.run_sync(lambda: [newcomer(), *tasks])
    assert log == ["a", "b", "waits", "waits too", "newcomer"]


@of_the_system  # Which of several that end in one turn goes on first.
def test_cancelled_while_waiting(loop: IOLoop, pool: ConnectionPool) -> None:
    log: list[int] = []
    tasks = [hold(pool, log, number) for number in range(6)]
    for number in (2, 4):
        tasks[number].cancel()
    turns(loop, 2)
    assert counts(pool) == (2, 2)
    loop.run_sync(lambda: [task for task in tasks if not task.done()])
    assert log == [0, 1, 3, 5]
    assert counts(pool) == (0, 0)


@pytest.mark.parametrize("cancel_first", [False, True])
def test_handed_over_in_the_turn_of_the_cancellation(
    loop: IOLoop, pool: ConnectionPool, cancel_first: bool
) -> None:
    """The slot goes on to the next one, and is not lost with the one that was cancelled."""
    log: list[str] = []
    assert pool.try_acquire()
    assert pool.try_acquire()
    victim = hold(pool, log, "victim")
    after = hold(pool, log, "next")
    assert counts(pool) == (2, 2)
    if cancel_first:
        victim.cancel()
    pool.release()
    if not cancel_first:
        victim.cancel()
    turns(loop, 3)
    assert victim.cancelled()
    assert log == ["next"]
    assert counts(pool) == (2, 0)
    loop.run_sync(lambda: after)
    pool.release()
    assert counts(pool) == (0, 0)


def test_all_that_wait_are_handed_slots_and_cancelled_at_once(
    loop: IOLoop, pool: ConnectionPool
) -> None:
    log: list[str] = []
    assert pool.try_acquire()
    assert pool.try_acquire()
    tasks = [hold(pool, log) for _ in range(5)]
    pool.release()
    pool.release()
    for task in tasks:
        task.cancel()
    turns(loop, 4)
    assert all(task.cancelled() for task in tasks)
    assert log == []
    assert counts(pool) == (0, 0)
    assert pool.try_acquire()
    pool.release()


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_no_slot_is_lost(loop: IOLoop, seed: int) -> None:
    chance = random.Random(seed)
    pool = ConnectionPool(loop, chance.randint(1, 4))
    log: list[int] = []
    tasks: list[Task[None]] = []
    for number in range(60):
        event = chance.random()
        if event < 0.5:
            tasks.append(hold(pool, log, number))
        elif event < 0.8 and tasks:
            chance.choice(tasks).cancel()
        elif event < 0.9:
            turns(loop, chance.randint(1, 2))
        else:
            loop.run_sync(lambda: sleep(chance.choice((0.5, 1))))
        assert 0 <= pool.active <= pool.max_active
        assert pool.active == pool.max_active or not pool.statistics()["waiting"]

    @coroutine
    def wait() -> Any:
        while not all(task.done() for task in tasks):
            yield sleep(1)

    loop.run_sync(wait)
    assert counts(pool) == (0, 0)
    ended = sum(not task.cancelled() for task in tasks)
    assert ended <= len(log) <= len(tasks)


def test_a_task_that_is_never_resumed_gives_its_slot_back(loop: IOLoop) -> None:
    """Its loop was closed: the generator is closed with its last reference."""
    pool = ConnectionPool(loop, 1)
    assert pool.try_acquire()
    waiting = pool.acquire()
    next(waiting)
    assert counts(pool) == (1, 1)
    waiting.close()
    assert counts(pool) == (1, 0)
    handed = pool.acquire()
    next(handed)
    pool.release()
    assert counts(pool) == (1, 0)
    handed.close()
    assert counts(pool) == (0, 0)


# --- connections -----------------------------------------------------------------------------


def test_the_last_one_first(loop: IOLoop, pool: ConnectionPool) -> None:
    first, second, third = fake(), fake(), fake()
    now = loop.time()
    for connection in (first, second, third):
        pool.put(connection, now)
    assert pool.idle == 3
    assert [pool.take("origin", now) for _ in range(4)] == [third, second, first, None]
    assert pool.idle == 0


def test_each_origin_has_its_own(loop: IOLoop, pool: ConnectionPool) -> None:
    here, there = fake("here"), fake("there")
    now = loop.time()
    pool.put(here, now)
    pool.put(there, now)
    assert pool.take("elsewhere", now) is None
    assert pool.take("there", now) is there
    assert pool.take("there", now) is None
    assert pool.take("here", now) is here


def test_what_cannot_be_used_is_closed(loop: IOLoop, pool: ConnectionPool) -> None:
    old, dirty, good, dirty_too = fake(), fake(), fake(), fake()
    for connection in (old, dirty, good, dirty_too):
        pool.put(connection, loop.time())
    for connection in (dirty, dirty_too):
        connection.clean = False  # type: ignore[attr-defined]
    old.idle_since = loop.time() - 61
    assert pool.take("origin", loop.time()) is good
    assert not dirty_too.open  # type: ignore[attr-defined]
    assert pool.take("origin", loop.time()) is None
    assert not old.open  # type: ignore[attr-defined]
    assert pool.idle == 0


def test_the_system_is_asked_unless_it_was_used_just_now(
    loop: IOLoop, pool: ConnectionPool
) -> None:
    kept: Any = fake()
    for seconds, asked in ((0, 0), (JUST_NOW / 2, 0), (JUST_NOW, 1), (50, 2)):
        pool.put(kept, 100)
        taken: Any = pool.take("origin", 100 + seconds)
        assert (taken, taken.asked) == (kept, asked)
    pool.close()


def test_what_its_peer_closed_is_forgotten(loop: IOLoop, pool: ConnectionPool) -> None:
    one, two = pool.opened(fake()), pool.opened(fake())
    pool.put(one, loop.time())
    pool.put(two, loop.time())
    one.close()
    assert pool.idle == 1
    two.close()
    assert pool.idle == 0
    pool.forget(two)
    assert pool.take("origin", loop.time()) is None


def test_a_connection_closed_after_it_was_taken(loop: IOLoop, pool: ConnectionPool) -> None:
    one = fake()
    pool.put(one, loop.time())
    other = fake()
    pool.put(other, loop.time())
    assert pool.take("origin", loop.time()) is other
    other.close()
    assert pool.idle == 1


def test_closing(loop: IOLoop, pool: ConnectionPool) -> None:
    connections = [fake("a"), fake("a"), fake("b")]
    for connection in connections:
        pool.put(connection, loop.time())
    assert loop.statistics()["timers"] == 1
    pool.close()
    assert not any(connection.open for connection in connections)  # type: ignore[attr-defined]
    assert pool.idle == 0
    assert loop.statistics()["timers"] == 0
    pool.close()


def test_sweeping(loop: IOLoop) -> None:
    pool = ConnectionPool(loop, 2, idle_seconds=10)
    first, second = fake("a"), fake("b")
    pool.put(first, loop.time())
    loop.run_sync(lambda: sleep(6))
    pool.put(second, loop.time())
    loop.run_sync(lambda: sleep(5))
    assert (first.open, second.open) == (False, True)  # type: ignore[attr-defined]
    assert pool.idle == 1
    loop.run_sync(lambda: sleep(10))
    assert (second.open, pool.idle) == (False, 0)  # type: ignore[attr-defined]
    assert loop.statistics()["timers"] == 0


def test_a_pool_leaves_nothing(loop: IOLoop) -> None:
    gc.collect()
    gc.disable()
    try:
        pool = ConnectionPool(loop, 2)
        for key in ("a", "a", "b"):
            pool.put(fake(key), loop.time())
        pool.take("a", loop.time())
        pool.close()
        del pool
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_longest_idle_makes_room(loop: IOLoop) -> None:
    """However many origins there are, no more connections are kept than one process can hold."""
    pool = ConnectionPool(loop, 2, max_idle=3)
    connections = [fake(key) for key in ("a", "b", "a", "c")]
    for second, connection in enumerate(connections[:3]):
        pool.put(connection, loop.time() + second)
    pool.make_room()
    assert [c.open for c in connections[:3]] == [False, True, True]  # type: ignore[attr-defined]
    pool.put(connections[3], loop.time() + 3)
    assert pool.idle == 3
    pool.make_room()
    assert [c.open for c in connections] == [False, False, True, True]  # type: ignore[attr-defined]
    pool.make_room()
    assert pool.idle == 2
    pool.close()


# --- origins ---------------------------------------------------------------------------------


@coroutine
def hold_for(pool: ConnectionPool, log: list[str], name: str) -> Generator[Any, Any, None]:
    """Take a slot for an origin, the first letter of the name, and keep it for a second."""
    origin = name[0]
    if not pool.try_acquire(origin):
        yield from pool.acquire(origin)
    try:
        log.append(name)
        assert 0 < pool.active <= pool.max_active
        yield sleep(1)
    finally:
        pool.release(origin)


def test_origins_take_turns(loop: IOLoop) -> None:
    pool = ConnectionPool(loop, 1)
    log: list[str] = []
    names = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
    loop.run_sync(lambda: [hold_for(pool, log, name) for name in names])
    assert log == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
    assert counts(pool) == (0, 0)


def test_a_limit_for_each_origin(loop: IOLoop) -> None:
    pool = ConnectionPool(loop, 3, max_per_origin=2)
    log: list[str] = []
    tasks = [hold_for(pool, log, name) for name in ("a1", "a2", "a3", "a4", "b1", "c1")]
    assert log == ["a1", "a2", "b1"]
    assert counts(pool) == (3, 3)
    tasks.pop(3).cancel()
    loop.run_sync(lambda: [task for task in tasks if not task.done()])
    assert sorted(log) == ["a1", "a2", "a3", "b1", "c1"]
    assert counts(pool) == (0, 0)
    assert not pool._busy
    assert not pool._waiters


def test_cancelled_at_random_with_origins(loop: IOLoop) -> None:
    """Whatever is cancelled when: no slot is lost, and no limit exceeded."""
    chance = random.Random(7)
    pool = ConnectionPool(loop, 4, max_per_origin=2)
    log: list[str] = []

    @coroutine
    def some() -> Generator[Any, Any, None]:
        tasks = [hold_for(pool, log, chance.choice("abc") + str(n)) for n in range(200)]
        while any(not task.done() for task in tasks):
            assert all(count <= 2 for count in pool._busy.values())
            assert sum(pool._busy.values()) == pool.active
            chance.choice(tasks).cancel()
            yield sleep(chance.choice([0.0, 0.3, 1.0]))

    loop.run_sync(some)
    assert counts(pool) == (0, 0)
    assert not pool._busy
    assert not pool._waiters


def test_too_old_to_be_used_again(loop: IOLoop) -> None:
    pool = ConnectionPool(loop, 2, lifetime=30)
    kept = fake()
    kept.opened = 100.0
    pool.put(kept, 120)
    assert pool.take("origin", 129) is kept
    pool.put(kept, 129)
    assert pool.take("origin", 130) is None
    assert not vars(kept)["open"]
    pool.close()
