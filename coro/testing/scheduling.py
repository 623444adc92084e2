"""The order of a turn, drawn by a seed: which of what is ready may move past which.

In production a turn runs what is ready in the order in which it became ready. A program that works
only because of that order has a bug that shows on the day on which something becomes ready a moment
sooner. So a simulated loop draws, for each turn, one of the orders that the program has to stand.

Not everything may move past everything. Entries of the ready queue stand in *lines*; inside a line
the order is kept, and whatever stands in no line with another entry may move past it:

- what waits for one future: its callbacks, and the tasks that yielded it;
- what waits in one line of a lock or a queue: permits and items go to the first in line, and he
  goes on before the second, whoever released them;
- what one task does: the callbacks that it adds, and its own next step after them. So also what is
  added within one step, where a task calls others;
- callbacks that are due at a deadline: they come by deadline, equal deadlines as they were added.

Everything else is independent: tasks that wait for different things, callbacks of different
futures, a timer and a task.

The queue knows when a turn begins, for a turn takes out exactly what stands in the queue at its
begin: when so many have been taken out, the next one asked for is the first of another turn.

Drawn with ``Random.random`` alone, whose sequence is the same in every version of Python; no line
is found by its place in memory or in a set.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextvars import Context
from random import Random
from typing import Any

from coro.future import Future
from coro.loop import IOLoop
from coro.net import Network
from coro.testing.leftovers import NotingLoop
from coro.timers import Timer

__all__ = ["SeededQueue", "SimLoop"]

# Longest time, in seconds, that a function takes which was meant for a thread.
_LONGEST_CALL = 0.01

# Lines that have no object: of the timers, and of callbacks that nobody signed.
_TIMERS, _UNSIGNED = object(), object()


class SeededQueue(deque[Any]):
    """A ready queue whose turns come in an order that is drawn.

    Arguments:
        random: what draws.
    """

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        # How many entries of the present turn have not been taken out.
        self._left = 0
        # What runs now: all that it adds has its order.
        self._step: object = object()
        # By the id of an entry that ``add_callback`` made: the entry (so that its id stays its
        # own), the task that called it, the step in which it did.
        self._signed: dict[int, tuple[Any, Any, object]] = {}

    def sign(self, task: Any) -> None:
        """Take note that a task (or None) just added the last entry by ``add_callback``."""
        entry = self[-1]
        self._signed[id(entry)] = (entry, task, self._step)

    def popleft(self) -> Any:
        """Take out the next entry of this turn."""
        if self._left == 0:
            self._left = len(self)
            if self._left > 1:
                self._arrange()
            self._signed.clear()
        self._left -= 1
        self._step = object()
        return super().popleft()

    def copy(self) -> Any:
        """Return the entries in a queue that draws nothing."""
        return deque(self)

    def _arrange(self) -> None:
        """Draw an order in which every line keeps its own."""
        entries = list(self)
        lines: dict[int, deque[int]] = {}
        places: list[list[deque[int]]] = []
        # In how many lines somebody stands before it.
        blocked: list[int] = []
        for number, entry in enumerate(entries):
            mine = [lines.setdefault(id(line), deque()) for line in self._lines_of(entry)]
            blocked.append(sum(bool(line) for line in mine))
            for line in mine:
                line.append(number)
            places.append(mine)
        free = [number for number, count in enumerate(blocked) if count == 0]
        draw = self._random.random
        self.clear()
        while free:
            at = int(draw() * len(free)) if len(free) > 1 else 0
            number = free[at]
            free[at] = free[-1]
            free.pop()
            self.append(entries[number])
            for line in places[number]:
                line.popleft()
                if line:
                    blocked[line[0]] -= 1
                    if blocked[line[0]] == 0:
                        free.append(line[0])

    def _lines_of(self, entry: Any) -> list[Any]:
        """The objects that stand for its lines, no two of them the same; all of them live on."""
        if type(entry) is tuple:
            signature = self._signed.get(id(entry))
            if signature is not None:
                _, task, step = signature
                return [step] if task is None else [step, task]
            args = entry[1]
            if len(args) == 1 and isinstance(args[0], Future):
                return [_line_of(args[0])]
            return [_UNSIGNED]
        if type(entry) is Timer:
            return [_TIMERS]
        if isinstance(entry, asyncio.Handle):
            # Whatever is written for asyncio relies on their order.
            return [_UNSIGNED]
        waiting = getattr(entry, "_waiting", None)
        return [entry] if waiting is None else [entry, _line_of(waiting)]


def _line_of(future: Any) -> Any:
    """What decides the order of all that wait for a future: a lock's line, or else itself."""
    return getattr(future, "_line", future)


class SimLoop(NotingLoop):
    """An ``IOLoop`` whose turns come in a drawn order, and that has no threads.

    Functions that are meant for a thread, whatever the executor, run in a later turn of the loop,
    in its own thread, after a drawn time.

    Arguments:
        clock: as for ``IOLoop``.
        network: likewise.
        random: what draws.
        world: what the loop is part of.
    """

    def __init__(
        self, *, clock: Callable[[], float], network: Network, random: Random, world: Any = None
    ) -> None:
        super().__init__(make_current=False, clock=clock, network=network)
        self.world = world
        self._ready: Any = SeededQueue(random)
        self._forced_executor = _LaterTurns(self, random)

    def add_callback(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``callback`` in the next turn, after what the same task added before."""
        if not self._closed:
            super().add_callback(callback, *args, **kwargs)
            self._ready.sign(self._current_task)

    spawn_callback = add_callback
    add_callback_from_signal = add_callback

    def set_default_executor(self, executor: futures.Executor) -> None:
        """Leave the executor alone: functions run on the loop."""

    def close(self, all_fds: bool = False) -> None:
        """Give back the loop's descriptors; drop all that it holds."""
        super().close(all_fds)
        self.world = None
        if self._forced_executor is not None:
            self._forced_executor.shutdown(wait=False, cancel_futures=True)
            # They refer to each other.
            self._forced_executor = None


class _LaterTurns(futures.Executor):
    """Runs functions one by one in the loop's own thread."""

    def __init__(self, loop: IOLoop, random: Random) -> None:
        self._loop = loop
        self._random = random
        # What has not begun.
        self._queued: dict[futures.Future[Any], None] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        work: futures.Future[Any] = futures.Future()
        delay = self._random.random() * _LONGEST_CALL
        self._queued[work] = None
        run = functools.partial(self._run, work, functools.partial(fn, *args, **kwargs))
        # In a context of its own, as a thread has one.
        Context().run(self._loop.call_later, delay, run)
        return work

    def _run(self, work: futures.Future[Any], call: Callable[[], Any]) -> None:
        self._queued.pop(work, None)
        if not work.set_running_or_notify_cancel():
            return
        try:
            work.set_result(call())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            work.set_exception(error)
        finally:
            # This frame stands in the traceback of the function's error.
            del work, call

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what has not begun; there is nothing to wait for."""
        queued, self._queued = self._queued, {}
        for work in queued:
            work.cancel()
