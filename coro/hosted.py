"""The ``IOLoop`` on a running asyncio loop: asyncio's own, uvloop, or any other.

Inside a running asyncio loop ``IOLoop.current()`` gives a ``HostedLoop``. It has what every IOLoop
has (ready queue, timers, descriptor table), and leaves the waiting to its host: it asks the host
for one ``call_soon`` when something becomes ready, for one ``call_at`` for its next deadline, and
for one reader callback, which tells that its poller has events. A turn is that of every IOLoop, one
for each of the host's iterations: it runs what stands in the queue, and what that adds waits for
the next, so host and coro take turns.

Which host: the one that runs in this thread when a loop is asked for. Nothing is configured, no
policy is touched, nothing is global. The hosted loop is made at the first use and is an attribute
of its host, so both die together. It ends when the host shuts its asynchronous generators down, as
``asyncio.run`` does at the end: it has one among them for that purpose. What depends on it (clients
with idle connections, servers) is closed then.

For asyncio, a coroutine's task is a task. The engine tells its loop which task is running, by
setting ``_current_task``; here that is a property, which tells asyncio. So native loops pay nothing
for it, and ``asyncio.current_task``, ``asyncio.timeout`` and their like find the task. A task that
suspends itself appears in ``asyncio.all_tasks()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
from asyncio import tasks as asyncio_tasks
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextvars import Context, copy_context
from threading import get_ident
from typing import Any, NoReturn

from coro.debug import enable
from coro.future import Slot, slot
from coro.loop import IOLoop
from coro.net import Poller
from coro.task import Task, current_tasks
from coro.timers import DEADLINE, Timer, TimerHeap

__all__ = ["ATTRIBUTE", "HostedLoop", "Suspended", "register_if_suspended"]

# The attribute of a host that holds its hosted loop.
ATTRIBUTE = "_coro_ioloop"

# Whose clock is ``time.monotonic``. uvloop shows it in milliseconds and as it was when the present
# iteration began, which is too coarse for an IOLoop.
_MONOTONIC = frozenset({"asyncio", "uvloop"})


class _Ready(deque[Any]):
    """A ready queue that asks for a turn when something is appended and no turn is asked for."""

    # While a turn is asked for, ``append`` is the deque's own.
    __slots__ = ("append", "asking", "plain")

    append: Any

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__()
        plain: Callable[[Any], None] = super().append

        def asking(item: Any) -> None:
            plain(item)
            ask()

        self.plain = plain
        self.append = self.asking = asking

    def copy(self) -> deque[Any]:  # type: ignore[override]
        """Return what stands in it now."""
        return deque(self)


class _Timers(TimerHeap):
    """Timers that tell when a new one is the first that is due."""

    __slots__ = ("_arm",)

    def __init__(self, arm: Callable[[float], None]) -> None:
        super().__init__()
        self._arm = arm

    def add(
        self,
        deadline: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> Timer:
        """Take in a new timer and return it."""
        timer = super().add(deadline, callback, args, context)
        # If it is the first, it stands there itself, or a mark of its deadline.
        if self.heap[0][DEADLINE] >= deadline:
            self._arm(deadline)
        return timer


class Suspended(dict[Any, None]):
    """The tasks that a loop refers to; asyncio is told of each."""

    __slots__ = ()

    def __setitem__(self, task: Any, value: None) -> None:
        super().__setitem__(task, value)
        asyncio_tasks._register_task(task)


def register_if_suspended(task: Any) -> None:
    """Tell asyncio of a task whose step has ended, if no set of the loop has it.

    It waits for a task that is suspended.
    """
    if type(task) is Task and task._waiting is not None and not task._held:
        asyncio_tasks._register_task(task)


class _NoWaker:
    """In the place of a waker: the host has its own."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """There is nothing to give back."""


class HostedLoop(IOLoop):
    """An ``IOLoop`` that an asyncio loop runs. ``IOLoop.current()`` makes it when it is needed.

    It is neither started, stopped nor closed: that is the host's matter.

    Arguments:
        host: the asyncio loop, which is running in this thread.
    """

    __slots__ = ("_alarm", "_alarm_at", "_asked", "_ending", "_host", "_left", "_queue", "_slack")

    _native = False

    def __init__(self, host: Any) -> None:
        self._host = host
        # Whether a turn of this loop stands in the host's queue, or is running.
        self._asked = True
        self._ending: list[Callable[[], Any]] = []
        # The host's timer for the next deadline, and that deadline.
        self._alarm: Any = None
        self._alarm_at = 0.0
        clock = _clock_of(host)
        # A host with a coarser clock than ours must not call before the time.
        self._slack = 0.0 if _is_exact(host) else 0.0005
        # What follows sets ``_current_task``, which the calling task's own is to survive.
        calling = asyncio.current_task(host)
        self._asleep = False
        super().__init__(make_current=False, clock=clock)
        self._current_task = calling
        self._unclosed.detach()
        self._ready = self._queue = _Ready(self._ask)
        self._timers = _Timers(self._arm)
        self._tasks = Suspended()
        self._thread = get_ident()
        # Each start of ``_run_turns`` is to be one turn.
        self._stopping = True
        self._asleep = True
        self._asked = False
        # When the last turn ended.
        self._left = self._began
        self._context = Context()
        self._lifeline = _lifeline(self)
        # Up to its ``yield``, by which the host, which is running, gets to know it.
        with contextlib.suppress(StopIteration):
            self._lifeline.asend(None).send(None)
        setattr(host, ATTRIBUTE, self)

    def _open_poller(self) -> Poller:
        """Make a poller, and have the host watch its descriptor in place of all those it watches.

        So the host need not know of each, and events are what they are elsewhere: uvloop calls a
        reader no more once there is an error.
        """
        poller = self.network.poller()
        try:
            # In a context of its own: that of the caller would be kept.
            Context().run(self._host.add_reader, poller.fileno(), self._on_events)
        except BaseException:
            poller.close()
            raise
        self._poller = poller
        self._poll = poller.poll
        self._waker: Any = _NoWaker()
        return poller

    def __repr__(self) -> str:
        state = "closed, was hosted" if self._closed else "hosted"
        tasks = len(self._live_tasks())
        return f"<IOLoop {state} by {self._host!r} tasks={tasks} timers={len(self._timers)}>"

    # --- what the engine sets --------------------------------------------------------------

    def _get_current(self) -> Any:
        return current_tasks.get(self._host)

    def _set_current(self, task: Any) -> None:
        # ``swap_current`` spelt out.
        host = self._host
        if task is None:
            previous = current_tasks.pop(host, None)
        else:
            previous = current_tasks.get(host)
            current_tasks[host] = task
        if self._asleep:
            # The call of a coroutine from asyncio's side, which finds its loop faster so.
            slot.running = self if type(task) is Task else None
        # ``register_if_suspended`` spelt out.
        if type(previous) is Task and previous._waiting is not None and not previous._held:
            asyncio_tasks._register_task(previous)

    _current_task = property(_get_current, _set_current)

    def _get_ending(self) -> list[Callable[[], Any]]:
        self._ask()
        return self._ending

    def _set_ending(self, calls: list[Callable[[], Any]]) -> None:
        self._ending = calls

    # Who looks at it is about to add something.
    _at_turn_end = property(_get_ending, _set_ending)

    # --- turns -----------------------------------------------------------------------------

    def _ask(self) -> None:
        """See to it that there will be a turn."""
        if not self._asked:
            self._asked = True
            self._queue.append = self._queue.plain
            self._host.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        if self._closed:
            return
        outer, slot.running = slot.running, self
        self._asked = True
        self._queue.append = self._queue.plain
        self._asleep = False
        self._idle += self.time() - self._left
        try:
            self._run_turns()
        finally:
            slot.running = outer
            self._asleep = True
            self._left = self.time()
            if not self._closed:
                # Another thread appends first and looks at ``_asked`` after: one sees the other.
                self._asked = False
                queue = self._queue
                queue.append = queue.asking
                if queue or self._ending:
                    self._ask()
                if self._alarm is None:
                    self._set_alarm()

    def _on_events(self) -> None:
        """Some descriptors have events, which every turn looks for."""
        if not self._asked:
            self._turn()

    # --- timers ----------------------------------------------------------------------------

    def _arm(self, deadline: float) -> None:
        """Have the host call at a deadline, unless it calls before that anyway."""
        if self._alarm is not None:
            if self._alarm_at <= deadline:
                return
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._host.call_at(
            deadline + self._slack, self._on_alarm, context=self._context
        )

    def _set_alarm(self) -> None:
        deadline = self._timers.next_deadline()
        if deadline is not None:
            self._arm(deadline)

    def _on_alarm(self) -> None:
        self._alarm = None
        deadline = self._timers.next_deadline()
        if deadline is None or self._asked:
            # The turn to come has an eye on the timers.
            return
        if deadline <= self.time():
            self._turn()
        else:
            # The timer for which it was set was cancelled.
            self._arm(deadline)

    # --- what other threads and signals call ------------------------------------------------

    def add_callback(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``callback`` in the next turn: the one call other threads and signal handlers may
        make.

        When the host is closed it does nothing: a thread cannot know that it is about to.
        """
        if kwargs:
            callback = functools.partial(callback, **kwargs)
        if self._closed:
            return
        self._queue.plain((callback, args, copy_context()))
        if not self._asked:
            try:
                self._host.call_soon_threadsafe(self._ask)
            except RuntimeError:
                if not self._host.is_closed():
                    raise

    spawn_callback = add_callback
    add_callback_from_signal = add_callback

    def add_signal_handler(self, number: int, callback: Callable[..., Any], *args: Any) -> None:
        """Call ``callback`` in a turn of the loop when a signal arrives (main thread only)."""
        self._check_thread("add_signal_handler")
        self._host.add_signal_handler(number, self.add_callback, callback, *args)
        self._signals[number] = signal.SIG_DFL

    def remove_signal_handler(self, number: int) -> bool:
        """Have the host handle it no longer; False if ``add_signal_handler`` added nothing."""
        self._check_thread("remove_signal_handler")
        if self._signals.pop(number, None) is None:
            return False
        return bool(self._host.remove_signal_handler(number))

    # --- the host's matters ----------------------------------------------------------------

    def _refuse_to(self, what: str, instead: str) -> NoReturn:
        raise RuntimeError(f"IOLoop.{what} is not for {self!r}, which asyncio runs: {instead}")

    def make_current(self) -> None:
        """Do nothing: it is current wherever its host runs."""

    def start(self) -> None:
        """Raise: the host is running already."""
        self._refuse_to("start", "its host is running already")

    def stop(self) -> None:
        """Raise: who runs the host stops it."""
        self._refuse_to("stop", "let the function end that was given to asyncio.run")

    def run_sync(self, func: Callable[[], Any], timeout: Any = None) -> Any:
        """Raise: what runs inside a loop cannot wait for it."""
        self._refuse_to("run_sync", "write: await f(...), or yield f(...)")

    def close(self, all_fds: bool = False) -> None:
        """Raise: it is closed when the host shuts down."""
        self._refuse_to("close", "it is closed when its host shuts down")

    def _shut_down(self) -> None:
        """Close what depends on the loop, and let go of the host."""
        if self._closed:
            return
        self._thread = None
        try:
            self._host.remove_reader(self._poller.fileno())
        except RuntimeError:
            # The host was closed before.
            pass
        super().close()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if getattr(self._host, ATTRIBUTE, None) is self:
            delattr(self._host, ATTRIBUTE)
        # They refer to the loop, and the queue to itself. What is settled yet, wakes nobody.
        queue = self._queue
        del self._queue, queue.append, queue.asking, queue.plain
        self._ready = deque()
        self._timers = TimerHeap()
        del self._poll


async def _lifeline(loop: HostedLoop) -> AsyncGenerator[None, None]:
    """Among its host's asynchronous generators it stands for the loop, and ends with them."""
    try:
        yield
    finally:
        loop._shut_down()


def _origin_of_time(host: Any) -> str:
    """The package in which the host's clock is defined."""
    owner = next(each for each in type(host).__mro__ if "time" in vars(each))
    return owner.__module__.partition(".")[0]


def _clock_of(host: Any) -> Callable[[], float]:
    clock: Callable[[], float] = host.time
    return time.monotonic if _origin_of_time(host) in _MONOTONIC else clock


def _is_exact(host: Any) -> bool:
    return _origin_of_time(host) != "uvloop"


def _hosted() -> HostedLoop | None:
    """The IOLoop on the asyncio loop that runs in this thread, made if need be."""
    host: Any = asyncio._get_running_loop()
    if host is None:
        return None
    loop: HostedLoop | None = getattr(host, ATTRIBUTE, None)
    if loop is None:
        loop = HostedLoop(host)
        if host.get_debug():
            enable(loop)
    elif loop._thread != get_ident():
        # It was run in another thread before.
        loop._thread = get_ident()
    return loop


Slot.hosted = staticmethod(_hosted)  # type: ignore[method-assign]
