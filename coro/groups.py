"""``TaskGroup``: tasks that end together, none of which outlives the block.

The rules are asyncio's: the first failure cancels the others and interrupts the block itself, all
are waited for, and what failed is raised as one ``ExceptionGroup``. A task that is cancelled by
itself does not fail the group.

``async with`` waits at the end of the block. A ``with`` block cannot, for only a ``yield`` waits:
there the last line is ``yield group.join()``. What a ``with`` block can do where that line is
missing, or is not reached, is to cancel what still runs, which then ends by itself.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Generator
from contextvars import Context
from types import TracebackType
from typing import Any, Self

from coro.errors import CancelledError
from coro.future import CANCELLED, DONE, PENDING, Future, slot
from coro.task import Task, convert_yielded, coroutine, current_task, launch_coroutine

__all__ = ["TaskGroup"]

_MESSAGE = "unhandled errors in a TaskGroup"


class TaskGroup:
    """A block of tasks: ``with TaskGroup() as group: ...; yield group.join()``.

    In ``async def``: ``async with TaskGroup() as group: ...``, without ``join``.

    The first task that fails cancels the others and the block. When all have ended, an
    ``ExceptionGroup`` of what failed is raised. An error of the block itself, or a cancellation of
    the task around it, cancels the group's tasks likewise.
    """

    def __init__(self) -> None:
        # The task whose block it is, from entering to leaving.
        self._parent: Task[Any] | None = None
        self._entered = False
        # Those that have not ended, in the order in which they were created.
        self._tasks: dict[Future[Any], None] = {}
        self._errors: list[BaseException] = []
        # The first KeyboardInterrupt or SystemExit.
        self._interrupt: BaseException | None = None
        # Whether the tasks were cancelled because one failed, or the block did.
        self._aborting = False
        # Whether somebody waits for the end of all; what they wait for.
        self._joining = False
        self._all_ended: Future[None] | None = None
        # What ``join`` raised.
        self._told: BaseException | None = None
        # Whether this group cancelled the parent, to interrupt the block.
        self._parent_cancelled = False

    def __repr__(self) -> str:
        parts = [f"tasks={len(self._tasks)}"]
        if self._errors:
            parts.append(f"errors={len(self._errors)}")
        if self._aborting:
            parts.append("cancelling")
        elif not self._entered:
            parts.append("not entered")
        return f"<TaskGroup {' '.join(parts)}>"

    def create_task(
        self,
        func: Any,
        *args: Any,
        name: str | None = None,
        context: Context | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start a task in the group and return it.

        Arguments:
            func: a coroutine function, called with ``args`` and ``kwargs``; or something that can
                be waited for: a task, a future, a coroutine object.
            name: of the task, for logs and dumps.
            context: the ``contextvars`` context to call it in; by default the present one. An
                ``async def`` coroutine runs in this very context, others in a copy of it.
        Raises:
            RuntimeError: the group was not entered, is being left, or cancels its tasks.
            TypeError: arguments for something that is not called.
        """
        called = callable(func) and not isinstance(func, Future)
        try:
            if not called and (args or kwargs):
                raise TypeError(f"{func!r} takes no arguments: it is waited for, not called")
            if self._parent is None:
                state = "is finished" if self._entered else "has not been entered"
                raise RuntimeError(f"{self!r} {state}: create tasks inside its block")
            if self._aborting:
                raise RuntimeError(f"{self!r} is shutting down: a task failed, or the block did")
        except BaseException:
            if inspect.iscoroutine(func):
                func.close()
            raise

        if called:
            func = context.run(func, *args, **kwargs) if context else func(*args, **kwargs)
        task: Future[Any]
        if context is not None and inspect.iscoroutine(func):
            task = launch_coroutine(func, self._parent._loop, context)
        else:
            task = convert_yielded(func)
        if name is not None and isinstance(task, Task):
            task.set_name(name)
        if task._state == PENDING:
            self._tasks[task] = None
            task.add_done_callback(self._ended)
        else:
            self._ended(task)
        try:
            return task
        finally:
            del task, func, self

    def _ended(self, task: Future[Any]) -> None:
        self._tasks.pop(task, None)
        if self._all_ended is not None and not self._tasks and self._all_ended._state == PENDING:
            self._all_ended.set_result(None)
        # Of a group that was left already, an error that nobody looks at logs itself.
        if self._parent is None or task._state in (DONE, CANCELLED):
            return
        error = task.exception()
        assert error is not None
        self._errors.append(error)
        if self._interrupt is None and isinstance(error, KeyboardInterrupt | SystemExit):
            self._interrupt = error
        del error
        if not self._aborting:
            self._abort()
            if not self._joining:
                self._parent_cancelled = True
                self._parent.cancel()

    def _abort(self) -> None:
        self._aborting = True
        for task in list(self._tasks):
            task.cancel()

    @coroutine
    def join(self) -> Any:
        """Wait until all tasks have ended; those that they create in the group meanwhile too.

        Raises:
            ExceptionGroup: one or more failed.
            CancelledError: the wait was cancelled; so were the tasks, and they have ended.
        """
        if self._parent is None:
            raise RuntimeError("join() is for inside the block: with TaskGroup() as group: ...")
        try:
            self._raise((yield from self._wait()))
        finally:
            # An error may refer to this frame.
            del self

    @types.coroutine
    def _wait(self) -> Generator[Any, Any, CancelledError | None]:
        """Wait until all have ended; return the cancellation of the wait, if there was one."""
        cancelled: CancelledError | None = None
        self._joining = True
        try:
            while self._tasks:
                self._all_ended = Future(loop=slot.running)
                try:
                    yield from self._all_ended
                except CancelledError as error:
                    if not self._aborting:
                        cancelled = error
                        self._abort()
            return cancelled
        finally:
            self._joining = False
            self._all_ended = None
            del cancelled, self

    def _raise(self, cancelled: BaseException | None) -> None:
        """Raise what came of the tasks, if it is not good; it is told once."""
        errors, self._errors = self._errors, []
        interrupt, self._interrupt = self._interrupt, None
        try:
            if interrupt is not None:
                raise interrupt
            if errors:
                self._told = BaseExceptionGroup(_MESSAGE, errors)
                raise self._told from None
            if cancelled is not None:
                raise cancelled
        finally:
            del errors, interrupt, cancelled, self

    def __enter__(self) -> Self:
        parent: Any = current_task()
        if parent is None:
            raise RuntimeError(
                "TaskGroup() cannot determine the parent task: it works only inside a coroutine"
            )
        if self._entered:
            raise RuntimeError(f"{self!r} has already been entered: make another one")
        self._entered = True
        self._parent = parent
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            running = len(self._tasks)
            if running and not self._aborting:
                self._abort()
            cancelled = self._own_cancel(error)
            if error is None and running and not self._errors:
                raise RuntimeError(
                    f"the block of a TaskGroup ended while {running} of its tasks ran; they are "
                    "cancelled now. Its last line must be: yield group.join()"
                )
            self._conclude(error, cancelled)
        finally:
            self._parent = None
            self._told = None
            del error, traceback, self, cancelled

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        cancelled: BaseException | None = None
        try:
            cancelled = self._own_cancel(error)
            if error is not None and not self._aborting:
                self._abort()
            late = await self._wait()
            self._conclude(error, late or cancelled)
        finally:
            self._parent = None
            self._told = None
            late = None
            del error, traceback, self, cancelled

    def _own_cancel(self, error: BaseException | None) -> BaseException | None:
        """Take this group's own cancellation of its parent back; return one that has to go on."""
        assert self._parent is not None
        if self._parent_cancelled:
            self._parent_cancelled = False
            if self._parent.uncancel() == 0:
                return None
        return error if isinstance(error, CancelledError) else None

    def _conclude(self, error: BaseException | None, cancelled: BaseException | None) -> None:
        """Raise what the block ends with, unless that is the error with which it is left."""
        parent = self._parent
        assert parent is not None
        try:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                return
            if error is not None and not isinstance(error, CancelledError):
                if error is not self._told:
                    self._errors.append(error)
            if (self._errors or self._told is not None) and parent.cancelling():
                # The errors come first, and the cancellation at the next ``yield``.
                parent.uncancel()
                parent.cancel()
            if cancelled is error and not self._errors:
                return
            self._raise(cancelled)
        finally:
            del error, cancelled, parent, self
