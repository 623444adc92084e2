"""``EventLoop``: a whole asyncio event loop that stands on coro's ``IOLoop``.

    with asyncio.Runner(loop_factory=coro.aio.new_event_loop) as runner:
        runner.run(main())

Transports, servers, TLS, datagrams, pipes, subprocesses, signals and executors are asyncio's own;
what they stand on is exchanged. asyncio's loop of selectors has three things below it: a queue of
handles, a heap of timers, and a selector. Here handles stand in the ``IOLoop``'s ready queue, in
line with coro's callbacks and tasks; its heap of timers has one entry for the first of asyncio's;
the selector only takes note of what is watched, and the ``IOLoop``'s poller does the watching.

So coro's coroutines and asyncio's libraries share one loop and one thread, and await each other: a
coroutine of coro is a task of this loop to asyncio.

Every other ``IOLoop`` has such a loop above it too, ``IOLoop.asyncio_loop``, which is asyncio's
running loop while that runs: what is written for asyncio works under ``coro.run``. It costs what it
is used for. So there the steps of generators are not shown to asyncio, in which only ``async def``
coroutines can ask for the current task in earnest.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import selectors
import sys
from asyncio import base_events
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextvars import Context, copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any

from coro.debug import disable, enable
from coro.errors import WrongThreadError
from coro.hosted import Suspended, register_if_suspended
from coro.loop import IOLoop
from coro.net import READ, WRITE
from coro.task import Task, current_tasks, swap_current
from coro.timers import DEADLINE

__all__ = ["EventLoop", "new_event_loop"]

if TYPE_CHECKING:
    # What is below has names that asyncio does not publish.
    class _Handles(asyncio.Handle):
        _args: Any
        _callback: Any
        _repr: Any

        def __getattr__(self, name: str) -> Any: ...

    class _TimerHandles(_Handles, asyncio.TimerHandle):
        _when: float

    class _Loops(asyncio.SelectorEventLoop):
        def __getattr__(self, name: str) -> Any: ...

    class _Selectors(selectors.SelectSelector):
        def __getattr__(self, name: str) -> Any: ...
else:
    _Handles = asyncio.Handle
    _TimerHandles = asyncio.TimerHandle
    _Loops = asyncio.SelectorEventLoop
    _Selectors = selectors._BaseSelectorImpl

_log = logging.getLogger("asyncio")

# In the place of a timer.
_NEVER = [math.inf]

# asyncio's transports ask for 256 KiB in every ``recv``. For pieces of that size glibc maps memory
# afresh, at twice the cost of all the rest of an echo, until a larger one was given back once.
bytearray(1 << 19)

# Cancelled timers that may lie in the heap, if they are not most of it.
MANY_CANCELLED = 100


def new_event_loop() -> EventLoop:
    """Make an asyncio event loop on coro's: a ``loop_factory`` for ``asyncio.Runner``."""
    return EventLoop()


class _Handle(_Handles):
    """An asyncio handle that can stand in an ``IOLoop``'s ready queue, which calls ``_run``."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: EventLoop,
        context: Context | None,
    ) -> None:
        # asyncio's own spelt out, without debug mode: each call of the loop makes one.
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None

    def cancel(self) -> None:
        super().cancel()
        # It is called yet, in its turn.
        self._callback, self._args = _nothing, ()


class _WatchedHandle(_Handle):
    """Likewise, in debug mode."""

    __slots__ = ()

    __init__ = asyncio.Handle.__init__

    def _run(self) -> None:
        if not self._cancelled:
            self._loop._run_watched(self, super()._run)
        # The frame of a task that failed refers to this one, and so would to the task.
        del self


class _TimerHandle(_TimerHandles):
    """An asyncio timer; what each is put through is spelt out."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: EventLoop,
        context: Context | None,
    ) -> None:
        # Without debug mode.
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = self._scheduled = False
        self._repr = self._source_traceback = None
        self._when = when

    def __lt__(self, other: _TimerHandle) -> bool:  # type: ignore[override]
        # A heap of the loop compares its timers with each other alone.
        return self._when < other._when

    def cancel(self) -> None:
        if not self._cancelled:
            loop = self._loop
            if self._scheduled:
                loop._timer_cancelled_count += 1
            self._cancelled = True
            if loop._debug:
                self._repr = repr(self)
            self._callback = self._args = None


# What they are called in logs.
_Handle.__name__ = _WatchedHandle.__name__ = asyncio.Handle.__name__
_TimerHandle.__name__ = asyncio.TimerHandle.__name__


def _nothing() -> None:
    """Stands for what was cancelled."""


class _Core(IOLoop):
    """The ``IOLoop`` below: what runs on it is the loop's above, to asyncio.

    Arguments:
        face: the asyncio loop.
    """

    __slots__ = ("_host",)

    _native = False

    def __init__(self, face: EventLoop) -> None:
        self._host = face
        super().__init__(make_current=False)
        # The face warns if it was not closed.
        self._unclosed.detach()
        self._tasks = Suspended()

    def _get_current(self) -> Any:
        host = self._host
        return None if host is None else current_tasks.get(host)

    def _set_current(self, task: Any) -> None:
        register_if_suspended(swap_current(self._host, task))

    _current_task = property(_get_current, _set_current)

    def add_signal_handler(self, number: int, callback: Callable[..., Any], *args: Any) -> None:
        """Call ``callback`` in a turn of the loop when a signal arrives (main thread only)."""
        self._check_thread("add_signal_handler")
        self._host.add_signal_handler(number, self.add_callback, callback, *args)

    def remove_signal_handler(self, number: int) -> bool:
        """Restore what handled the signal before; False if nothing was added."""
        self._check_thread("remove_signal_handler")
        removed: bool = self._host.remove_signal_handler(number)
        return removed


class _Selector(_Selectors):
    """Keeps asyncio's books of what is watched, and has an ``IOLoop`` watch it.

    Arguments:
        face: the asyncio loop, which is told of events.
        core: the loop that watches.
    """

    def __init__(self, face: EventLoop, core: IOLoop) -> None:
        super().__init__()
        self._face = face
        self._core = core

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        key = super().register(fileobj, events, data)
        try:
            call = self._caller(key.fd, *data)
            self._core._register(key.fd, key.fd, call, _mask(events))
        except BaseException:
            super().unregister(fileobj)
            raise
        return key

    def unregister(self, fileobj: Any) -> Any:
        key = super().unregister(fileobj)
        self._core._unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        fd: int = self._fileobj_lookup(fileobj)
        key = self._fd_to_key.get(fd)
        if key is None:
            raise KeyError(f"{fileobj!r} is not registered")
        key = self._fd_to_key[fd] = key._replace(events=events, data=data)
        registration = self._core._handlers[fd]
        registration.callback = self._caller(fd, *data)
        self._core._modify(fd, registration, _mask(events))
        return key

    def select(self, timeout: float | None = None) -> Any:
        raise NotImplementedError("coro's loop polls by itself")

    def _caller(self, fd: int, reader: Any, writer: Any) -> Callable[[int], None]:
        """What a descriptor's events do: have its handles run."""
        for handle in (reader, writer):
            if handle is not None:
                handle.__class__ = _Handle
        face = self._face
        append = self._core._ready.append

        def call(mask: int) -> None:
            # An error, or the end, is for both to see. Most events are spelt out.
            if reader is not None and mask & ~WRITE:
                if reader._cancelled or face._debug:
                    face._come(reader, fd, face._remove_reader)
                else:
                    append(reader)
            if writer is not None and mask & ~READ:
                face._come(writer, fd, face._remove_writer)

        return call


def _mask(events: int) -> int:
    reads = READ if events & selectors.EVENT_READ else 0
    return reads | (WRITE if events & selectors.EVENT_WRITE else 0)


class EventLoop(_Loops):
    """An asyncio event loop on an ``IOLoop`` of its own.

    Inside of it ``IOLoop.current()`` is that loop: everything of coro runs on it.
    """

    _scheduled: list[Any]
    _timer_cancelled_count: int

    def __init__(self) -> None:
        self._stand_on(_Core(self))

    def _stand_on(self, core: IOLoop) -> None:
        self._core = core
        # What looks for timers that are due. (With more than 30 attributes, asyncio's among them,
        # an object's dict is no longer the fast one.)
        self._alarm: Any = _NEVER
        try:
            super().__init__(_Selector(self, self._core))
        except BaseException:
            self._core.close()
            raise
        # In seconds.
        self.time = self._core.time  # type: ignore[method-assign]

    @property
    def _coro_ioloop(self) -> IOLoop:
        """Where ``hosted`` looks for the loop of this one."""
        return self._core

    def set_debug(self, enabled: bool) -> None:
        """Turn debug mode on or off, asyncio's and coro's."""
        before = getattr(self, "_debug", False)
        super().set_debug(enabled)
        if enabled and not before:
            enable(self._core)
        elif before and not enabled:
            disable(self._core)

    # --- running ---------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Run until ``stop()``."""
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        try:
            self._thread_id: int | None = get_ident()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,
                finalizer=self._asyncgen_finalizer_hook,
            )
            self._core.start()
        finally:
            self._stopping = False
            self._thread_id = None
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)

    def stop(self) -> None:
        """Stop at the end of the present turn, or of the next one."""
        self._stopping = True
        self._core.stop()

    def close(self) -> None:
        """Give everything back; what was scheduled is dropped."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if not self.is_closed():
            super().close()
            self._core.close()
            # Each would keep the other until the collector comes.
            self._core._host = None

    def _run_once(self) -> None:
        self._core.stop()
        self._core.start()

    # --- callbacks -------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call a function in the next turn."""
        if self._closed or self._debug:
            watched: Any = super().call_soon(callback, *args, context=context)
            # Where it was made is not here.
            del watched._source_traceback[-1]
            return watched  # type: ignore[no-any-return]
        handle = _Handle(callback, args, self, context)
        core = self._core
        core._ready.append(handle)
        if not args:
            # A step of a task that waits for the next turn as such, by ``sleep(0)``. What wakes
            # one has an argument: the future.
            core._poll_wanted = True
        return handle

    def _call_soon(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None
    ) -> _Handle:
        kind = _WatchedHandle if self._debug else _Handle
        handle = kind(callback, args, self, context)
        if handle._source_traceback:
            del handle._source_traceback[-1]
        self._core._ready.append(handle)
        self._core._poll_wanted = True
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Like ``call_soon``, from any thread, and from signal handlers."""
        self._check_closed()
        if self._debug:
            self._check_callback(callback, "call_soon_threadsafe")
        handle = self._call_soon(callback, args, context)
        if handle._source_traceback:
            del handle._source_traceback[-1]
        self._core._waker.wake()
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function in ``delay`` seconds."""
        if delay is None:
            raise TypeError("delay must not be None")
        if self._closed or self._debug:
            return self._call_at_watched(self.time() + delay, callback, args, context)
        handle = _TimerHandle(self.time() + delay, callback, args, self, context)
        self._schedule(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function at a time of this loop's clock."""
        if when is None:
            raise TypeError("when cannot be None")
        if self._closed or self._debug:
            return self._call_at_watched(when, callback, args, context)
        handle = _TimerHandle(when, callback, args, self, context)
        self._schedule(handle)
        return handle

    def _call_at_watched(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> asyncio.TimerHandle:
        """Likewise in debug mode, or raise."""
        self._check_closed()
        self._check_thread()
        self._check_callback(callback, "call_at")
        handle: Any = asyncio.TimerHandle(when, callback, args, self, context)
        # Where it was made is not here.
        del handle._source_traceback[-2:]
        self._schedule(handle)
        return handle  # type: ignore[no-any-return]

    def _schedule(self, handle: Any) -> None:
        when = handle._when
        scheduled = self._scheduled
        heapq.heappush(scheduled, handle)
        handle._scheduled = True
        if when < self._alarm[DEADLINE]:
            self._set_alarm(when)
        cancelled = self._timer_cancelled_count
        if cancelled > MANY_CANCELLED and cancelled * 2 > len(scheduled):
            self._sweep()

    def _set_alarm(self, when: float) -> None:
        """Look for timers that are due at a time, the earliest deadline that there is."""
        if self._alarm is not _NEVER:
            self._core._timers.cancel(self._alarm)
        self._alarm = self._core._timers.add(when, self._on_alarm, (), None)

    def _on_alarm(self) -> None:
        self._alarm = _NEVER
        scheduled = self._scheduled
        end = self.time() + self._clock_resolution
        due: deque[Any] = deque()
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= end):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            else:
                due.append(handle)
        if scheduled:
            self._set_alarm(scheduled[0]._when)
        try:
            while due:
                self._run_plain(due.popleft())
        finally:
            # Where KeyboardInterrupt or SystemExit ended it, they come in the next turn.
            for handle in due:
                self._add_callback(handle)
            handle = None

    def _sweep(self) -> None:
        """Forget cancelled timers."""
        kept = []
        for handle in self._scheduled:
            if handle._cancelled:
                handle._scheduled = False
            else:
                kept.append(handle)
        heapq.heapify(kept)
        self._scheduled = kept
        self._timer_cancelled_count = 0

    def _add_callback(self, handle: asyncio.Handle) -> None:
        if not handle._cancelled:
            self._core._ready.append((self._run_plain, (handle,), None))

    def _come(self, handle: _Handle, fd: int, remove: Callable[[int], Any]) -> None:
        """A descriptor is ready for whom a handle calls."""
        if handle._cancelled:
            remove(fd)
        else:
            self._add_callback(handle)

    def _run_plain(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        if self._debug:
            self._run_watched(handle, handle._run)
        else:
            handle._run()
        del handle

    def _run_watched(self, handle: asyncio.Handle, run: Callable[[], None]) -> None:
        """Run a handle in debug mode: tell of it if it takes long."""
        self._current_handle: Any = handle
        try:
            began = self.time()
            run()
            took = self.time() - began
            if took >= self.slow_callback_duration:
                base_events.logger.warning(  # type: ignore[attr-defined]
                    "Executing %s took %.3f seconds", _format_handle(handle), took
                )
        finally:
            self._current_handle = None
            del handle, run

    def _write_to_self(self) -> None:
        self._core._waker.wake()


class _Face(EventLoop):
    """The asyncio loop that stands on an ``IOLoop`` which is there already.

    It runs when that runs, and ends with it. To asyncio, tasks of coro are futures, but those that
    drive ``async def`` coroutines are tasks.

    Arguments:
        loop: the ``IOLoop``.
    """

    def __init__(self, loop: IOLoop) -> None:
        # Nobody chose the selector, and asyncio logs which one it is.
        _log.addFilter(_is_not_of_selector)
        try:
            self._stand_on(loop)
        finally:
            _log.removeFilter(_is_not_of_selector)
        loop._call_on_close(_Face, self._end)

    def __repr__(self) -> str:
        return f"<asyncio's face of {self._core!r}>"

    def __del__(self) -> None:
        """The loop below warns if it was not closed."""

    # It needs no descriptors: the loop below is woken.

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def is_running(self) -> bool:
        """Whether the loop below runs."""
        return self._core._thread is not None

    def _check_thread(self) -> None:
        thread = self._core._thread
        if thread is not None and thread != get_ident():
            raise WrongThreadError(
                f"{self!r} runs in another thread; there, only call_soon_threadsafe is safe"
            )

    def stop(self) -> None:
        """Stop at the end of the present turn, or of the next one."""
        self._core.stop()

    def close(self) -> None:
        """Close the loop below, and this with it."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        self._core.close()

    def _end(self) -> None:
        asyncio.SelectorEventLoop.close(self)

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Call ``callback`` in a turn of the loop when a signal arrives (main thread only)."""
        self._check_closed()
        self._core.add_signal_handler(sig, callback, *args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Restore what handled the signal before; False if nothing was added."""
        return self._core.remove_signal_handler(sig)

    def run_in_executor(  # type: ignore[override]
        self, executor: futures.Executor | None, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Run a blocking function in a thread; the default executor is the loop's below."""
        self._check_closed()
        return self._core.run_in_executor(executor, func, *args)

    def set_default_executor(self, executor: futures.Executor) -> None:
        """Set the executor that ``run_in_executor(None, ...)`` uses, here and below."""
        self._core.set_default_executor(executor)


def _is_not_of_selector(record: logging.LogRecord) -> bool:
    return record.args != (_Selector.__name__,)


IOLoop.face = staticmethod(_Face)


def _format_handle(handle: Any) -> str:
    callback = handle._callback
    task = getattr(callback, "__self__", None)
    return repr(task if isinstance(task, asyncio.Task | Task) else handle)
