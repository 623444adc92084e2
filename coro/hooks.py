"""What can be watched: the observer interface. This room does nothing by itself.

A loop without observers pays one attribute test per turn and per task step. With observers it calls
``Hooks``, which passes each event on. An observer that raises is unplugged and the error is logged:
a broken watcher must not hurt the watched program.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["Hooks", "Observer"]

_log = logging.getLogger("coro.general")


class Observer:
    """Base of observers: override what you want to see. Each method must return quickly.

    ``loop`` is an ``IOLoop``, ``task`` a ``Task``.
    """

    def turn_started(self, loop: Any) -> None:
        """The loop woke from its poll and begins a turn."""

    def turn_ended(self, loop: Any) -> None:
        """The loop ran what was ready and is about to poll again."""

    def step_started(self, task: Any) -> None:
        """The task is about to run until its next unfinished ``yield``."""

    def step_ended(self, task: Any) -> None:
        """The task suspended itself or ended."""

    def task_started(self, task: Any) -> None:
        """The task was created and is about to run for the first time."""

    def task_ended(self, task: Any) -> None:
        """The task has a result, an error, or was cancelled."""

    def resource_opened(self, resource: Any) -> None:
        """Something that has to be closed was made on the loop: a stream."""

    def resource_closed(self, resource: Any) -> None:
        """It was closed."""

    def loop_closed(self, loop: Any) -> None:
        """The loop closes: what depends on it has ended, what it holds is about to go."""


class Hooks:
    """The observers of one loop, called in the order in which they were added."""

    __slots__ = ("observers",)

    def __init__(self) -> None:
        self.observers: list[Observer] = []

    def _tell(self, event: str, subject: Any) -> None:
        for observer in tuple(self.observers):
            try:
                getattr(observer, event)(subject)
            except Exception:
                # It may be gone already: unplugged by itself, or by a failure inside this one.
                if observer in self.observers:
                    self.observers.remove(observer)
                _log.exception("Observer %r failed in %s and was unplugged", observer, event)

    def turn_started(self, loop: Any) -> None:
        """Pass on the start of a turn."""
        self._tell("turn_started", loop)

    def turn_ended(self, loop: Any) -> None:
        """Pass on the end of a turn."""
        self._tell("turn_ended", loop)

    def step_started(self, task: Any) -> None:
        """Pass on the start of a step."""
        self._tell("step_started", task)

    def step_ended(self, task: Any) -> None:
        """Pass on the end of a step."""
        self._tell("step_ended", task)

    def task_started(self, task: Any) -> None:
        """Pass on the start of a task."""
        self._tell("task_started", task)

    def task_ended(self, task: Any) -> None:
        """Pass on the end of a task."""
        self._tell("task_ended", task)

    def resource_opened(self, resource: Any) -> None:
        """Pass on that a stream was made."""
        self._tell("resource_opened", resource)

    def resource_closed(self, resource: Any) -> None:
        """Pass on that a stream was closed."""
        self._tell("resource_closed", resource)

    def loop_closed(self, loop: Any) -> None:
        """Pass on the close of the loop."""
        self._tell("loop_closed", loop)
