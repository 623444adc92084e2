"""The names of ``coro.gen``, and random trees of coroutines against a model of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coro
from coro import gen
from coro.errors import CancelledError
from coro.future import Future
from coro.gen import (
    all_tasks,
    coroutine,
    maybe_future,
    moment,
    run,
    sleep,
    timeout,
)
from coro.loop import IOLoop
from tests.support.virtual import closing_loop


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        yield loop


class TestNames:
    def test_all_that_is_promised_is_there(self) -> None:
        for name in gen.__all__:
            assert hasattr(gen, name)
        assert gen.TimeoutError is TimeoutError
        assert gen.CancelledError is CancelledError
        assert coro.run is run

    def test_maybe_future(self, loop: IOLoop) -> None:
        future: Future[int] = Future()
        assert maybe_future(future) is future
        assert maybe_future(5).result() == 5
        assert maybe_future(None).result() is None

    def test_moment_names_itself(self) -> None:
        assert repr(moment) == "coro.gen.moment"


# --- random trees of coroutines against a model ---------------------------------------------------
#
# A tree is run on the virtual clock, where only sleeping takes time, and computed by ``Model``,
# which knows nothing of tasks: it walks the tree with the moments at which cancellations will
# arrive. All sleeps last whole seconds, and each time limit and each cancellation has a fraction of
# its own, so that no two things that matter happen at the same moment.


@dataclass(frozen=True)
class Sleep:
    seconds: int


@dataclass(frozen=True)
class Fail:
    pass


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Together:
    parts: tuple[Any, ...]
    as_dict: bool


@dataclass(frozen=True)
class Limit:
    seconds: int
    part: Any


@dataclass(frozen=True)
class Finally:
    part: Any
    seconds: int


@dataclass(frozen=True)
class Survive:
    part: Any


@dataclass(frozen=True)
class Catch:
    part: Any


OK, FAILED, LATE, CANCELLED = "ok", "failed", "late", "cancelled"


def fraction(number: int) -> float:
    """A part of a second that no sum of others makes."""
    return 2.0 ** -(number + 1)


class Model:
    """Says when and how a tree ends, given when cancellations arrive."""

    def __init__(self) -> None:
        self.limits = 0
        self.finals = 0

    def walk(self, node: Any, now: float, cancels: tuple[float, ...]) -> tuple[float, str]:
        if isinstance(node, Sleep):
            return self.sleep(node.seconds, now, cancels)
        if isinstance(node, Fail):
            return now, FAILED
        if isinstance(node, Sequence):
            outcome = OK
            for part in node.parts:
                now, outcome = self.walk(part, now, cancels)
                if outcome != OK:
                    break
            return now, outcome
        if isinstance(node, Together):
            ends = [self.walk(part, now, cancels) for part in node.parts]
            end = max((at for at, _ in ends), default=now)
            if any(now < cancel <= end for cancel in cancels):
                return end, CANCELLED
            return end, next((outcome for _, outcome in ends if outcome != OK), OK)
        if isinstance(node, Limit):
            self.limits += 1
            expiry = now + node.seconds + fraction(self.limits)
            end, outcome = self.walk(node.part, now, (*cancels, expiry))
            told_by_others = any(now < cancel <= end for cancel in cancels)
            if expiry <= end and outcome == CANCELLED and not told_by_others:
                outcome = LATE
            return end, outcome
        if isinstance(node, Finally):
            now, outcome = self.walk(node.part, now, cancels)
            self.finals += 1
            now, tidying = self.sleep(node.seconds, now, cancels)
            return now, outcome if tidying == OK else tidying
        now, outcome = self.walk(node.part, now, cancels)
        swallowed = (CANCELLED,) if isinstance(node, Survive) else (FAILED, LATE)
        return now, OK if outcome in swallowed else outcome

    @staticmethod
    def sleep(seconds: int, now: float, cancels: tuple[float, ...]) -> tuple[float, str]:
        due = now + seconds
        hit = min((cancel for cancel in cancels if now < cancel < due), default=math.inf)
        return (hit, CANCELLED) if hit < due else (due, OK)


class Real:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.limits = 0
        self.finals = 0

    @coroutine
    def walk(self, node: Any) -> Any:
        if isinstance(node, Sleep):
            yield sleep(node.seconds)
        elif isinstance(node, Fail):
            raise ZeroDivisionError
        elif isinstance(node, Sequence):
            for part in node.parts:
                yield self.walk(part)
        elif isinstance(node, Together):
            parts = [self.walk(part) for part in node.parts]
            yield dict(enumerate(parts)) if node.as_dict else parts
        elif isinstance(node, Limit):
            self.limits += 1
            with timeout(node.seconds + fraction(self.limits)):
                yield self.walk(node.part)
        elif isinstance(node, Finally):
            try:
                yield self.walk(node.part)
            finally:
                self.finals += 1
                yield sleep(node.seconds)
        elif isinstance(node, Survive):
            try:
                yield self.walk(node.part)
            except CancelledError:
                pass
        else:
            try:
                yield self.walk(node.part)
            except (ZeroDivisionError, TimeoutError):
                pass


seconds = st.integers(1, 6)
trees = st.recursive(
    st.builds(Sleep, seconds) | st.builds(Fail),
    lambda part: st.one_of(
        st.builds(Sequence, st.lists(part, max_size=3).map(tuple)),
        st.builds(Together, st.lists(part, max_size=3).map(tuple), st.booleans()),
        st.builds(Limit, seconds, part),
        st.builds(Finally, part, seconds),
        st.builds(Survive, part),
        st.builds(Catch, part),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(tree=trees, cancels=st.lists(st.integers(0, 20), max_size=3))
def test_random_trees_end_when_and_as_the_model_says(tree: Any, cancels: list[int]) -> None:
    with closing_loop() as loop:
        started = loop.time()
        real = Real()
        task = real.walk(tree)
        moments = tuple(started + at + fraction(30 + n) for n, at in enumerate(cancels))
        for at in moments:
            loop.call_at(at, task.cancel)
        ended: list[float] = []
        task.add_done_callback(lambda _: ended.append(loop.time()))
        loop.call_at(started + 10_000, loop.stop)
        loop.start()
        assert task.done()
        if task.cancelled():
            outcome = CANCELLED
        else:
            error = task.exception()
            outcome = {type(None): OK, ZeroDivisionError: FAILED, TimeoutError: LATE}[type(error)]
        model = Model()
        assert (ended[0], outcome) == model.walk(tree, started, moments)
        assert real.finals == model.finals
        counts = loop.statistics()
        assert (counts["tasks"], counts["timers"], counts["ready"]) == (0, 0, 0)
        assert all_tasks() == set()
