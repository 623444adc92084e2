"""``PeriodicCallback``: a callback on a grid of times.

The grid is fixed when it starts: call number n is due n periods later. What comes late, because the
callback or another one ran for too long, does not shift the grid: the periods that are over are
left out and counted, and the next call is on the grid again. So it neither drifts nor catches up in
a burst, and never runs twice at once.

This room lies below ``loop``, which hands its name on, so it gets the loop from the thread's slot.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from coro.future import Future, slot
from coro.timers import Timer

__all__ = ["PeriodicCallback"]

_app_log = logging.getLogger("coro.application")


class PeriodicCallback:
    """Call something again and again, once ``start`` is called.

    If the callback returns something awaitable (a coroutine function does), the next call waits
    until that has ended. An error is logged, and the calls go on.

    Arguments:
        callback: called without arguments.
        callback_time: the period in milliseconds, or a ``timedelta``.
        jitter: how much a period may vary at random, as a fraction of it (0 to 1): with 0.1 it is
            at most 5 % shorter or longer. Keeps many programs from acting in the same moment.
    Attributes:
        skipped: how many periods were left out since ``start``, because a call came or ended late.
    Raises:
        ValueError: the period is not positive, or the jitter not a fraction.
    """

    io_loop: Any
    _next_timeout: float

    def __init__(
        self,
        callback: Callable[[], Any],
        callback_time: float | timedelta,
        jitter: float = 0,
    ) -> None:
        if isinstance(callback_time, timedelta):
            callback_time = callback_time / timedelta(milliseconds=1)
        if not callback_time > 0:
            raise ValueError(f"callback_time must be positive (milliseconds), not {callback_time}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be a fraction from 0 to 1, not {jitter}")
        self.callback = callback
        self.callback_time = callback_time
        self.jitter = jitter
        self.skipped = 0
        self._running = False
        self._timeout: Timer | None = None
        # The loop on which a call has not ended yet: its end schedules the next one.
        self._calling_on: Any = None

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped"
        return (
            f"<PeriodicCallback {state} every {self.callback_time:g} ms "
            f"skipped={self.skipped} calls {self.callback!r}>"
        )

    def start(self) -> None:
        """Begin on the current loop: the first call comes after one period.

        If it is running already, the grid begins anew.
        """
        if self._running:
            self.stop()
        self.io_loop = slot.loop()
        self._running = True
        self.skipped = 0
        self._next_timeout = self.io_loop.time()
        if self._calling_on is not self.io_loop:
            self._schedule_next()

    def stop(self) -> None:
        """Make no further call. One that is under way goes on to its end."""
        self._running = False
        if self._timeout is not None:
            self.io_loop.remove_timeout(self._timeout)
            self._timeout = None

    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._running

    def _run(self) -> None:
        loop = self.io_loop
        self._timeout = None
        self._calling_on = loop
        ending: Future[Any] | None = None
        try:
            result = self.callback()
            if result is not None and inspect.isawaitable(result):
                ending = loop.convert(result)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            _app_log.exception("Exception in callback %r", self.callback)
        finally:
            if ending is None:
                self._ended(loop)
            else:
                ending.add_done_callback(lambda done: self._followed(loop, done))
            # This frame is reachable from the traceback of an error of the result.
            ending = result = None

    def _followed(self, loop: Any, ending: Future[Any]) -> None:
        if not ending.cancelled() and (error := ending.exception()) is not None:
            _app_log.error("Exception in callback %r", self.callback, exc_info=error)
        self._ended(loop)

    def _ended(self, loop: Any) -> None:
        if self._calling_on is loop:
            self._calling_on = None
        if self.io_loop is loop:
            self._schedule_next()

    def _schedule_next(self) -> None:
        if self._running:
            self._update_next(self.io_loop.time())
            self._timeout = self.io_loop.add_timeout(self._next_timeout, self._run)

    def _update_next(self, current_time: float) -> None:
        """Move ``_next_timeout`` from the call that was due to the next one."""
        period = self.callback_time / 1000
        if self.jitter:
            period *= 1 + self.jitter * (random.random() - 0.5)
        over = 0
        if current_time >= self._next_timeout:
            over = math.floor((current_time - self._next_timeout) / period)
        # Else the clock was set back, which is left out of account: a period later all the same.
        self.skipped += over
        self._next_timeout += (over + 1) * period
