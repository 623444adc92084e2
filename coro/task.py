"""``Task`` and ``@coroutine``: the engine that drives generators (and ``async def`` coroutines).

A task is the future that the caller of a coroutine holds; there is no runner object beside it.
Calling a coroutine function creates the task and runs it at once, up to its first ``yield`` of
something unfinished. From there on the task waits in that thing's waiter slot, and is put into the
loop's ready queue when it is settled.

``Task._run`` is the whole engine, one function on purpose: it is what a program spends its time in,
and a call per step or per level would show. It resumes a task, and goes on in the same step

- while the task yields things that are settled already (up to a bound, then through the queue, so
  that such a task cannot starve the loop);
- with the parent, when the task ended and the parent is all that waits for it. A chain of
  coroutines is thus unwound without recursion and without a trip through the queue for each level;
- with a child that has not started yet. A call starts its coroutine inside the caller's step, which
  nests; beyond a fixed depth a call only creates the task, which starts when it is yielded (or
  else in the next turn). So neither chain nor tree of coroutines can exhaust the interpreter's
  stack.

Context. Every call runs all its steps in one copy of the caller's ``contextvars`` context:
``context.run(generator.send, value)``, both of them C functions, so no frame of ours stands between
the coroutines of a traceback.

Tracebacks and lifetimes. An error leaves the generator with the frame of ``_run`` on top of its
traceback; that entry is cut off. The traceback is kept beside the error and put back each time the
error is raised, so that raising it again does not lengthen it. The frame of ``_run`` stays
reachable from the generator's dead frame (``f_back``), therefore it drops its locals before it
ends: otherwise error, traceback, frame and task would form a circle that only the collector could
free.

Cancellation. ``cancel`` walks down to what the innermost task waits for and cancels that; the error
comes back up as ``CancelledError``. If there is nothing to cancel (the thing is settled in this
very turn, the task is about to run, or runs) the task is marked, and the error is thrown at its
next step or ``yield``. Either way each request is delivered once.
"""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from typing import Any, ParamSpec, TypeGuard, overload

from typing_extensions import TypeVar

from coro.errors import BadYieldError, CancelledError
from coro.future import CANCELLED, DONE, FAILED, PENDING, Future, chain_future, is_future, slot
from coro.loop import IOLoop

__all__ = [
    "Return",
    "Task",
    "convert_yielded",
    "coroutine",
    "current_task",
    "is_coroutine_function",
    "moment",
]

T = TypeVar("T", default=Any)
P = ParamSpec("P")

# How deep calls of coroutines may nest inside one step before a call only creates its task.
MAX_DEPTH = 64

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


class Task(Future[T]):
    """A running coroutine, and the future of its result.

    Made by calling a coroutine function. It is a ``Future`` that can also be cancelled from
    outside: ``cancel()`` raises ``CancelledError`` at the ``yield`` where the coroutine stands.
    """

    __slots__ = (
        "_cancel_message",
        "_cancel_requests",
        "_enter",
        "_held",
        "_must_cancel",
        "_name",
        "_send",
        "_started",
        "_waiting",
    )

    _passes_cancel = True

    _cancel_message: Any
    _name: str

    def __init__(
        self, body: Generator[Any, Any, T] | Coroutine[Any, Any, T], loop: Any, context: Context
    ) -> None:
        self._loop = loop
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._callbacks = None
        self._asyncio_future_blocking = False
        # Bound once: run in the task's context, send into the generator.
        self._enter = context.run
        self._send = body.send
        # The future whose settling resumes the task. None while it runs, is queued by a bare
        # ``yield``, or has ended.
        self._waiting: Future[Any] | None = None
        self._started = True
        # Whether the loop's set of suspended tasks refers to it, so that it cannot vanish.
        self._held = False
        self._must_cancel = False
        self._cancel_requests = 0

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
        self._cancel_message = msg
        return None

    def _break_out(self, msg: Any) -> None:
        """Be cancelled without what it waits for, which waits for it in turn."""
        assert self._waiting is not None
        self._waiting._forget_waiter(self)
        self._waiting = None
        self._must_cancel = True
        self._cancel_message = msg
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
        message = self._cancel_message
        return CancelledError() if message is None else CancelledError(message)

    def set_result(self, result: Any) -> None:
        """Not for tasks: the coroutine settles its task."""
        raise RuntimeError("Task does not support set_result operation")

    def set_exception(self, exception: Any) -> None:
        """Not for tasks: the coroutine settles its task."""
        raise RuntimeError("Task does not support set_exception operation")

    # --- being looked at -------------------------------------------------------------------

    def get_coro(self) -> Any:
        """Return the generator or coroutine object that it drives."""
        return self._send.__self__  # type: ignore[attr-defined]

    def get_context(self) -> Context:
        """Return the ``contextvars`` context that all its steps run in."""
        return self._enter.__self__  # type: ignore[attr-defined, no-any-return]

    def get_name(self) -> str:
        """Return its name: what ``set_name`` gave, else the qualified name of its function."""
        try:
            return self._name
        except AttributeError:
            body = self.get_coro()
            return str(getattr(body, "__qualname__", None) or body)

    def set_name(self, name: object) -> None:
        """Name it for logs and dumps."""
        self._name = str(name)

    def _origin(self) -> str:
        return f"Task {self.get_name()!r}"

    def _describe(self) -> str:
        text = f"{self.get_name()} {super()._describe()}"
        waiting = self._waiting
        if waiting is None:
            return text
        # Of a task the name alone: a chain of them may be as long as it likes.
        return f"{text}, waits for {waiting.get_name() if type(waiting) is Task else waiting!r}"

    # --- running ---------------------------------------------------------------------------

    def _start_queued(self) -> None:
        """Start it if nobody yielded it since it was created beyond ``MAX_DEPTH``."""
        if not self._started:
            self._started = True
            self._run()

    def _hold(self) -> None:
        self._held = True
        self._loop._tasks.add(self)

    def _run(self) -> None:
        """Resume the task, and whatever can go on in the same step (see the top of this file)."""
        task: Any = self
        loop = self._loop
        outer = loop._current_task
        hooks = loop._hooks
        budget = MAX_CONTINUATIONS
        waiting: Any
        error: Any
        value: Any
        yielded: Any
        try:
            while True:  # once for each task that is resumed in this step
                error = value = None
                waiting = task._waiting
                if waiting is not None:
                    task._waiting = None
                    if task._must_cancel:
                        error = task._take_cancel()
                        if waiting._state == DONE:
                            waiting._unclaimed()
                    elif waiting._state == DONE:
                        value = waiting._value
                    else:
                        error = waiting._take_error()
                    waiting = None
                elif task._must_cancel:
                    error = task._take_cancel()
                loop._current_task = task
                if hooks is not None:
                    hooks.step_started(task)
                enter = task._enter
                send = task._send

                while True:  # once for each yield of the task
                    try:
                        if error is None:
                            yielded = enter(send, value)
                        else:
                            yielded = enter(send.__self__.throw, error)
                    except StopIteration as stop:
                        state = DONE
                        value = stop.value
                        break
                    except Return as stop:
                        state = DONE
                        value = stop.value
                        break
                    except CancelledError as caught:
                        state = CANCELLED
                        value = _without_top_frame(caught)
                        break
                    except (KeyboardInterrupt, SystemExit) as caught:
                        waiting = task._end(FAILED, _without_top_frame(caught))
                        if waiting is not None:
                            loop._ready.append(waiting)
                        # It leaves ``start`` as well, and so is looked at.
                        task._retrieve()
                        raise
                    except BaseException as caught:
                        state = FAILED
                        value = _without_top_frame(caught)
                        break

                    if yielded is None or yielded is moment:
                        loop._ready.append(task)
                        if not task._held:
                            task._hold()
                        return
                    kind = type(yielded)
                    if kind is not Task and kind is not Future and not isinstance(yielded, Future):
                        try:
                            yielded = enter(convert_yielded, yielded)
                        except (KeyboardInterrupt, SystemExit):
                            raise
                        except BaseException as caught:
                            error = _without_top_frame(caught)
                            continue
                        kind = type(yielded)
                    if yielded._state == PENDING:
                        if (
                            yielded._waiter is None
                            and yielded._callbacks is None
                            and yielded._loop is loop
                            and yielded is not task
                        ):
                            yielded._waiter = task
                        else:
                            try:
                                if yielded is task:
                                    raise RuntimeError(f"Task cannot await on itself: {task!r}")
                                yielded._add_waiter(task, loop)
                            except RuntimeError as caught:
                                error = _without_top_frame(caught)
                                continue
                        task._waiting = yielded
                        if not task._held:
                            task._held = True
                            loop._tasks.add(task)
                        if task._must_cancel and yielded.cancel(task._cancel_message):
                            task._must_cancel = False
                        if kind is Task and not yielded._started:
                            yielded._started = True
                            break
                        return
                    budget -= 1
                    if budget <= 0:
                        task._waiting = yielded
                        loop._ready.append(task)
                        if not task._held:
                            task._hold()
                        return
                    if task._must_cancel:
                        error = task._take_cancel()
                        if yielded._state == DONE:
                            yielded._unclaimed()
                    elif yielded._state == DONE:
                        error = None
                        value = yielded._value
                    else:
                        error = yielded._take_error()

                if hooks is not None:
                    hooks.step_ended(task)
                if task._waiting is not None:
                    task = task._waiting
                    continue
                task = task._end(state, value)
                if task is None:
                    return
                budget -= 1
                if budget <= 0:
                    if state == FAILED:
                        # Unless a cancellation overtakes it, the parent will look at the error.
                        task._waiting._arm(value)
                    loop._ready.append(task)
                    task = None
                    return
        finally:
            loop._current_task = outer
            if hooks is not None and task is not None:
                hooks.step_ended(task)
            self = task = outer = waiting = error = value = None  # type: ignore[assignment]
            yielded = enter = send = None

    def _end(self, state: int, value: Any) -> Task[Any] | None:
        """Settle the task; return the parent if it is to be resumed in this step."""
        if self._held:
            self._loop._tasks.discard(self)
        if self._must_cancel and state == DONE:
            state = CANCELLED
            value = self._take_cancel()
        self._state = state
        self._value = value
        if state == FAILED:
            self._traceback = value.__traceback__
        hooks = self._loop._hooks
        if hooks is not None:
            hooks.task_ended(self)
        waiter = self._waiter
        if self._callbacks is None:
            if type(waiter) is Task:
                self._waiter = None
                return waiter
            if waiter is None:
                if state == FAILED:
                    self._arm(value)
                return None
        if state == FAILED:
            self._arm(value)
        self._wake()
        return None


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


def _launch(body: Any, loop: Any, context: Context) -> Task[Any]:
    """Make the task of a coroutine call and run it up to its first unfinished yield."""
    task: Any = Task(body, loop, context)
    if loop._depth < MAX_DEPTH:
        loop._depth += 1
        try:
            task._run()
        finally:
            loop._depth -= 1
    else:
        task._started = False
        loop._ready.append((task._start_queued, (), None))
    try:
        return task  # type: ignore[no-any-return]
    finally:
        # This frame is reachable from the traceback of the task's own error.
        task = body = None


def _settled(func: Any, loop: Any, context: Context, state: int, value: Any) -> Task[Any]:
    """Make the task of a call that ended without suspending and without a generator."""
    task: Any = Task(_no_body(), loop, context)
    task._name = getattr(func, "__qualname__", None) or repr(func)
    task._end(state, value)
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
    makes_generator = inspect.isgeneratorfunction(func)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Task[Any]:
        loop = slot.running or slot.loop()
        context = copy_context()
        try:
            # Creating a generator runs nothing of its body, so it needs no context of its own.
            body = func(*args, **kwargs) if makes_generator else context.run(func, *args, **kwargs)
            if makes_generator or type(body) is types.GeneratorType or inspect.iscoroutine(body):
                return _launch(body, loop, context)
            return _settled(func, loop, context, DONE, body)
        except Return as stop:
            return _settled(func, loop, context, DONE, stop.value)
        except CancelledError as error:
            return _settled(func, loop, context, CANCELLED, _without_top_frame(error))
        except Exception as error:
            return _settled(func, loop, context, FAILED, _without_top_frame(error))
        finally:
            body = None

    wrapper.__coro_coroutine__ = True  # type: ignore[attr-defined]
    return wrapper


def is_coroutine_function(func: Any) -> bool:
    """Whether ``func`` was made by ``@coroutine``."""
    return bool(getattr(func, "__coro_coroutine__", False))


def current_task() -> Task[Any] | None:
    """Return the task whose step is running in this thread, or None outside of tasks."""
    loop = slot.running or slot.current
    return None if loop is None else loop._current_task


class _Chained(Future[Any]):
    """A future of this loop that follows one of asyncio or of concurrent.futures."""

    __slots__ = ()

    def __init__(self, source: Any) -> None:
        super().__init__(loop=slot.running or slot.loop())
        chain_future(source, self)


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
    if isinstance(yielded, concurrent.futures.Future) or is_future(yielded):
        return _Chained(yielded)
    if inspect.iscoroutine(yielded):
        return _launch(yielded, slot.running or slot.loop(), copy_context())
    if _is_awaitable(yielded):
        return _launch(_await(yielded), slot.running or slot.loop(), copy_context())
    raise BadYieldError(f"yielded unknown object {yielded!r}{_likely_slip(yielded)}")


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _likely_slip(yielded: object) -> str:
    if isinstance(yielded, types.GeneratorType):
        name = yielded.__qualname__
        return (
            f": {name} is a bare generator; decorate it (@coroutine def {yielded.__name__}...) "
            "or use 'yield from'"
        )
    if callable(yielded):
        name = getattr(yielded, "__name__", "it")
        return f": call it (yield {name}(...))"
    if isinstance(yielded, tuple):
        return ": to wait for several things side by side, yield a list"
    return ""


IOLoop.convert = staticmethod(convert_yielded)
