"""``Task`` and ``@coroutine``: the engine that drives generators (and ``async def`` coroutines).

A task is the future that the caller of a coroutine holds; there is no runner object beside it.
Calling a coroutine function creates the task and runs it at once, up to its first ``yield`` of
something unfinished. From there on the task waits in that thing's waiter slot, and is put into the
loop's ready queue when it is settled.

The call of a generator function (``coroutine``) takes its task's first step, ``Task._run`` all
later ones, and the first of a task that is observed, was called too deep, or drives an ``async
def``. They are what a program spends its time in, therefore each is one function, in which the
usual case is spelt out where a call would show. ``_run`` resumes a task, and goes on
in the same step

- while the task yields things that are settled already (up to a bound, then through the queue, so
  that such a task cannot starve the loop);
- with the parent, when the task ended and the parent is all that waits for it. A chain of
  coroutines is thus unwound without recursion and without a trip through the queue for each level;
- with the next entry of the turn, if that is a task too: so a row of tasks costs one call;
- with a child that has not started yet. A call starts its coroutine inside the caller's step, which
  nests; beyond a fixed depth a call only creates the task, which starts when it is yielded (or
  else in the next turn). So neither chain nor tree of coroutines can exhaust the interpreter's
  stack.

Drivers. A generator that is resumed by ``send`` ends by raising ``StopIteration``, which costs more
than all the rest of a short call. So between the engine and a body stands a *driver*, a generator
that does ``yield from body`` and, when the body has ended, stores its result or error in the task
and yields a mark. Drivers without work are kept for the next task.

Context. Every call runs all its steps in one copy of the caller's ``contextvars`` context:
``context.run(driver.send, value)``, both of them C functions.

Tracebacks and lifetimes. An error leaves the body with the driver's frame on top of its traceback;
that entry is cut off. The traceback is kept beside the error and put back each time the error is
raised, so that raising it again does not lengthen it. The body's dead frame refers to the driver's
(``f_back``), which lives on and holds nothing when it is idle. Errors of the engine's own (what was
yielded cannot be waited for) refer to the engine's frames, which therefore drop their locals then:
otherwise error, traceback, frame and task would form a circle that only the collector could free.

Who holds whom. A suspended task is referred to by what it waits for. Where that is a task which is
suspended itself, it is enough; otherwise the loop's set of tasks holds it too, so that it cannot
vanish together with a future that nobody else knows.

Cancellation. ``cancel`` walks down to what the innermost task waits for and cancels that; the error
comes back up as ``CancelledError``. If there is nothing to cancel (the thing is settled in this
very turn, the task is about to run, or runs) the task is marked, and the error is thrown at its
next step or ``yield``. Either way each request is delivered once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import sys
import types
from asyncio import tasks as asyncio_tasks
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from traceback import StackSummary, print_list, walk_stack, walk_tb
from types import FrameType
from typing import IO, Any, ParamSpec, TypeGuard, overload

from typing_extensions import TypeVar

from coro.errors import BadYieldError, CancelledError, WrongLoopError
from coro.future import (
    CANCELLED,
    DONE,
    FAILED,
    KINDS,
    PENDING,
    Future,
    chain_future,
    is_future,
    shortened,
    slot,
)
from coro.loop import MAX_DEPTH, IOLoop

__all__ = [
    "MAX_DEPTH",
    "Return",
    "Task",
    "all_tasks",
    "convert_yielded",
    "coroutine",
    "current_task",
    "current_task_of",
    "current_tasks",
    "is_coroutine_function",
    "launch_coroutine",
    "moment",
    "running_tasks",
    "swap_current",
]

T = TypeVar("T", default=Any)
P = ParamSpec("P")

# How often one step may go on (settled things yielded, parents resumed) before it queues up again.
MAX_CONTINUATIONS = 1000


class Return(Exception):
    """``raise Return(value)`` ends a coroutine with a result; ``return value`` does the same."""

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)
        self.value = value


class _Moment(Future[None]):
    """What a coroutine yields to let the loop turn once. In lists and dicts it counts as None."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self._loop = None
        self.set_result(None)

    def _require_loop(self) -> Any:
        """It belongs to whichever loop asks."""
        return slot.running or slot.loop()

    def __repr__(self) -> str:
        return "coro.gen.moment"


moment: Future[None] = _Moment()
# The engine has a way of its own for it.
KINDS.discard(_Moment)


class Task(Future[T]):
    """A running coroutine, and the future of its result.

    Made by calling a coroutine function. It is a ``Future`` that can also be cancelled from
    outside: ``cancel()`` raises ``CancelledError`` at the ``yield`` where the coroutine stands.
    """

    __slots__ = (
        "_body",
        "_born",
        "_cancel_requests",
        "_cancel_text",
        "_context",
        "_held",
        "_must_cancel",
        "_name",
        "_send",
        "_waiting",
    )

    _passes_cancel = True

    # The call sets its fields: a constructor would cost each a call more.
    __init__ = object.__init__

    _body: Generator[Any, Any, T] | Coroutine[Any, Any, T]
    # Loop time, in seconds, of the turn in which it was made; set by the end of its first step.
    _born: float
    _cancel_text: Any
    _cancel_requests: int
    _context: Context
    # Whether the loop's set of suspended tasks refers to it, so that it cannot vanish; set by the
    # end of its first step.
    _held: bool
    _must_cancel: bool
    _name: str
    # Resumes the body, by way of its driver.
    _send: Callable[[Any], Any]
    # The future whose settling resumes the task, or ``_UNSTARTED``. None while it runs, is queued
    # by a bare ``yield`` (``moment``, if that is its first), or has ended.
    _waiting: Future[Any] | None

    def _set_up(self, body: Any, loop: Any, context: Context) -> None:
        self._loop = loop
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._others = None
        self._asyncio_future_blocking = False
        self._body = body
        self._context = context
        self._waiting = None
        self._held = False
        self._must_cancel = False
        self._cancel_requests = 0
        self._born = loop._now

    # --- being cancelled -------------------------------------------------------------------

    def cancel(self, msg: Any = None) -> bool:
        """Raise ``CancelledError`` in the coroutine where it waits; return False if it has ended.

        What it waits for is cancelled too, down to the innermost task or future. The coroutine may
        catch the error, may ``yield`` in a ``finally``, and may go on.

        Arguments:
            msg: the argument of the ``CancelledError``.
        """
        if self._state != PENDING:
            return False
        self._check_thread()
        cancel_with_inputs(self, msg)
        return True

    def _pass_cancel(self, msg: Any) -> Sequence[Future[Any]] | None:
        self._cancel_requests += 1
        waiting = self._waiting
        if waiting is not None and waiting._state == PENDING:
            if waiting._passes_cancel:
                return (waiting,)
            if waiting.cancel(msg):
                return None
        self._must_cancel = True
        self._cancel_text = msg
        return None

    def _break_out(self, msg: Any) -> None:
        """Be cancelled without what it waits for, which waits for it in turn."""
        assert self._waiting is not None
        self._waiting._forget_waiter(self)
        self._waiting = None
        self._must_cancel = True
        self._cancel_text = msg
        self._loop._ready.append(self)

    def cancelling(self) -> int:
        """How many calls of ``cancel`` have not been taken back by ``uncancel``."""
        return self._cancel_requests

    def uncancel(self) -> int:
        """Take back one request of cancellation that was dealt with; return how many remain."""
        if self._cancel_requests > 0:
            self._cancel_requests -= 1
            if self._cancel_requests == 0:
                self._must_cancel = False
        return self._cancel_requests

    def _take_cancel(self) -> CancelledError:
        self._must_cancel = False
        message = self._cancel_text
        return CancelledError() if message is None else CancelledError(message)

    def set_result(self, result: Any) -> None:
        """Not for tasks: the coroutine settles its task."""
        raise RuntimeError("Task does not support set_result operation")

    def set_exception(self, exception: Any) -> None:
        """Not for tasks: the coroutine settles its task."""
        raise RuntimeError("Task does not support set_exception operation")

    # --- being looked at -------------------------------------------------------------------

    @property
    def _fut_waiter(self) -> Future[Any] | None:
        """What it waits for, by the name that libraries look it up by in asyncio's tasks."""
        waiting = self._waiting
        return None if waiting is moment else waiting

    @property
    def _callbacks(self) -> None:
        """None: libraries look here for callbacks of asyncio's own."""

    def get_coro(self) -> Any:
        """Return the generator or coroutine object that it drives."""
        return self._body

    def get_context(self) -> Context:
        """Return the ``contextvars`` context that all its steps run in."""
        return self._context

    def get_name(self) -> str:
        """Return its name: what ``set_name`` gave, else the qualified name of its function."""
        try:
            return self._name
        except AttributeError:
            body = self._body
            return str(getattr(body, "__qualname__", None) or body)

    def set_name(self, name: object) -> None:
        """Name it for logs and dumps."""
        self._name = str(name)

    def get_stack(self, *, limit: int | None = None) -> list[FrameType]:
        """Return the frame in which it is suspended, or those through which its error came.

        It is what asyncio's tasks give to tools that show them; ``coro.dump`` shows more.

        Arguments:
            limit: how many frames at most: the innermost ones, or of an error the outermost.
        """
        if self._state == FAILED:
            return [frame for frame, _ in walk_tb(self._value.__traceback__)][:limit]
        body = self._body
        frame = getattr(body, "gi_frame", None) or getattr(body, "cr_frame", None)
        return [] if frame is None else [each for each, _ in walk_stack(frame)][:limit][::-1]

    def print_stack(self, *, limit: int | None = None, file: IO[str] | None = None) -> None:
        """Print what ``get_stack`` returns, to ``file`` (default: standard error)."""
        frames = ((frame, frame.f_lineno) for frame in self.get_stack(limit=limit))
        print(f"Stack of {self!r} (most recent call last):", file=file or sys.stderr)
        print_list(StackSummary.extract(frames), file=file)

    def _origin(self) -> str:
        return f"Task {self.get_name()!r}"

    def _describe(self) -> str:
        cancelling = self._state == PENDING and self._cancel_requests
        text = f"{self.get_name()} {'cancelling' if cancelling else super()._describe()}"
        waiting = self._waiting
        if waiting is None or waiting is moment or waiting is _UNSTARTED:
            return text
        # Of a task the name alone: a chain of them may be as long as it likes.
        return f"{text}, waits for {getattr(waiting, 'get_name', waiting.__repr__)()}"

    def _since(self) -> float:
        since: float = getattr(self, "_born", self._loop._now)
        return since

    def _awaited(self) -> str:
        waiting = self._waiting
        if waiting is _UNSTARTED:
            return "not started"
        return "ready" if waiting is None or waiting._state != PENDING else ""

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        waiting = self._waiting
        return () if waiting is None or waiting._state != PENDING else (("", waiting),)

    # --- running ---------------------------------------------------------------------------

    def _start_queued(self) -> None:
        """Start it if nobody yielded it since it was created beyond ``MAX_DEPTH``."""
        if self._waiting is _UNSTARTED:
            self._run()

    def _hold(self) -> None:
        """Let the loop refer to the task, which nothing else may do while it waits."""
        self._held = True
        self._loop._tasks[self] = None

    def _convert(self, yielded: Any) -> Future[Any]:
        """``convert_yielded`` in the task's context; an error becomes a future that failed."""
        try:
            future: Any = self._context.run(convert_yielded, yielded)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BadYieldError as error:
            # The line to be shown is that of the ``yield``.
            future = _failed(self._loop, error.with_traceback(None))
        except BaseException as error:
            future = _failed(self._loop, _without_top_frame(error))
        try:
            return future  # type: ignore[no-any-return]
        finally:
            future = yielded = None

    def _suspend(self, yielded: Any) -> Task[Any] | None:
        """Wait for a future, whatever its state; return the task with which the step goes on.

        That is a child that has not started, or this task where there is nothing to wait for.
        """
        if yielded._state == PENDING:
            try:
                if yielded is self:
                    raise RuntimeError(f"Task cannot await on itself: {self!r}")
                yielded._add_waiter(self, self._loop)
            except RuntimeError as error:
                yielded = _failed(self._loop, _without_top_frame(error))
        self._waiting = yielded
        try:
            if yielded._state != PENDING:
                return self
            if not self._held:
                self._hold()
            if self._must_cancel and yielded.cancel(self._cancel_text):
                self._must_cancel = False
            unstarted = type(yielded) is Task and yielded._waiting is _UNSTARTED
            return yielded if unstarted else None
        finally:
            self = yielded = None  # type: ignore[assignment]

    def _run(self, left: int = 0) -> int:
        """Resume the task, and whatever can go on in the same step (see the top of this file).

        Arguments:
            left: how many entries of the ready queue belong to this turn. Tasks that come first
                among them get their steps here as well, without a call for each.
        Returns:
            How many are left then.
        """
        task: Any = self
        loop = self._loop
        ready = loop._ready
        hooks = loop._hooks
        waiting: Any = self._waiting
        value: Any
        yielded: Any
        kind: Any
        # A bare ``yield`` after a bare ``yield`` (it is held since the first), spelt out.
        while waiting is None and hooks is None and not task._must_cancel:
            loop._current_task = task
            try:
                yielded = task._context.run(task._send, None)
            except BaseException as caught:
                loop._current_task = None
                task._thrown(caught)
                # As below, where errors were met.
                self = task = None  # type: ignore[assignment]
                if isinstance(caught, KeyboardInterrupt | SystemExit):
                    raise
                return left
            if yielded is not None:
                waiting = _RESUMED
                break
            ready.append(task)
            loop._poll_wanted = True
            if not left:
                loop._current_task = None
                return left
            task = ready.popleft()
            if type(task) is not Task:
                ready.appendleft(task)
                loop._current_task = None
                return left
            left -= 1
            waiting = task._waiting
        budget = MAX_CONTINUATIONS
        # Whether an error was met whose traceback may refer to this frame.
        errors = False
        try:
            while True:  # once for each task that is resumed in this step
                if waiting is None:
                    value = None
                    error = task._take_cancel() if task._must_cancel else None
                elif waiting._state == DONE and not task._must_cancel:
                    task._waiting = None
                    error = None
                    value = waiting._value
                elif waiting is _RESUMED:
                    error = _RESUMED
                else:
                    task._waiting = None
                    if task._must_cancel:
                        error = task._take_cancel()
                        if waiting._state == DONE:
                            waiting._unclaimed()
                    elif waiting is _UNSTARTED:
                        error = None
                        value = task
                        if hooks is not None:
                            loop._current_task = task
                            hooks.task_started(task)
                    else:
                        error = waiting._take_error()
                loop._current_task = task
                if hooks is not None:
                    hooks.step_started(task)
                context = task._context
                send = task._send

                while True:  # once for each yield of the task
                    if error is None:
                        yielded = context.run(send, value)
                    elif error is _RESUMED:
                        error = None
                    else:
                        errors = True
                        yielded = context.run(send.__self__.throw, error)

                    while True:  # what is usual, spelt out
                        if yielded is _DONE:  # the body has ended: a parent goes on
                            waiting = task._waiter
                            if (
                                waiting is None
                                or waiting._must_cancel
                                or task._must_cancel
                                or task._others is not None
                                or hooks is not None
                                or budget <= 1
                            ):
                                kind = _Ended
                                break
                            budget -= 1
                            _keep_driver(send)
                            if task._held:
                                loop._tasks.pop(task, None)
                            task._state = DONE
                            task._waiter = None
                            value = task._value
                            task = waiting
                            task._waiting = None
                            loop._current_task = task
                            context = task._context
                            send = task._send
                            yielded = context.run(send, value)
                            continue
                        if yielded is None:
                            ready.append(task)
                            loop._poll_wanted = True
                            if not task._held:
                                task._hold()
                        elif (kind := type(yielded)) not in KINDS or task._must_cancel:
                            break
                        elif yielded._state == DONE:
                            if budget <= 1:
                                break
                            budget -= 1
                            value = yielded._value
                            yielded = context.run(send, value)
                            continue
                        elif (
                            yielded._state == PENDING
                            and yielded._waiter is None
                            and yielded._others is None
                            and yielded._loop is loop
                            and (
                                kind is not Task
                                or (yielded is not task and yielded._waiting is not _UNSTARTED)
                            )
                        ):
                            yielded._waiter = task
                            task._waiting = yielded
                            if not task._held:
                                task._held = True
                                loop._tasks[task] = None
                        else:
                            break
                        # It is suspended, and there may be others.
                        if not left or errors or hooks is not None:
                            return left
                        following = ready.popleft()
                        if type(following) is not Task:
                            ready.appendleft(following)
                            return left
                        left -= 1
                        budget = MAX_CONTINUATIONS
                        task = following
                        waiting = task._waiting
                        if waiting is None or waiting._state != DONE or task._must_cancel:
                            kind = None
                            break
                        task._waiting = None
                        value = waiting._value
                        loop._current_task = task
                        context = task._context
                        send = task._send
                        yielded = context.run(send, value)
                    if kind is None:
                        break
                    if kind not in KINDS:
                        if kind is _Ended:
                            break
                        if yielded is not moment:
                            errors = True
                            yielded = task._convert(yielded)
                        if yielded is moment:
                            ready.append(task)
                            loop._poll_wanted = True
                            if not task._held:
                                task._hold()
                            return left
                    if yielded._state == PENDING:
                        errors = True
                        waiting = task._suspend(yielded)
                        if waiting is None:
                            return left
                        if waiting is not task:
                            break
                        yielded = task._waiting
                        task._waiting = None
                    budget -= 1
                    if budget <= 0:
                        task._waiting = yielded
                        ready.append(task)
                        if not task._held:
                            task._hold()
                        return left
                    if task._must_cancel:
                        error = task._take_cancel()
                        if yielded._state == DONE:
                            yielded._unclaimed()
                    elif yielded._state == DONE:
                        error = None
                        value = yielded._value
                    else:
                        error = yielded._take_error()

                if kind is None:
                    value = None
                    continue
                if hooks is not None:
                    hooks.step_ended(task)
                if kind is not _Ended:
                    task = waiting
                    waiting = task._waiting
                    continue
                _keep_driver(send)
                errors = True
                task = task._end(yielded.state)
                if task is None:
                    return left
                budget -= 1
                if budget <= 0:
                    if yielded is _FAILED:
                        # Unless a cancellation overtakes it, the parent will look at the error.
                        task._waiting._arm(task._waiting._value)
                    ready.append(task)
                    task = None
                    return left
                waiting = task._waiting
        except BaseException as caught:
            errors = True
            if task is None or task._state != PENDING:
                raise
            task._thrown(caught)
            if isinstance(caught, KeyboardInterrupt | SystemExit):
                raise
            return left
        finally:
            if hooks is not None and task is not None:
                hooks.step_ended(task)
            loop._current_task = None
            if errors:
                self = task = waiting = error = value = None  # type: ignore[assignment]
                yielded = context = send = None

    def _thrown(self, error: BaseException) -> None:
        """Settle the task with an error that passed its driver, which is thereby used up.

        Interrupts do so, and what meets a body that has not begun or was closed by force.
        """
        self._body.close()
        self._value = _without_top_frame(error)
        parent = self._end(CANCELLED if isinstance(error, CancelledError) else FAILED)
        if parent is not None:
            self._loop._ready.append(parent)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            # It leaves ``start`` as well, and so is looked at.
            self._retrieve()
        self = error = parent = None  # type: ignore[assignment]

    def _end(self, state: int) -> Task[Any] | None:
        """Settle the task, which has its value; return the parent if it goes on in this step."""
        if self._held:
            self._loop._tasks.pop(self, None)
        if self._must_cancel and state == DONE:
            state = CANCELLED
            self._value = self._take_cancel()
        self._state = state
        if state == FAILED:
            self._traceback = self._value.__traceback__
        hooks = self._loop._hooks
        if hooks is not None:
            hooks.task_ended(self)
        waiter: Any = self._waiter
        if self._others is None:
            if type(waiter) is Task:
                self._waiter = None
                return waiter  # type: ignore[no-any-return]
            if waiter is None:
                if state == FAILED:
                    self._arm(self._value)
                return None
        if state == FAILED:
            self._arm(self._value)
        self._wake()
        return None


# What a task that was called too deep waits for: its first step.
_UNSTARTED: Future[Any] = Future()
_UNSTARTED._state = CANCELLED

# What stands for an error, and for what a task waited for, where it was resumed already.
_RESUMED: Any = Future()


def cancel_with_inputs(future: Any, msg: Any) -> None:
    """Cancel what ends when others end (a task, a list) by way of these others.

    A loop and not a recursion: chains and trees of them have no limit. Each is asked once, however
    often it is reached. Where they wait for each other in a circle, one task is broken out of it.
    """
    found: dict[Any, None] = {}
    delivered = False
    todo = [future]
    while todo:
        target = todo.pop()
        if target in found:
            continue
        if not target._passes_cancel:
            delivered |= target.cancel(msg)
            continue
        found[target] = None
        inputs = target._pass_cancel(msg)
        if inputs is None:
            delivered = True
        else:
            todo.extend(reversed(inputs))
    stuck = None if delivered else next((each for each in found if type(each) is Task), None)
    if stuck is not None:
        stuck._break_out(msg)


def _without_top_frame(error: BaseException) -> Any:
    """Cut the engine's own frame off the traceback of an error that it caught."""
    traceback = error.__traceback__
    return error.with_traceback(None if traceback is None else traceback.tb_next)


class _Ended:
    """The mark that a driver yields when a body has ended."""

    __slots__ = ("state",)

    def __init__(self, state: int) -> None:
        self.state = state


_DONE, _FAILED, _CANCELLED = map(_Ended, (DONE, FAILED, CANCELLED))

# Drivers without work, by their ``send``.
_drivers: deque[Callable[[Any], Any]] = deque(maxlen=1000)
_take_driver = _drivers.pop
_keep_driver = _drivers.append


class _CurrentTasks:
    """Stands for asyncio's table of current tasks where there is none: Python 3.14 and later."""

    get = staticmethod(asyncio.current_task)

    def __setitem__(self, loop: Any, task: Any) -> None:
        asyncio_tasks._swap_current_task(loop, task)  # type: ignore[attr-defined]

    def pop(self, loop: Any, default: Any = None) -> Any:
        return asyncio_tasks._swap_current_task(loop, default)  # type: ignore[attr-defined]


# The current task of each asyncio loop, if it has one. To write to it does the same as asyncio's
# ``_enter_task`` and ``_leave_task``, at a quarter of the cost.
current_tasks: Any = (
    _CurrentTasks() if sys.version_info >= (3, 14) else vars(asyncio_tasks)["_current_tasks"]
)


def swap_current(loop: Any, task: Any) -> Any:
    """Make a task, or None, the current one of an asyncio loop; return the one before."""
    if task is None:
        return current_tasks.pop(loop, None)
    previous = current_tasks.get(loop)
    current_tasks[loop] = task
    return previous


@types.coroutine
def _drive(face: Any) -> Generator[Any, Any, None]:
    """Run the bodies of tasks, one after another: a task is sent in, then what its body wants.

    Arguments:
        face: an asyncio loop that is to know whose body runs, for the first body; or None.
    """
    task = yield
    if face is not None:
        # What ``yield from`` does, spelt out.
        value = yielded = outer = None
        try:
            resume = task._body.send
            while True:
                outer = swap_current(face, task)
                try:
                    yielded = resume(value)
                finally:
                    swap_current(face, outer)
                    value = outer = None
                try:
                    value = yield yielded
                    resume = task._body.send
                except GeneratorExit:
                    task._body.close()
                    raise
                except BaseException as error:
                    value = _without_top_frame(error)
                    resume = task._body.throw
        except _INTERRUPTS:
            raise
        except BaseException as error:
            ended = _outcome(task, error)
        finally:
            task = face = value = yielded = resume = None
        task = yield ended
    while True:
        try:
            task._value = yield from task._body
            ended = _DONE
        except _INTERRUPTS:
            task = None
            raise
        except BaseException as error:
            ended = _outcome(task, error)
        # The frame stands in the traceback of an error that the task holds.
        task = None
        task = yield ended


# They pass the driver, and end it.
_INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def _outcome(task: Any, error: BaseException) -> _Ended:
    """Keep what a body's end, which reached its driver as an error, came to; return the mark."""
    if isinstance(error, Return | StopIteration):
        task._value = error.value
        return _DONE
    # The driver's frame.
    task._value = _without_top_frame(error)
    return _CANCELLED if isinstance(error, CancelledError) else _FAILED


def _driver(face: Any = None) -> Callable[[Any], Any]:
    driver = _drive(face)
    send = driver.send
    send(None)
    return send


def _failed(loop: Any, error: BaseException) -> Future[Any]:
    """Make a future that has failed, for a task to raise the error where it stands."""
    future: Future[Any] = Future(loop=loop)
    future._fail_quietly(error)
    try:
        return future
    finally:
        del future, error


def launch_coroutine(body: Any, loop: Any, context: Context) -> Task[Any]:
    """Make and start the task of a coroutine object, which may call for asyncio's current task.

    A generator cannot enter an ``asyncio.timeout`` or the like, so on a native loop its steps do
    not pay for it.
    """
    return _launch(body, loop, context, _driver(loop.asyncio_loop) if loop._native else None)


def _launch(
    body: Any, loop: Any, context: Context, send: Callable[[Any], Any] | None = None
) -> Task[Any]:
    """Make the task of a coroutine call and start it, or in the next turn if it is nested too deep.

    It leaves the first step to ``_run``; calls of generator functions, if neither too deep nor
    observed, have a way of their own (see ``coroutine``).
    """
    task: Any = Task()
    task._set_up(body, loop, context)
    task._send = send or (_take_driver() if _drivers else _driver())
    task._waiting = _UNSTARTED
    if loop._depth >= MAX_DEPTH:
        task._hold()
        loop._ready.append((task._start_queued, (), None))
        return task  # type: ignore[no-any-return]
    loop._depth += 1
    outer = loop._current_task
    try:
        task._run()
        return task  # type: ignore[no-any-return]
    finally:
        loop._depth -= 1
        loop._current_task = outer
        # As in ``_run``, where errors were met.
        task = body = context = outer = None  # type: ignore[assignment]


def _launched(task: Any, yielded: Any) -> None:
    """Go on after the first step of a task, which yielded what is seldom yielded then."""
    loop = task._loop
    loop._depth += 1
    try:
        if type(yielded) is _Ended:
            _keep_driver(task._send)
            following = task._end(yielded.state)
        else:
            if type(yielded) not in KINDS and yielded is not moment:
                yielded = task._convert(yielded)
            if yielded is moment:
                task._hold()
                loop._ready.append(task)
                loop._poll_wanted = True
                following = None
            else:
                following = task._suspend(yielded)
        if following is not None:
            following._run()
    except BaseException as error:
        if task._state != PENDING:
            raise
        task._thrown(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    finally:
        loop._depth -= 1
        task = yielded = following = None


def _settled(func: Any, loop: Any, context: Context, state: int, value: Any) -> Task[Any]:
    """Make the task of a call that ended without suspending and without a generator."""
    task: Any = Task()
    task._set_up(_no_body(), loop, context)
    task._name = getattr(func, "__qualname__", None) or repr(func)
    task._value = value
    task._end(state)
    try:
        return task  # type: ignore[no-any-return]
    finally:
        task = value = None


def _no_body() -> Generator[Any, Any, Any]:
    return
    yield


@overload
def coroutine(func: Callable[P, Generator[Any, Any, T]]) -> Callable[P, Task[T]]: ...
@overload
def coroutine(func: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Task[T]]: ...
@overload
def coroutine(func: Callable[P, T]) -> Callable[P, Task[T]]: ...
def coroutine(func: Callable[..., Any]) -> Callable[..., Task[Any]]:
    """Make a coroutine function of a generator function (or of a plain or ``async def`` function).

    Calling it runs the body at once, up to its first ``yield`` of something unfinished, and
    returns a ``Task``. All errors of the body, also those before the first ``yield``, end in the
    task.

    Arguments:
        func: the function. Its result is what it returns, or the value of ``raise Return(value)``.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Task[Any]:
        loop = slot.running or slot.loop()
        try:
            # Nothing of the body runs here, so it needs no context of its own.
            body = func(*args, **kwargs) if kwargs else func(*args)
        except Exception as error:
            # It takes other arguments.
            if "callback" in kwargs:
                instead = f"a coroutine takes no callback; write: yield {func.__name__}(...)"
                error = TypeError(f"{error}: {instead}")
            return _settled(func, loop, copy_context(), FAILED, _without_top_frame(error))
        context = copy_context()
        depth = loop._depth
        if depth >= loop._nesting:
            return _launch(body, loop, context)
        # What most calls do is written out here: to end in the first step, or to yield something
        # pending that nobody else waits for. All else goes on in ``_launched``.
        task: Any = Task()
        # ``_set_up`` spelt out, without what nobody looks at before the first step is over.
        task._loop = loop
        task._state = PENDING
        task._waiter = None
        task._others = None
        task._asyncio_future_blocking = False
        task._body = body
        task._context = context
        task._waiting = None
        task._must_cancel = False
        task._cancel_requests = 0
        loop._depth = depth + 1
        outer = loop._current_task
        loop._current_task = task
        task._send = send = _take_driver() if _drivers else _driver()
        try:
            yielded = context.run(send, task)
        except BaseException as error:
            loop._depth = depth
            task._born = loop._now
            task._held = False
            try:
                task._thrown(error)
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                return task  # type: ignore[no-any-return]
            finally:
                loop._current_task = outer
                # As in ``_run``, where errors were met.
                task = body = context = outer = None  # type: ignore[assignment]
        loop._depth = depth
        if (
            yielded is _DONE
            and task._waiter is None
            and task._others is None
            and not task._must_cancel
        ):
            loop._current_task = outer
            _keep_driver(send)
            task._state = DONE
            return task  # type: ignore[no-any-return]
        task._born = loop._now
        task._held = False
        if yielded is None:
            # It waits for something, so that a parent need not ask whether it runs.
            task._waiting = moment
            task._hold()
            loop._ready.append(task)
            loop._poll_wanted = True
        elif (
            (kind := type(yielded)) is Task
            and (below := yielded._waiting) is not None
            and below is not _UNSTARTED
            and yielded._waiter is None
            and yielded._others is None
            and yielded._loop is loop
            and not task._must_cancel
        ):
            # A child that is suspended is held, or below it is, and refers to its parent.
            yielded._waiter = task
            task._waiting = yielded
        elif (
            kind is not Task
            and kind in KINDS
            and yielded._state == PENDING
            and yielded._waiter is None
            and yielded._others is None
            and yielded._loop is loop
            and not task._must_cancel
        ):
            yielded._waiter = task
            task._waiting = yielded
            task._hold()
        else:
            try:
                _launched(task, yielded)
                return task  # type: ignore[no-any-return]
            finally:
                loop._current_task = outer
                task = body = context = outer = yielded = None  # type: ignore[assignment]
        loop._current_task = outer
        return task  # type: ignore[no-any-return]

    def plain_wrapper(*args: Any, **kwargs: Any) -> Task[Any]:
        loop = slot.running or slot.loop()
        context = copy_context()
        try:
            body = context.run(func, *args, **kwargs)
            if type(body) is types.GeneratorType:
                return _launch(body, loop, context)
            if inspect.iscoroutine(body):
                return launch_coroutine(body, loop, context)
            return _settled(func, loop, context, DONE, body)
        except Return as stop:
            return _settled(func, loop, context, DONE, stop.value)
        except CancelledError as error:
            return _settled(func, loop, context, CANCELLED, _without_top_frame(error))
        except Exception as error:
            return _settled(func, loop, context, FAILED, _without_top_frame(error))
        finally:
            body = None

    chosen = wrapper if inspect.isgeneratorfunction(func) else plain_wrapper
    functools.update_wrapper(chosen, func)
    chosen.__coro_coroutine__ = True  # type: ignore[attr-defined]
    return chosen


def is_coroutine_function(func: Any) -> bool:
    """Whether ``func`` was made by ``@coroutine``."""
    return bool(getattr(func, "__coro_coroutine__", False))


def running_tasks(frame: FrameType | None) -> list[Task[Any]]:
    """The tasks whose steps are on a thread's stack, innermost first.

    Coroutines that call others are nested there; only the innermost is known to the loop.
    """
    tasks: list[Task[Any]] = []
    while frame is not None:
        if frame.f_code in _STEPS:
            task = frame.f_locals.get("task")
            if task is not None and task._state == PENDING:
                tasks.append(task)
        frame = frame.f_back
    return tasks


def current_task() -> Task[Any] | None:
    """Return the task whose step is running in this thread, or None outside of tasks.

    Inside asyncio it is what ``asyncio.current_task()`` says: in an ``async def`` function that
    asyncio runs, a task of asyncio.
    """
    task: Task[Any] | None = current_task_of(slot.running or slot.found())
    return task


def current_task_of(loop: Any) -> Any:
    """Likewise, of a loop (or of None); a task of asyncio's too, where it runs on that loop."""
    if loop is None:
        return None
    task = loop._current_task
    if task is None and loop._host is not None:
        task = asyncio.current_task(loop._host)
    return task


def all_tasks() -> set[Task[Any]]:
    """Return the tasks of the current loop that have not ended."""
    loop = IOLoop.current(instance=False)
    if loop is None:
        return set()
    running = running_tasks(sys._getframe())
    return {*loop._live_tasks(), *(task for task in running if task._loop is loop)}


class _Chained(Future[Any]):
    """A future of this loop that follows one of concurrent.futures."""

    __slots__ = ()

    def __init__(self, source: Any) -> None:
        super().__init__(loop=slot.running or slot.loop())
        chain_future(source, self)


class _Foreign(Future[Any]):
    """A future of this loop that follows one of asyncio's, of the same thread.

    Cancelling it cancels that one and nothing else: as in asyncio, what comes of it is what the
    other comes to.
    """

    __slots__ = ("_source",)

    def __init__(self, source: Any) -> None:
        super().__init__(loop=slot.running or slot.loop())
        host = self._loop._host
        if host is not None and (theirs := source.get_loop()) is not host:
            raise WrongLoopError(
                f"{source!r} belongs to {theirs!r} and cannot be waited for on {self._loop!r}"
            )
        # Until it is done: it refers to this one then.
        self._source: Any = source
        if source.done():
            self._follow(source)
        else:
            source.add_done_callback(self._follow)

    def _follow(self, source: Any) -> None:
        self._source = None
        if self._state == PENDING:
            if source.cancelled():
                super().cancel(getattr(source, "_cancel_message", None))
            elif (error := source.exception()) is not None:
                self.set_exception(error)
                # The error may come to refer to this frame.
                del error, self
            else:
                self.set_result(source.result())

    def cancel(self, msg: Any = None) -> bool:
        source = self._source
        if source is None:
            return super().cancel(msg)
        passed_on = bool(source.cancel(msg))
        if source.get_loop() is asyncio._get_running_loop():
            return passed_on
        # Nothing may ever come of it.
        return super().cancel(msg)

    def _awaited(self) -> str:
        return ""

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        return () if self._source is None else (("", self._source),)


def _is_awaitable(x: object) -> TypeGuard[Awaitable[Any]]:
    return inspect.isawaitable(x)


@functools.singledispatch
def convert_yielded(yielded: Any) -> Future[Any]:
    """Return a future for something that a coroutine yielded.

    Futures of coro stay as they are; those of asyncio and concurrent.futures are followed by one;
    lists and dicts are waited for side by side; awaitables are driven by a task. Other types can be
    added with ``convert_yielded.register(SomeType, function)``.

    Raises:
        BadYieldError: it cannot be waited for.
    """
    if yielded is None:
        return moment
    if isinstance(yielded, Future):
        return yielded
    if isinstance(yielded, concurrent.futures.Future):
        return _Chained(yielded)
    if is_future(yielded):
        return _Foreign(yielded)
    if _is_awaitable(yielded):
        return _drive_coroutine(_await(yielded))
    raise BadYieldError(f"yielded unknown object {shortened(yielded)}{_likely_slip(yielded)}")


@convert_yielded.register(types.CoroutineType)
def _drive_coroutine(body: Any) -> Task[Any]:
    return launch_coroutine(body, slot.running or slot.loop(), copy_context())


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _likely_slip(yielded: object) -> str:
    """What was probably meant, and the line that does it."""
    name = getattr(yielded, "__name__", "it")
    if isinstance(yielded, types.GeneratorType):
        if name == "<genexpr>":
            return ": to wait for several things side by side, write: yield [... for ... in ...]"
        return f": {name} lacks its decorator, write: @coroutine before def {name}(...)"
    if inspect.isasyncgen(yielded):
        return f": {name} gives several values, in async def write: async for x in {name}(...)"
    if isinstance(yielded, type):
        return f": a class is nothing to wait for, perhaps an instance is: yield {name}(...)"
    if callable(yielded):
        slip = f": {name} was not called, write: yield {name}(...)"
        if inspect.isgeneratorfunction(yielded) and not is_coroutine_function(yielded):
            slip += f", and @coroutine before def {name}(...)"
        return slip
    if isinstance(yielded, tuple | set | frozenset):
        return ": to wait for several things side by side, write: yield [a, b]"
    if isinstance(yielded, int | float) and not isinstance(yielded, bool):
        return f": to wait for so many seconds, write: yield sleep({yielded!r})"
    return ": it is nothing to wait for; to end with a result, write: return ..."


@coroutine
def _sample() -> Generator[Any, Any, None]:
    yield


# The functions in which steps are taken: their variable ``task`` is whose.
_STEPS = (Task._run.__code__, _sample.__code__)

IOLoop.convert = staticmethod(convert_yielded)
IOLoop.task_type = Task
