"""``IOLoop``: ready queue, timers, descriptor table; one turn at a time.

A turn: choose how long to poll (not at all if something is ready, else until the next deadline),
poll, call the handlers of the descriptors that have events, queue the timers that are due, then run
exactly what stands in the ready queue at that point. What these callbacks add waits for the next
turn, so however busy they are, descriptors and timers get their share.

The ready queue is a deque that holds three kinds of things, told apart by type and without an
object per callback: tuples ``(callback, args, context)``, timers that are due, and tasks (whatever
has ``_run``), which is what nearly every entry is.

Waking from other threads needs no lock: the loop declares itself asleep *before* it looks at the
queue for the last time, and ``add_callback`` appends *before* it looks whether the loop is asleep.
Whatever the interleaving, one of the two sees the other.

An event belongs to the registration that stood when the poll returned. A handler may close other
descriptors of the same batch and reuse their numbers: what was registered since the batch began
gets no event of it. The poller is level-triggered, so a new registration under the same number
hears of its own events in the next turn.

After a fork the child has copies of the loops, but poller and waker are one with the parent's:
whoever registers, waits or wakes there would do so for both. So the child drops its descriptors of
them (which the parent does not notice). A loop that was idle opens new ones when it is used first,
with the handlers that it had. A loop that was running cannot go on: its turn, its tasks and its
timers are the parent's. It refuses everything, and ``start`` ends with an error if the child comes
back to it. Its tasks are kept as they are: if they died, their ``finally`` blocks would run in the
child.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import signal
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextvars import Context, copy_context
from datetime import timedelta
from threading import get_ident
from types import FrameType
from typing import Any, ClassVar, NoReturn

from coro.errors import BadYieldError, TimeoutError, WrongThreadError
from coro.future import Future, Slot, slot
from coro.hooks import Hooks, Observer
from coro.net import ERROR, READ, WRITE, Network, Poller
from coro.periodic import PeriodicCallback
from coro.stall import StallWatch, watch
from coro.threads import submit
from coro.timers import DEADLINE, Timer, TimerHeap

__all__ = ["IOLoop", "PeriodicCallback"]

_app_log = logging.getLogger("coro.application")

_YEAR = 366 * 86400.0

# How deep calls of coroutines may nest inside one step before a call only creates its task.
MAX_DEPTH = 64

# The longest poll in seconds; epoll counts milliseconds in a C int, which 25 days exceed.
_LONGEST_POLL = 86400.0

# A turn in which only tasks go on whose futures were settled polls only if the last poll is so many
# seconds ago; and one of so many turns in any case, for a clock may stand still.
_POLL_SECONDS = 50e-6
_POLL_TURNS = 16

# The thread, in a forked child, of a loop that was running at the fork.
_FORKED = -1

_loops: weakref.WeakSet[IOLoop] = weakref.WeakSet()

# In a forked child: what loops that were running at the fork held.
_left_behind: list[Any] = []


class _Registration:
    """One stay of a descriptor in the loop's table."""

    __slots__ = ("batch", "callback", "events", "subject")

    def __init__(
        self, subject: Any, callback: Callable[[int], Any], events: int, batch: int
    ) -> None:
        self.subject = subject
        self.callback = callback
        self.events = events
        # The batch of events in whose time it began, or the last before it: those are another's.
        self.batch = batch


class IOLoop:
    """A callback loop over epoll.

    Arguments:
        make_current: make it this thread's current loop. One made with False is current while it
            runs.
        clock: returns the time in seconds; monotonic.
        network: the outside world: poller, waker, sockets.
    """

    # What the engine and the turn look at and set all the time; the rest stands in ``__dict__``.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_asleep",
        "_at_turn_end",
        "_batch",
        "_current_task",
        "_depth",
        "_handlers",
        "_hooks",
        "_nesting",
        "_now",
        "_poll_wanted",
        "_ready",
        "_stopping",
        "_tasks",
        "_thread",
        "_timers",
        "_turns",
        "nothing",
        "time",
    )

    READ = READ
    WRITE = WRITE
    ERROR = ERROR

    # Turns what a callback returned into a future; ``gen`` fills it.
    convert: ClassVar[Callable[[Any], Any]]
    # The class of tasks, which take further ones of a turn out of the queue by themselves.
    task_type: ClassVar[type]

    # Makes the asyncio loop that stands on this one; ``aio`` fills it.
    face: ClassVar[Callable[[IOLoop], Any]]

    # The asyncio loop that this one stands on, or that stands on it.
    _host: Any = None
    # Whether it stands on none: signals are to wake it, and it tells asyncio of no task.
    _native = True

    # Runs every function that is meant for a thread, on a loop that has none.
    _forced_executor: futures.Executor | None = None

    def __init__(
        self,
        make_current: bool = True,
        *,
        clock: Callable[[], float] = time.monotonic,
        network: Network | None = None,
    ) -> None:
        self.time = clock
        self.network = network if network is not None else Network()
        self._ready: deque[Any] = deque()
        self._timers = TimerHeap()
        self._handlers: dict[int, _Registration] = {}
        # How many batches of events there were, the present one included.
        self._batch = 0
        # Tasks that wait for something other than a suspended task, so that none vanishes: whoever
        # waits for them is referred to by them.
        # A dict for its order: what is left at the end is cancelled in the same order each time.
        self._tasks: dict[Any, None] = {}
        self._hooks: Hooks | None = None
        # The task whose step is running, and how deep calls of coroutines are nested in it.
        self._current_task: Any = None
        self._depth = 0
        # How deep they may be for a further call to be nested without more ado: not at all while
        # somebody observes.
        self._nesting = MAX_DEPTH
        # Identity of the thread that runs the loop; None while it is not running.
        self._thread: int | None = None
        # True from before the last look at the ready queue until the poll is over.
        self._asleep = False
        # Whether somebody waits for the next turn as such: by a callback or a bare ``yield``.
        self._poll_wanted = False
        self._stopping = False
        self._closed = False
        self._turns = 0
        # The clock at the start of this turn, and when ``start`` was called; seconds that earlier
        # calls of ``start`` took, and of all of them those spent asleep.
        self._now = self._began = clock()
        self._ran = self._idle = 0.0
        # How late the last due timer was, in seconds, and the latest.
        self._lag = self._max_lag = 0.0
        # Called once each, after the callbacks of the present turn and before the next poll; they
        # are coro's own and do not raise.
        self._at_turn_end: list[Callable[[], Any]] = []
        self._executor: futures.Executor | None = None
        self._on_close: dict[Any, Callable[[], Any]] = {}
        self._signals: dict[int, Any] = {}
        # What is returned where nothing is left to wait for: settled once, shared.
        self.nothing: Future[None] = Future(loop=self)
        self.nothing.set_result(None)
        self._open_poller()
        _loops.add(self)
        self._unclosed = weakref.finalize(
            self, warnings.warn, f"unclosed IOLoop at {id(self):#x}", ResourceWarning
        )
        self._unclosed.atexit = False
        if make_current:
            self.make_current()

    def _open_poller(self) -> Poller:
        """Make poller and waker, and register what the table holds."""
        poller = self.network.poller()
        try:
            waker = self.network.waker()
            try:
                poller.register(waker.fileno(), READ)
            except BaseException:
                waker.close()
                raise
        except BaseException:
            poller.close()
            raise
        for fd, registration in self._handlers.items():
            try:
                poller.register(fd, registration.events)
            except OSError:
                # Closed without having been removed.
                pass
        self._handlers[waker.fileno()] = _Registration(waker, self._drain_waker, READ, self._batch)
        self._poller = poller
        self._poll = poller.poll
        self._waker = waker
        return poller

    def __repr__(self) -> str:
        if self._thread == _FORKED:
            return f"<IOLoop left behind by a fork at {id(self):#x}>"
        state = "closed" if self._closed else "running" if self._thread is not None else "idle"
        tasks = len(self._live_tasks())
        return f"<IOLoop {state} tasks={tasks} timers={len(self._timers)} at {id(self):#x}>"

    # --- which loop ------------------------------------------------------------------------

    @staticmethod
    def current(instance: bool = True) -> Any:
        """Return the running loop, else this thread's current one.

        Arguments:
            instance: if there is neither, make a new one current and return it; otherwise return
                None.
        """
        loop = slot.running or slot.found()
        if loop is None and instance:
            loop = IOLoop(make_current=True)
        return loop

    instance = current

    def make_current(self) -> None:
        """Make it this thread's current loop."""
        self._check_thread("make_current")
        slot.current = self

    @staticmethod
    def clear_current() -> None:
        """Leave this thread without a current loop."""
        slot.current = None

    @property
    def asyncio_loop(self) -> Any:
        """The asyncio loop that stands on this one: ``asyncio.get_running_loop()`` while it runs.

        Inside asyncio, the loop that this one stands on.
        """
        if self._host is None and not self._closed:
            self._host = IOLoop.face(self)
        return self._host

    # Libraries take asyncio's loop from the ``_loop`` of the task that they run in, and call these.

    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Any:
        """Do what this does of asyncio's loop; ``add_callback`` is the shorter way."""
        return self._open_asyncio_loop().call_soon_threadsafe(callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> Any:
        """Do what this does of asyncio's loop; ``convert_yielded`` makes a task of coro's."""
        return self._open_asyncio_loop().create_task(coro, **options)

    def _open_asyncio_loop(self) -> Any:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        return self.asyncio_loop

    # --- running ---------------------------------------------------------------------------

    def start(self) -> None:
        """Run until ``stop`` is called.

        Raises:
            RuntimeError: this loop or another one is running in this thread, or it is closed.
        """
        self._check_startable()
        if type(self._poller) is _Inherited:
            self._open_poller()
        # What was to be sent at the end of a turn, before there was one, does not wait for one.
        calls, self._at_turn_end = self._at_turn_end, []
        for call in calls:
            self.add_callback(call)
        face = self.asyncio_loop
        self._thread = get_ident()
        self._now = self._began = self.time()
        slot.running = self
        asyncio._set_running_loop(face)
        in_main = self._native and threading.current_thread() is threading.main_thread()
        if in_main:
            previous = signal.set_wakeup_fd(self._waker.write_fileno(), warn_on_full_buffer=False)
        try:
            self._run_turns()
            if self._thread == _FORKED:
                self._refuse()
        finally:
            if self._thread != _FORKED:
                if in_main:
                    signal.set_wakeup_fd(previous)
                self._stopping = False
                self._asleep = False
                self._ran += self.time() - self._began
                asyncio._set_running_loop(None)
                slot.running = None
                self._thread = None

    def _check_startable(self) -> None:
        if self._thread == _FORKED:
            self._refuse()
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        running = slot.running or slot.hosted()
        if running is not None:
            raise RuntimeError(f"cannot start {self!r}: {running!r} is running in this thread")
        if self._thread is not None:
            raise RuntimeError(f"{self!r} is running in another thread")

    def stop(self) -> None:
        """Leave ``start`` after this turn; if not running, after the next start's first turn."""
        self._check_thread("stop")
        self._stopping = True

    def _run_turns(self) -> None:
        """Turn until ``stop``. One function on purpose: a call per turn or callback would show."""
        ready = self._ready
        poll = self._poll
        time = self.time
        timers = self._timers
        heap = timers.heap
        # When, and in which turn, the system is asked at the latest.
        poll_at, poll_turn = -math.inf, 0
        task_type = self.task_type
        item = callback = args = context = result = None
        try:
            while True:
                self._turns += 1
                if ready or self._stopping:
                    self._now = now = time()
                    if self._poll_wanted or now >= poll_at or self._turns >= poll_turn:
                        self._poll_wanted = False
                        poll_at = now + _POLL_SECONDS
                        poll_turn = self._turns + _POLL_TURNS
                        events = poll(0)
                    else:
                        events = None
                else:
                    self._asleep = True
                    before = time()
                    deadline = timers.next_deadline()
                    # Whoever added a callback before this loop was asleep did not wake it.
                    if ready:
                        deadline = 0
                    elif deadline is not None:
                        deadline = min(max(0.0, deadline - before), _LONGEST_POLL)
                    events = poll(deadline)
                    self._asleep = False
                    self._now = now = time()
                    poll_at = now + _POLL_SECONDS
                    poll_turn = self._turns + _POLL_TURNS
                    self._idle += now - before
                hooks = self._hooks
                if hooks is not None:
                    hooks.turn_started(self)
                if events:
                    self._dispatch(events)
                if heap and heap[0][0] <= now:
                    due = timers.pop_due(now)
                    if due:
                        self._lag = now - due[0][DEADLINE]
                        self._max_lag = max(self._max_lag, self._lag)
                        ready.extend(due)
                        del due
                left = len(ready)
                while left:
                    left -= 1
                    item = ready.popleft()
                    kind = type(item)
                    if kind is task_type:
                        left = item._run(left)
                        continue
                    if kind is tuple:
                        callback, args, context = item
                    elif kind is Timer:
                        _, _, callback, args, context, _ = item
                        if callback is None:
                            continue
                        item.spend()
                    else:
                        item._run()
                        continue
                    # The one place where callbacks run.
                    try:
                        if context is None:
                            result = callback(*args)
                        else:
                            result = context.run(callback, *args)
                        if result is not None:
                            self._follow(callback, result, context)
                            result = None
                    except (KeyboardInterrupt, SystemExit):
                        raise
                    except BaseException:
                        _app_log.exception("Exception in callback %r", callback)
                # What ran may die while the loop sleeps.
                item = None
                if callback is not None:
                    callback = args = context = None
                if self._at_turn_end:
                    calls, self._at_turn_end = self._at_turn_end, []
                    for call in calls:
                        call()
                    del calls, call
                if hooks is not None:
                    hooks.turn_ended(self)
                if self._stopping:
                    return
        finally:
            # This frame may be referred to by a traceback that lives on.
            item = callback = args = context = result = None

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        handlers = self._handlers
        self._batch = batch = self._batch + 1
        for fd, mask in events:
            try:
                registration = handlers[fd]
            except KeyError:
                continue
            if registration.batch != batch:
                # Taken first: CPython 3.11 looks a method up by its type, and a slot is none.
                callback = registration.callback
                try:
                    callback(mask)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException:
                    _app_log.exception("Exception in the handler of %r", registration.subject)

    def _follow(self, callback: Callable[..., Any], result: Any, context: Context | None) -> None:
        """Log the error of what a callback returned, if that is something to wait for."""
        if isinstance(result, dict | list) and not result:
            return
        convert = IOLoop.convert
        try:
            # In the callback's context: what an ``async def`` does begins only here.
            future = convert(result) if context is None else context.run(convert, result)
        except BadYieldError:
            return
        future.add_done_callback(functools.partial(_log_failure, callback))
        del future, result

    def run_sync(self, func: Callable[[], Any], timeout: float | timedelta | None = None) -> Any:
        """Start the loop, run ``func`` to its end, stop the loop, and return the result.

        Arguments:
            func: a coroutine function, or any function that returns something to wait for, or None.
            timeout: seconds after which it is cancelled.
        Raises:
            TimeoutError: it did not end in time.
            RuntimeError: ``stop`` was called before it ended, or the loop cannot be started.
            BadYieldError: ``func`` returned something that cannot be waited for.
        """
        self._check_startable()
        main = _Main(self, func)
        self.add_callback(main.begin)
        timer = None
        if timeout is not None:
            if not isinstance(timeout, timedelta):
                timeout = timedelta(seconds=timeout)
            timer = self.add_timeout(timeout, main.expire)
        try:
            self.start()
            return main.result(timeout)
        finally:
            if timer is not None:
                self.remove_timeout(timer)
            main.leave()
            # The frame may outlive the call in the traceback of the error that ``main`` holds.
            del main, timer

    def close(self, all_fds: bool = False) -> None:
        """Give back the loop's descriptors; drop its callbacks, timers, handlers and tasks.

        Arguments:
            all_fds: also close every registered descriptor (objects by their own ``close``).
        Raises:
            RuntimeError: it is running.
        """
        if self._closed:
            return
        self._check_thread("close")
        if self._thread is not None:
            raise RuntimeError(f"cannot close {self!r}: call stop() first")
        for release in list(self._on_close.values()):
            try:
                release()
            except Exception:
                _app_log.exception("Exception while closing %r", self)
        self._on_close.clear()
        if self._hooks is not None:
            self._hooks.loop_closed(self)
        for number in list(self._signals):
            self.remove_signal_handler(number)
        self._closed = True
        self._unclosed.detach()
        if all_fds:
            self._close_subjects()
        self._handlers.clear()
        self._timers.clear()
        self._ready.clear()
        self._at_turn_end.clear()
        self._tasks.clear()
        # The circles of the loop's own making.
        self.nothing._loop = None
        if self._native:
            self._host = None
        self._poller.close()
        self._waker.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        if slot.current is self:
            slot.current = None

    def _close_subjects(self) -> None:
        for fd, registration in list(self._handlers.items()):
            subject = registration.subject
            if subject is self._waker:
                continue
            try:
                if isinstance(subject, int):
                    self.network.close_fd(fd)
                else:
                    subject.close()
            except OSError:
                _app_log.debug("error closing %r", subject, exc_info=True)

    def _call_on_close(self, key: Any, release: Callable[[], Any]) -> None:
        """Call ``release`` when the loop closes, unless ``_forget_on_close(key)`` comes first."""
        self._on_close[key] = release

    def _forget_on_close(self, key: Any) -> None:
        self._on_close.pop(key, None)

    def _check_thread(self, what: str) -> None:
        if self._thread is not None and self._thread != get_ident():
            if self._thread == _FORKED:
                self._refuse()
            raise WrongThreadError(
                f"IOLoop.{what} was called from another thread than the loop's; "
                f"there, only add_callback is safe: loop.add_callback(loop.{what}, ...)"
            )

    # --- after a fork, in the child --------------------------------------------------------

    def _leave_parent(self) -> None:
        """Let go of what is shared with the parent."""
        if self._closed:
            return
        self._handlers.pop(self._waker.fileno(), None)
        self._poller.close()
        self._waker.close()
        # Its threads are the parent's; the next call makes a new one.
        self._executor = None
        if self._thread is None:
            self._poller = _Inherited(self)
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Be of no use any more. The rest of the turn, if the child returns to it, does nothing."""
        self._thread = _FORKED
        self._closed = self._stopping = True
        self._unclosed.detach()
        ready = self._ready
        timers = self._timers
        handlers = self._handlers
        _left_behind.append(
            (self._tasks, list(ready), dict(handlers), list(timers), list(self._at_turn_end))
        )
        self._tasks = {}
        for at in range(len(ready)):
            ready[at] = _NOTHING
        handlers.clear()
        # Not ``TimerHeap.clear``, which takes from the timers what they hold.
        timers.heap.clear()
        self._timers = TimerHeap()
        self._at_turn_end.clear()
        refuse = functools.partial(_refuse, repr(self))
        for name in ("add_callback", "spawn_callback", "add_callback_from_signal"):
            # In the instance, so that no call of any other loop pays for it.
            setattr(self, name, refuse)
        for number, previous in self._signals.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._signals.clear()
        # It is the parent's waker.
        signal.set_wakeup_fd(-1)

    def _refuse(self) -> NoReturn:
        _refuse(repr(self))

    # --- callbacks -------------------------------------------------------------------------

    def add_callback(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``callback`` in the next turn: the one call other threads and signal handlers may
        make.

        On a closed loop it does nothing: a thread cannot know that the loop is about to close.
        """
        if kwargs:
            callback = functools.partial(callback, **kwargs)
        if self._closed:
            return
        self._ready.append((callback, args, copy_context()))
        self._poll_wanted = True
        if self._asleep:
            self._waker.wake()

    spawn_callback = add_callback
    add_callback_from_signal = add_callback

    def add_future(self, future: Any, callback: Callable[[Any], Any]) -> None:
        """Call ``callback(future)`` on this loop once the future is settled.

        Arguments:
            future: a future of coro, asyncio or concurrent.futures.
            callback: gets the future.
        """
        self._check_thread("add_future")
        if isinstance(future, Future) and future._loop is None:
            future._join(self)
        if isinstance(future, Future) and future._loop is self:
            future.add_done_callback(callback)
        else:
            context = copy_context()
            future.add_done_callback(lambda done: self.add_callback(context.run, callback, done))

    def _drain_waker(self, _events: int) -> None:
        self._waker.drain()

    # --- timers ----------------------------------------------------------------------------

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Timer:
        """Call ``callback`` when ``time()`` reaches ``when``; the handle is for ``remove_timeout``.

        Raises:
            ValueError: ``when`` is more than a year ahead, so probably not in terms of
                ``loop.time()``.
        """
        if self._thread is not None and self._thread != get_ident():
            self._check_thread("call_at")
        # Written so that NaN, which no heap can order, is refused too.
        if not when <= self.time() + _YEAR:
            raise ValueError(
                f"deadline {when!r} is more than a year ahead of loop.time(): "
                "give loop.time() + seconds, or a timedelta"
            )
        if kwargs:
            callback = functools.partial(callback, **kwargs)
        return self._timers.add(when, callback, args, copy_context())

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Timer:
        """Call ``callback`` in ``delay`` seconds; the handle is for ``remove_timeout``."""
        if kwargs or self._thread is None or self._thread != get_ident():
            return self.call_at(self.time() + delay, callback, *args, **kwargs)
        # ``call_at`` spelt out.
        if not delay <= _YEAR:
            raise ValueError(f"a delay of {delay!r} seconds is more than a year")
        return self._timers.add(self.time() + delay, callback, args, copy_context())

    def add_timeout(
        self, deadline: float | timedelta, callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Timer:
        """Call ``callback`` at a deadline.

        Arguments:
            deadline: in terms of ``time()``, or a ``timedelta`` from now.
            callback: called with the further arguments.
        """
        if isinstance(deadline, timedelta):
            # Never a wall-clock time, so it may be as long as it likes.
            self._check_thread("add_timeout")
            if kwargs:
                callback = functools.partial(callback, **kwargs)
            when = self.time() + deadline.total_seconds()
            return self._timers.add(when, callback, args, copy_context())
        if not isinstance(deadline, int | float):
            raise TypeError(f"deadline is a number or a timedelta, not {deadline!r}")
        return self.call_at(deadline, callback, *args, **kwargs)

    def remove_timeout(self, timeout: Timer) -> None:
        """Cancel a timer; one that has fired is left alone."""
        if self._thread is not None and self._thread != get_ident():
            self._check_thread("remove_timeout")
        self._timers.cancel(timeout)

    # --- descriptors -----------------------------------------------------------------------

    def add_handler(self, fd: Any, handler: Callable[[Any, int], Any], events: int) -> None:
        """Call ``handler(fd, events)`` whenever the descriptor has one of the events.

        Arguments:
            fd: a descriptor, or an object with ``fileno()``; the handler gets the very object back.
            handler: runs in a copy of the present context.
            events: ``READ``, ``WRITE`` or both; ``ERROR`` is always told.
        Raises:
            ValueError: the descriptor is registered already.
        """
        self._check_thread("add_handler")
        run: Callable[..., Any] = copy_context().run
        self._register(_fileno(fd), fd, functools.partial(run, handler, fd), events)

    def update_handler(self, fd: Any, events: int) -> None:
        """Change the events of a registered descriptor."""
        self._check_thread("update_handler")
        number = _fileno(fd)
        registration = self._handlers.get(number)
        if registration is None:
            raise KeyError(f"{fd!r} is not registered")
        self._modify(number, registration, events)

    def remove_handler(self, fd: Any) -> None:
        """Watch a descriptor no longer; one that is unknown is left alone."""
        self._check_thread("remove_handler")
        number = _fileno(fd)
        if number < 0:
            # Closed before it was removed: it no longer knows its number, but the table does.
            stays = self._handlers.items()
            number = next((at for at, stay in stays if stay.subject is fd), number)
        self._unregister(number)

    def _register(
        self, fd: int, subject: Any, callback: Callable[[int], Any], events: int
    ) -> _Registration:
        """Watch a descriptor for a caller who needs no context: ``callback(events)``."""
        if fd in self._handlers:
            raise ValueError(
                f"descriptor {fd} is registered already, for {self._handlers[fd].subject!r}"
            )
        self._poller.register(fd, events)
        registration = _Registration(subject, callback, events, self._batch)
        self._handlers[fd] = registration
        return registration

    def _modify(self, fd: int, registration: _Registration, events: int) -> None:
        if events != registration.events:
            self._poller.modify(fd, events)
            registration.events = events

    def _unregister(self, fd: int) -> None:
        registration = self._handlers.pop(fd, None)
        if registration is None:
            return
        try:
            self._poller.unregister(fd)
        except (OSError, ValueError, KeyError):
            # Closed before it was removed: the kernel forgot it by itself.
            pass

    # --- threads and signals ---------------------------------------------------------------

    def run_in_executor(
        self, executor: futures.Executor | None, func: Callable[..., Any], *args: Any
    ) -> Future[Any]:
        """Run a blocking function in an executor's thread; return a future of its result.

        Arguments:
            executor: None for the loop's default one.
        """
        self._check_thread("run_in_executor")
        return submit(self, executor, func, *args)

    def set_default_executor(self, executor: futures.Executor) -> None:
        """Set the executor that ``run_in_executor(None, ...)`` uses."""
        self._check_thread("set_default_executor")
        self._executor = executor

    def add_signal_handler(self, number: int, callback: Callable[..., Any], *args: Any) -> None:
        """Call ``callback`` in a turn of the loop when a signal arrives (main thread only)."""
        self._check_thread("add_signal_handler")
        context = copy_context()

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            # Not through ``context.run``, which a further signal in its middle could not enter.
            if not self._closed:
                self._ready.append((callback, args, context))
                if self._asleep:
                    self._waker.wake()

        previous = signal.signal(number, on_signal)
        self._signals.setdefault(number, previous)

    def remove_signal_handler(self, number: int) -> bool:
        """Restore what handled the signal before; False if ``add_signal_handler`` added nothing."""
        self._check_thread("remove_signal_handler")
        if number not in self._signals:
            return False
        signal.signal(number, self._signals.pop(number))
        return True

    # --- watching --------------------------------------------------------------------------

    def _live_tasks(self) -> list[Any]:
        """All tasks that are suspended or queued: those that are held, and who waits for them."""
        found: dict[Any, None] = {}
        todo = [*self._tasks, *(item for item in self._ready.copy() if hasattr(item, "_waiter"))]
        for task in todo:
            if task not in found:
                found[task] = None
                if task._waiter is not None:
                    todo.append(task._waiter)
                todo.extend(each for each in task._others or () if type(each) is not tuple)
        return list(found)

    def add_observer(self, observer: Observer) -> None:
        """Tell an observer of this loop's turns and steps from now on."""
        self._check_thread("add_observer")
        if self._hooks is None:
            self._hooks = Hooks()
        self._hooks.observers.append(observer)
        self._nesting = 0

    def remove_observer(self, observer: Observer) -> None:
        """Tell it no longer."""
        self._check_thread("remove_observer")
        if self._hooks is not None and observer in self._hooks.observers:
            self._hooks.observers.remove(observer)
            if not self._hooks.observers:
                self._hooks = None
                self._nesting = MAX_DEPTH

    def set_stall_threshold(self, seconds: float | None) -> None:
        """Log a warning, with the stack, while one turn takes longer than this; None: no more.

        A thread beside the loop watches; the loop itself pays nothing. See ``coro.stall``.

        Raises:
            ValueError: it is not more than 0.
            RuntimeError: the loop is closed.
        """
        self._check_thread("set_stall_threshold")
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"a stall threshold is more than 0 seconds, not {seconds!r}")
        end = self._on_close.pop(StallWatch, None)
        if end is not None:
            end()
        if seconds is not None:
            self._on_close[StallWatch] = watch(self, seconds).end

    def statistics(self) -> dict[str, float]:
        """Return figures of the loop; times in seconds.

        ``turns`` so far; ``ready`` entries, ``tasks``, ``timers`` and ``handlers`` that it holds
        now; ``lag``, how late the last due timer was, and ``max_lag``, the latest; ``busy_ratio``,
        the share of its time (0 to 1) that it did not spend waiting for something to happen.
        """
        ran = self._ran
        if self._thread is not None:
            # What it waited since it fell asleep is not counted yet.
            ran += (self._now if self._asleep else self.time()) - self._began
        busy = 1 - self._idle / ran if ran > 0 else 0.0
        return {
            "turns": self._turns,
            "ready": len(self._ready),
            "tasks": len(self._live_tasks()),
            "timers": len(self._timers),
            "handlers": len(self._handlers) - (self._waker.fileno() in self._handlers),
            "lag": self._lag,
            "max_lag": self._max_lag,
            "busy_ratio": min(max(busy, 0.0), 1.0),
        }


Slot.loop = staticmethod(IOLoop.current)  # type: ignore[method-assign]


def _log_failure(callback: Callable[..., Any], future: Any) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _app_log.error("Exception in callback %r", callback, exc_info=error)


class _Inherited:
    """In a forked child, in the place of a poller: the first use of it opens a new one."""

    def __init__(self, loop: IOLoop) -> None:
        self._loop = weakref.ref(loop)

    def __getattr__(self, name: str) -> Any:
        loop = self._loop()
        assert loop is not None
        return getattr(loop._open_poller(), name)

    def close(self) -> None:
        """There is nothing to give back."""


# An entry of the ready queue.
_NOTHING = (int, (), None)


def _refuse(loop: str, *_args: Any, **_kwargs: Any) -> NoReturn:
    raise RuntimeError(
        f"{loop} was running when this process was forked, and belongs to the parent: "
        "fork before the loop runs, or use a new one here (coro.run makes one)"
    )


def _after_fork() -> None:
    for loop in list(_loops):
        loop._leave_parent()
    if slot.current is slot.running:
        slot.current = None
    if slot.running is not None:
        asyncio._set_running_loop(None)
    slot.running = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _fileno(fd: Any) -> int:
    return fd if isinstance(fd, int) else fd.fileno()


class _Main:
    """What ``run_sync`` runs, from the call of the function to the result."""

    __slots__ = ("_func", "_future", "_loop", "_timed_out")

    def __init__(self, loop: IOLoop, func: Callable[[], Any]) -> None:
        self._loop = loop
        self._func = func
        self._future: Any = None
        self._timed_out = False

    def begin(self) -> None:
        """Call the function; stop the loop when what it returned is done."""
        try:
            result = self._func()
            self._future = self._loop.nothing if result is None else IOLoop.convert(result)
            if not self._future.done():
                self._future._join(self._loop)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._future = Future(loop=self._loop)
            self._future.set_exception(error)
        finally:
            # This frame is reachable from the traceback of an error of the result.
            result = None
        self._future.add_done_callback(self._stop)

    def _stop(self, _future: Any) -> None:
        if self._future is not None:
            self._loop.stop()

    def leave(self) -> None:
        """Let go: what was abandoned and ends later must not stop another run of the loop."""
        self._future = None

    def expire(self) -> None:
        """The time is over: cancel what runs, or else leave it."""
        self._timed_out = True
        if self._future is None or not self._future.cancel():
            self._loop.stop()

    def result(self, timeout: timedelta | None) -> Any:
        """Return what came of it."""
        future = self._future
        try:
            ended = future is not None and future.done()
            if self._timed_out and timeout is not None and (not ended or future.cancelled()):
                seconds = timeout.total_seconds()
                raise TimeoutError(f"Operation timed out after {seconds:g} seconds")
            if not ended:
                raise RuntimeError("Event loop stopped before Future completed.")
            return future.result()
        finally:
            del future, self
