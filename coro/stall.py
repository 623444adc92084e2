"""Stall watch: a thread that notices that a loop is stuck inside one turn, and says where.

A loop that does not turn cannot notice it. A thread beside it can, and costs the loop nothing: it
only reads, now and then, what the loop keeps up anyway. ``_asleep`` is true around a poll that can
block, and ``_turns`` counts turns; who is awake, and in the same turn as at the previous samples,
is still in it. One thread serves all loops of the process. It starts with the first watch and ends
with the last one.

What holds the interpreter's lock holds up this thread, too (a long ``re.match``, a C extension that
does not let go): such a stall is told when the lock is free again, and if the turn ended at that
very moment, not at all. The sleep of the sampling bounds what is seen: a stall is told between one
and one and a half thresholds after it began.

A forked child has none of its parent's threads: there, nothing is watched until it is asked for.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterable
from typing import Any

__all__ = ["StallWatch", "is_user_code", "watch"]

_log = logging.getLogger("coro.general")

_OWN = os.path.dirname(__file__) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)


@functools.cache
def is_user_code(filename: str) -> bool:
    """Whether a file is neither of coro nor of the standard library."""
    if filename.startswith((_OWN, "<frozen ")):
        return False
    return not filename.startswith(_STANDARD) or any(part in filename for part in _INSTALLED)


class StallWatch:
    """What is known of one loop from sample to sample.

    Arguments:
        loop: an ``IOLoop``.
        threshold: seconds in one turn that are too many.
    """

    def __init__(self, loop: Any, threshold: float) -> None:
        self.threshold = threshold
        self._loop = weakref.ref(loop)
        # The turn that the loop was found in (see ``_turn_of``), when it was found there first, and
        # whether it was told that this takes long.
        self._turn = -1
        self._since = 0.0
        self._told = False

    def end(self) -> None:
        """Watch no longer; if a stall was told and is over, tell that."""
        _watchdog.remove(self)
        loop = self._loop()
        if loop is not None:
            self._follow(loop, time.monotonic())

    def sample(self, now: float) -> bool:
        """Look at the loop, and log what there is to say; False if it is gone."""
        loop = self._loop()
        if loop is None:
            return False
        self._follow(loop, now)
        if self._turn >= 0 and not self._told and now - self._since >= self.threshold:
            stack = _stack_of(loop._thread)
            # It may have gone on meanwhile; the stack would then be that of another turn.
            if stack and _turn_of(loop) == self._turn:
                self._told = True
                _log.warning(
                    "%r is stuck for %.3f s in %s\nStack of its thread:\n%s",
                    loop,
                    now - self._since,
                    _place(stack),
                    "".join(stack.format()).rstrip(),
                )
        return True

    def _follow(self, loop: Any, now: float) -> None:
        turn = _turn_of(loop)
        if turn != self._turn:
            told, self._told = self._told, False
            if told:
                _log.info("%r goes on: it was stuck for about %.3f s", loop, now - self._since)
            self._turn, self._since = turn, now


def _turn_of(loop: Any) -> int:
    """The turn that the loop is in, or -1 while it polls or does not run."""
    return -1 if loop._thread is None or loop._asleep else int(loop._turns)


def _stack_of(thread: int | None) -> traceback.StackSummary:
    """The frames of a thread, outermost first. They are read, not kept: a frame holds its locals.

    Source lines are not looked up yet, which may take a while.
    """
    frame = None if thread is None else sys._current_frames().get(thread)
    if frame is None:
        return traceback.StackSummary()
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    stack.reverse()
    return stack


def _place(stack: Iterable[traceback.FrameSummary]) -> str:
    """The innermost frame of the user, else the innermost one."""
    frames = list(stack)
    frame = next((f for f in reversed(frames) if is_user_code(f.filename)), frames[-1])
    return f"{frame.filename}:{frame.lineno} ({frame.name})"


class _Watchdog:
    """The thread that samples, while there is anything to watch."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        # Guarded by the lock; nothing is sampled or logged while it is held.
        self._watches: set[StallWatch] = set()
        self._thread: threading.Thread | None = None

    def add(self, new: StallWatch) -> None:
        with self._changed:
            self._watches.add(new)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="coro-stall-watch", daemon=True
                )
                self._thread.start()
            else:
                self._changed.notify()

    def remove(self, old: StallWatch) -> None:
        with self._changed:
            self._watches.discard(old)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._watches:
                    # Woken early by a new watch, whose threshold may be lower.
                    self._changed.wait(min(each.threshold for each in self._watches) / 2)
                watches = list(self._watches)
                if not watches:
                    self._thread = None
                    return
            now = time.monotonic()
            for each in watches:
                try:
                    stands = each.sample(now)
                except Exception:
                    # A filter or handler of the user's log, most likely.
                    stands = False
                    _log.exception("The stall watch failed and has ended")
                if not stands:
                    self.remove(each)


_watchdog = _Watchdog()


def watch(loop: Any, threshold: float) -> StallWatch:
    """Watch a loop from now until ``end`` or until it is collected.

    Arguments:
        loop: an ``IOLoop``.
        threshold: seconds in one turn that are too many.
    """
    started = StallWatch(loop, threshold)
    _watchdog.add(started)
    return started


def _forget_watches() -> None:
    global _watchdog
    _watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_watches)
