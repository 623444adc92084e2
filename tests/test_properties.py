"""Random trees of coroutines, time limits and cancellations, against a model.

The model is a function: given a tree, the time at which it starts and the times at which it is
cancelled, it tells how and when the tree ends. The coroutines do the same on a virtual clock. No
two moments of a run coincide (``Times``), so the model need not know in which order things happen
that happen at once; other tests do that.
"""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from coro.errors import CancelledError, TimeoutError
from coro.future import Future
from coro.gen import Task, coroutine, multi, shield, sleep, timeout
from coro.loop import IOLoop
from tests.support.virtual import Clock, closing_loop

# How things end, and when.
VALUE, ERROR, CANCELLED, TIMEOUT = "value", "error", "cancelled", "timeout"
End = tuple[str, float]


@dataclass
class Times:
    """Durations whose sums never coincide: each has a binary digit that no other has.

    All are multiples of 2**-40 below 2**12, so a clock of floats adds them without rounding.
    """

    used: int = 0

    def unique(self, whole: int) -> float:
        self.used += 1
        assert self.used <= 40
        return whole + 2.0**-self.used


@dataclass
class Sleep:
    """Waits, then returns or raises."""

    seconds: float
    fails: bool


@dataclass
class InTurn:
    """Waits for one after the other."""

    parts: list[Any]


@dataclass
class SideBySide:
    """Waits for a list or a dict."""

    parts: list[Any]
    as_dict: bool


@dataclass
class Limited:
    """``with timeout(...)``."""

    seconds: float
    part: Any


@dataclass
class Caught:
    """Ends well, however its part ended."""

    part: Any


@dataclass
class Shielded:
    """Passes no cancellation on."""

    part: Any


@dataclass
class CleansUp:
    """Waits in a ``finally``."""

    part: Any
    seconds: float


Tree = Sleep | InTurn | SideBySide | Limited | Caught | Shielded | CleansUp


@dataclass
class Model:
    """What must come of a tree."""

    # Ends of what a cancellation left running behind a shield.
    behind: list[float] = field(default_factory=list)
    cleaned: int = 0

    def wait(self, start: float, seconds: float, cancels: list[float]) -> End:
        """A sleep; the first cancellation in its time ends it."""
        for moment in cancels:
            if start < moment < start + seconds:
                return CANCELLED, moment
        return VALUE, start + seconds

    def run(self, tree: Tree, start: float, cancels: list[float]) -> End:
        match tree:
            case Sleep(seconds, fails):
                how, end = self.wait(start, seconds, cancels)
                return (ERROR if fails and how == VALUE else how), end
            case InTurn(parts):
                how, end = VALUE, start
                for part in parts:
                    how, end = self.run(part, end, cancels)
                    if how != VALUE:
                        break
                return how, end
            case SideBySide(parts):
                ends = [self.run(part, start, cancels) for part in parts]
                end = max((when for _, when in ends), default=start)
                if any(start < moment <= end for moment in cancels):
                    return CANCELLED, end
                return next((how for how, _ in ends if how != VALUE), VALUE), end
            case Limited(seconds, part):
                deadline = start + seconds
                how, end = self.run(part, start, sorted([*cancels, deadline]))
                if how == CANCELLED and deadline <= end:
                    others = any(start < moment <= end for moment in cancels)
                    return (CANCELLED if others else TIMEOUT), end
                return how, end
            case Caught(part):
                return VALUE, self.run(part, start, cancels)[1]
            case Shielded(part):
                how, end = self.run(part, start, [])
                for moment in cancels:
                    if start < moment < end:
                        self.behind.append(end)
                        return CANCELLED, moment
                return how, end
            case CleansUp(part, seconds):
                how, end = self.run(part, start, cancels)
                self.cleaned += 1
                after, end = self.wait(end, seconds, cancels)
                return (how if after == VALUE else after), end


class Oops(Exception):
    """What trees raise."""


@dataclass
class Reality:
    """The same with coroutines."""

    cleanings: Counter[int] = field(default_factory=Counter)

    @coroutine
    def run(self, tree: Tree) -> Any:
        match tree:
            case Sleep(seconds, fails):
                yield sleep(seconds)
                if fails:
                    raise Oops
            case InTurn(parts):
                for part in parts:
                    yield self.run(part)
            case SideBySide(parts, as_dict):
                if as_dict:
                    yield multi(dict(enumerate(map(self.run, parts))), quiet_exceptions=Exception)
                else:
                    yield multi([self.run(part) for part in parts], quiet_exceptions=Exception)
            case Limited(seconds, part):
                with timeout(seconds):
                    yield self.run(part)
            case Caught(part):
                try:
                    yield self.run(part)
                except (Oops, CancelledError, TimeoutError):
                    pass
            case Shielded(part):
                yield shield(self.run(part))
            case CleansUp(part, seconds):
                try:
                    yield self.run(part)
                finally:
                    self.cleanings[id(tree)] += 1
                    yield sleep(seconds)


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, list[float]]:
    """A tree and the times at which it is cancelled."""
    times = Times()
    whole = st.integers(0, 60)

    def tree(depth: int) -> Tree:
        kinds = [Sleep] if depth == 0 or times.used > 25 else list(Tree.__args__)
        kind = draw(st.sampled_from(kinds))
        if kind is Sleep:
            return Sleep(times.unique(draw(whole)), draw(st.booleans()))
        if kind is InTurn:
            return InTurn([tree(depth - 1) for _ in range(draw(st.integers(0, 3)))])
        if kind is SideBySide:
            parts = [tree(depth - 1) for _ in range(draw(st.integers(0, 3)))]
            return SideBySide(parts, draw(st.booleans()))
        if kind is Limited:
            return Limited(times.unique(draw(whole)), tree(depth - 1))
        if kind is CleansUp:
            return CleansUp(tree(depth - 1), times.unique(draw(whole)))
        return kind(tree(depth - 1))

    root = tree(draw(st.integers(1, 4)))
    cancels = [times.unique(draw(st.integers(0, 100))) for _ in range(draw(st.integers(0, 3)))]
    return root, sorted(cancels)


@settings(
    max_examples=1500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=trees())
@pytest.mark.usefixtures("no_collector")
def test_trees_end_as_the_model_says(case: tuple[Tree, list[float]]) -> None:
    tree, cancels = case
    # The collector is blind to all that is there already.
    gc.freeze()
    with closing_loop() as loop:
        check(loop, tree, cancels)
    del loop
    assert gc.collect() == 0


def check(loop: IOLoop, tree: Tree, cancels: list[float]) -> None:
    clock = loop.time
    assert isinstance(clock, Clock)
    clock.now = start = 1024.0
    cancels = [start + moment for moment in cancels]
    model = Model()
    expected = model.run(tree, start, cancels)
    reality = Reality()
    ended_at: list[float] = []

    def begin() -> Future[Any]:
        task: Task[Any] = reality.run(tree)
        for moment in cancels:
            loop.call_at(moment, task.cancel)
        task.add_done_callback(lambda _: ended_at.append(loop.time()))
        return task

    try:
        loop.run_sync(begin)
        how = VALUE
    except Oops:
        how = ERROR
    except TimeoutError:
        how = TIMEOUT
    except CancelledError:
        how = CANCELLED
    event(how)
    assert (how, *ended_at) == expected

    # What goes on behind shields, and cancellations that come too late.
    last = max([*model.behind, *cancels, clock.now])
    loop.run_sync(lambda: sleep(last - clock.now + 1))
    assert reality.cleanings.total() == model.cleaned
    assert set(reality.cleanings.values()) <= {1}
    assert loop.statistics()["tasks"] == loop.statistics()["timers"] == 0
