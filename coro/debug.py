"""Debug mode: history of what a program does, for logs and reprs.

It is put on by ``coro.run(main, debug=True)``, by ``CORO_DEBUG=1`` in the environment, by
``enable(loop)``, or by asyncio's debug mode of the loop above or below. It is an observer of the
loop (``coro.hooks``): no other room asks whether it is on. Logged are

- the errors that nobody looked at, as always, now with the place where the future was made. So has
  its repr;
- steps of coroutines, and turns with their callbacks and handlers, that take too long;
- coroutines that were called and never yielded;
- streams, and loops, that were never closed.

Two things no event tells: that a future is made, and that somebody looks at a result which is there
already. While a loop of the process is in debug mode, stand-ins take the place of every
``__init__`` of a future class and of the few ways to look at a future, and are taken away with the
last one. Without debug mode nothing of it exists, and nothing is paid.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from coro import future as future_room
from coro import task as task_room
from coro.future import DONE, Future
from coro.hooks import Observer
from coro.loop import IOLoop
from coro.stall import is_user_code
from coro.task import Task

__all__ = ["Birthplace", "Debug", "disable", "enable", "wanted"]

_log = logging.getLogger("coro.general")
_app_log = logging.getLogger("coro.application")

# How many frames of the user a birthplace keeps.
MAX_FRAMES = 3

# Frames of these stand between a call of a coroutine function and its task.
_ENGINE = frozenset({__file__, future_room.__file__, task_room.__file__})

# How to look at a future without reading its value.
_LOOKS = ("done", "cancelled", "exception", "add_done_callback")

# Above a running loop stands only who started it.
_START = IOLoop.start.__code__


class Birthplace:
    """Where something was made: the innermost frames of the user, else the frame that made it.

    Attributes:
        by_user: whether the user's code made it, and not coro on its behalf.
    """

    __slots__ = ("_frames", "by_user")

    def __init__(self) -> None:
        frames: list[tuple[str, int, str]] = []
        maker: tuple[str, int, str] | None = None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not _START and len(frames) < MAX_FRAMES:
            code = frame.f_code
            if code.co_filename not in _ENGINE:
                place = (code.co_filename, frame.f_lineno, code.co_name)
                maker = maker or place
                if is_user_code(code.co_filename):
                    frames.append(place)
            frame = frame.f_back
        self.by_user = bool(frames) and maker is frames[0]
        self._frames = frames or [maker or ("an unknown place", 0, "?")]

    def __str__(self) -> str:
        places = [f"{filename}:{line} in {name}" for filename, line, name in self._frames]
        return ", called from ".join(places)


class _Witness(Birthplace):
    """The birthplace of a task, which dies with it and complains if nobody took its result."""

    __slots__ = ("name", "watcher")

    def __init__(self) -> None:
        super().__init__()
        # From the end of the task until somebody looks: who would see the look; the task's name.
        self.watcher: Debug | None = None
        self.name = ""

    def __del__(self) -> None:
        if self.watcher is not None and self.watcher.active():
            _log_never_yielded(self.name, self)


def _log_never_yielded(name: str, birthplace: Birthplace) -> None:
    _app_log.warning(
        "coroutine %r was called at %s but never yielded (to run it in the background: "
        "loop.spawn_callback)",
        name,
        birthplace,
    )


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    """An ``__init__`` of a future class that notes the birthplace first."""

    @functools.wraps(init)
    def noting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, "_birthplace"):
            self._birthplace = _Witness() if isinstance(self, Task) else Birthplace()
        init(self, *args, **kwargs)

    return noting_init


def _looked_at(future: Any) -> None:
    birthplace = getattr(future, "_birthplace", None)
    if isinstance(birthplace, _Witness):
        birthplace.watcher = None


def _looking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of ``Future`` that counts as a look."""

    @functools.wraps(method)
    def looking(self: Any, *args: Any, **kwargs: Any) -> Any:
        _looked_at(self)
        return method(self, *args, **kwargs)

    return looking


class _LookedAtValue:
    """In place of the slot ``Future._value``: whoever takes a result reads that, in the end."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, future: Any, owner: Any = None) -> Any:
        if future is None:
            return self
        _looked_at(future)
        return self._slot.__get__(future, owner)

    def __set__(self, future: Any, value: Any) -> None:
        self._slot.__set__(future, value)


class _StandIns:
    """What is put into the classes of futures while any loop is in debug mode."""

    def __init__(self) -> None:
        # Re-entrant: a loop may be collected, and so leave debug mode, at any point.
        self._lock = threading.RLock()
        self._users = 0
        self._replaced: list[tuple[type, str, Any]] = []

    def put_in(self) -> None:
        """Put them in place for one more loop."""
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            for kind in _family(Future):
                if "__init__" in vars(kind):
                    self._replace(kind, "__init__", _noting)
            self._replace(Future, "_value", _LookedAtValue)
            for name in _LOOKS:
                self._replace(Future, name, _looking)

    def _replace(self, kind: type, name: str, stand_in: Callable[[Any], Any]) -> None:
        original = vars(kind)[name]
        self._replaced.append((kind, name, original))
        setattr(kind, name, stand_in(original))

    def take_away(self) -> None:
        """Take them away if this was the last loop."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                while self._replaced:
                    setattr(*self._replaced.pop())


def _family(kind: type) -> Iterator[type]:
    heirs: list[type] = kind.__subclasses__()
    yield kind
    for heir in heirs:
        yield from _family(heir)


_stand_ins = _StandIns()


class _Step:
    """A step that is running."""

    __slots__ = ("began", "nested", "place")

    def __init__(self, began: float, place: str) -> None:
        self.began = began
        self.place = place
        # Seconds in the first steps of coroutines that it called.
        self.nested = 0.0


class Debug(Observer):
    """The observer that ``enable`` plugs in.

    Attributes:
        slow: seconds from which on a step is slow.
    """

    def __init__(self, loop: IOLoop, slow: float) -> None:
        self.slow = slow
        self._time = loop.time
        # From the outermost to the innermost.
        self._steps: list[_Step] = []
        self._turn_began: float | None = None
        # Seconds in steps, of this turn.
        self._stepped = 0.0
        # The open resources, each with what complains when it is collected.
        self._open: weakref.WeakKeyDictionary[Any, weakref.finalize[Any, Any]] = (
            weakref.WeakKeyDictionary()
        )
        _stand_ins.put_in()
        self._on_collection = weakref.finalize(loop, _leave_collected, Birthplace())
        self._on_collection.atexit = False

    # --- slow steps and turns --------------------------------------------------------------

    def turn_started(self, loop: Any) -> None:
        """Take the time."""
        self._turn_began = self._time()
        self._stepped = 0.0

    def turn_ended(self, loop: Any) -> None:
        """Complain if callbacks and handlers took long; steps were looked at one by one."""
        if self._turn_began is None:
            return
        seconds = self._time() - self._turn_began - self._stepped
        if seconds >= self.slow:
            _log.warning(
                "Slow turn of %r: %.3f s in callbacks and handlers "
                "(loop.set_stall_threshold shows where)",
                loop,
                seconds,
            )

    def step_started(self, task: Any) -> None:
        """Take the time and the line."""
        self._steps.append(_Step(self._time(), _place(task)))

    def step_ended(self, task: Any) -> None:
        """Complain if it took long, less what the coroutines that it called took."""
        # Where debug mode began inside a step, its start was not seen.
        if not self._steps:
            return
        step = self._steps.pop()
        seconds = self._time() - step.began
        if self._steps:
            self._steps[-1].nested += seconds
        else:
            self._stepped += seconds
        own = seconds - step.nested
        if own >= self.slow:
            _log.warning(
                "Slow step of %r: %.3f s from %s to %s",
                task.get_name(),
                own,
                step.place,
                _place(task),
            )

    # --- never yielded ---------------------------------------------------------------------

    def task_ended(self, task: Any) -> None:
        """Let it complain at its death, unless somebody waits for it or will look."""
        if task._state == DONE and _forgotten(task):
            task._birthplace.watcher = self
            task._birthplace.name = task.get_name()

    def check(self, loop: Any) -> None:
        """Complain of the tasks that still run and that nobody waits for."""
        for task in loop._live_tasks():
            if _forgotten(task):
                _log_never_yielded(task.get_name(), task._birthplace)

    # --- never closed ----------------------------------------------------------------------

    def resource_opened(self, resource: Any) -> None:
        """Note where; complain if it is collected before it is closed."""
        complain = weakref.finalize(
            resource, _log_never_closed, type(resource).__name__, Birthplace()
        )
        complain.atexit = False
        self._open[resource] = complain

    def resource_closed(self, resource: Any) -> None:
        """Complain no longer."""
        complain = self._open.pop(resource, None)
        if complain is not None:
            complain.detach()

    def loop_closed(self, loop: Any) -> None:
        """Complain of what is still open or still runs, and leave debug mode."""
        self.check(loop)
        for complain in list(self._open.values()):
            complain()
        disable(loop)

    def active(self) -> bool:
        """Whether the loop is in debug mode still."""
        return self._on_collection.alive

    def leave(self) -> None:
        """Take the stand-ins away, and complain no more."""
        for complain in self._open.values():
            complain.detach()
        self._open.clear()
        if self._on_collection.detach() is not None:
            _stand_ins.take_away()


def _forgotten(task: Any) -> bool:
    """Whether the user's code called it, and nobody waits for it."""
    birthplace = getattr(task, "_birthplace", None)
    return (
        birthplace is not None
        and birthplace.by_user
        and task._waiter is None
        and task._others is None
    )


def _place(task: Any) -> str:
    """The line where a suspended coroutine stands, followed into what it delegates to."""
    body = task.get_coro()
    frame = None
    while body is not None:
        inner = getattr(body, "gi_frame", None) or getattr(body, "cr_frame", None)
        if inner is None or inner.f_code.co_filename in _ENGINE:
            break
        frame = inner
        body = getattr(body, "gi_yieldfrom", None) or getattr(body, "cr_await", None)
    return "its end" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _log_never_closed(name: str, birthplace: Birthplace) -> None:
    _log.warning("%s opened at %s was never closed", name, birthplace)


def _leave_collected(birthplace: Birthplace) -> None:
    """A loop in debug mode was collected without having been closed."""
    _stand_ins.take_away()
    _log.warning("IOLoop, in debug mode since %s, was never closed", birthplace)


def wanted() -> bool:
    """Whether the environment asks for debug mode: ``CORO_DEBUG`` is set, and not to 0."""
    return os.environ.get("CORO_DEBUG", "0") not in ("", "0")


def _observer(loop: IOLoop) -> Debug | None:
    observers = loop._hooks.observers if loop._hooks is not None else []
    return next((each for each in observers if isinstance(each, Debug)), None)


def enable(loop: IOLoop | None = None, *, slow: float = 0.1) -> Debug:
    """Put a loop into debug mode until ``disable`` or until it is closed; return the observer.

    Arguments:
        loop: by default the current one.
        slow: seconds from which on a step of a coroutine, or a turn, is logged as slow.
    """
    if loop is None:
        loop = IOLoop.current()
    observer = _observer(loop)
    if observer is None:
        observer = Debug(loop, slow)
        loop.add_observer(observer)
    observer.slow = slow
    return observer


def disable(loop: IOLoop | None = None) -> None:
    """End the debug mode of a loop (by default the current one); without it, do nothing."""
    if loop is None:
        loop = IOLoop.current()
    observer = _observer(loop)
    if observer is not None:
        loop.remove_observer(observer)
        observer.leave()
