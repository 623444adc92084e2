"""What a program leaves behind on its loop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from coro.hooks import Observer
from coro.loop import IOLoop

__all__ = ["NotingLoop"]


class NotingLoop(IOLoop):
    """An ``IOLoop`` for one program, which notes what that leaves.

    Attributes:
        left: a line for each task that ran on when the program ended, and each timer and descriptor
            that nobody had taken back when the loop closed. What closes with its loop by itself, as
            a client's idle connections do, is not among them.
    """

    def __init__(self, make_current: bool = True, **options: Any) -> None:
        super().__init__(make_current, **options)
        self.left: list[str] = []
        self._noted = False
        self.add_observer(_Closing())

    def run_sync(self, func: Callable[[], Any], timeout: float | timedelta | None = None) -> Any:
        """Run ``func`` to its end; note what it left running, before anybody cancels that."""
        try:
            return super().run_sync(func, timeout)
        finally:
            if not self._noted:
                self._noted = True
                live = [task for task in self._live_tasks() if not task.done()]
                self.left += [f"task {task.get_name()}" for task in live]

    def note_again(self) -> None:
        """Forget what was noted; note what the next program leaves."""
        self.left.clear()
        self._noted = False


class _Closing(Observer):
    def loop_closed(self, loop: Any) -> None:
        for timer in sorted(loop._timers, key=lambda timer: timer[:2]):
            if timer.callback is not None:
                name = getattr(timer.callback, "__qualname__", timer.callback)
                loop.left.append(f"timer for {name}")
        for registration in loop._handlers.values():
            if registration.subject is not loop._waker:
                loop.left.append(f"descriptor of {registration.subject!r}")
