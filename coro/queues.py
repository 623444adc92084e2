"""Queues for coroutines: ``Queue``, ``PriorityQueue``, ``LifoQueue``.

An item that is handed over belongs to its getter from the very call of ``put``, and room to its
putter from the very call of ``get``. A getter that is cancelled before its coroutine runs gives the
item back, to the head of the queue; several who do so in one turn restore the order.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any, Generic

from typing_extensions import TypeVar

from coro.future import Future
from coro.locks import Deadline, Gift, Line, Waiter, done

__all__ = ["LifoQueue", "PriorityQueue", "Queue", "QueueEmpty", "QueueFull"]

T = TypeVar("T", default=Any)


class QueueEmpty(Exception):
    """``get_nowait`` found nothing."""


class QueueFull(Exception):
    """``put_nowait`` found no room."""


class _Putter(Waiter):
    """Who waits for room, and what he brings along."""

    __slots__ = ("item",)

    _doing = "put into a full Queue,"

    def __init__(self, line: Line, item: Any, deadline: Deadline) -> None:
        super().__init__(line, None, deadline)
        self.item = item


class _Getter(Waiter):
    """Who waits for an item."""

    __slots__ = ()

    _doing = "get from"


class _Joiner(Waiter):
    """Who waits until all items have been dealt with."""

    __slots__ = ()

    _doing = "join a Queue,"


class _Items(Generic[T]):
    """``async for`` over a queue."""

    def __init__(self, queue: Queue[T]) -> None:
        self._queue = queue

    def __anext__(self) -> Future[T]:
        return self._queue.get()


class Queue(Generic[T]):
    """Items from putters to getters, first in, first out.

    Arguments:
        maxsize: how many items it holds before ``put`` waits; 0: any number.
    """

    def __init__(self, maxsize: int = 0) -> None:
        if maxsize is None:
            raise TypeError("maxsize can't be None")
        if maxsize < 0:
            raise ValueError("maxsize can't be negative")
        self._maxsize = maxsize
        self._init()
        # Invariants: nobody waits to get while there are items, nor to put while there is room.
        self._getters = Line()
        self._putters = Line()
        self._unfinished_tasks = 0
        self._joiners = Line()
        # How many items came back to the head since one was last taken out.
        self._returned = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} {self._format()}>"

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._format()}>"

    def _format(self) -> str:
        parts = [f"maxsize={self._maxsize}"]
        if self._queue:
            parts.append(f"queue={self._queue!r}")
        if self._getters:
            parts.append(f"getters[{self._getters.count()}]")
        if self._putters:
            parts.append(f"putters[{self._putters.count()}]")
        if self._unfinished_tasks:
            parts.append(f"tasks={self._unfinished_tasks}")
        return " ".join(parts)

    @property
    def maxsize(self) -> int:
        """How many items it holds before ``put`` waits; 0: any number."""
        return self._maxsize

    def qsize(self) -> int:
        """How many items it holds."""
        return len(self._queue)

    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self._queue

    def full(self) -> bool:
        """Whether there is no room."""
        return self._maxsize > 0 and len(self._queue) >= self._maxsize

    def put(self, item: T, timeout: Deadline = None) -> Future[None]:
        """Put an item in, once there is room.

        Arguments:
            item: what to put in.
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        if self.full():
            return _Putter(self._putters, item, timeout)
        self.put_nowait(item)
        return done()

    def put_nowait(self, item: T) -> None:
        """Put an item in.

        Raises:
            QueueFull: there is no room.
        """
        if self._getters:
            # Before the item is in, so that a refusal changes nothing.
            self._getters[0]._check_thread()
            self._unfinished_tasks += 1
            self._put(item)
            self._getters.serve(self._get())
        elif self.full():
            raise QueueFull
        else:
            self._unfinished_tasks += 1
            self._put(item)

    def get(self, timeout: Deadline = None) -> Future[T]:
        """Take an item out, once there is one.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        if self._queue or self._putters:
            return Gift(self.get_nowait(), self)
        return _Getter(self._getters, self, timeout)

    def get_nowait(self) -> T:
        """Take an item out.

        Raises:
            QueueEmpty: there is none.
        """
        if self._putters:
            self._admit()
        elif not self._queue:
            raise QueueEmpty
        self._returned = 0
        return self._get()

    def task_done(self) -> None:
        """State that one item that was taken out has been dealt with.

        Raises:
            ValueError: more often than items were put in.
        """
        if self._unfinished_tasks <= 0:
            raise ValueError("task_done() called too many times")
        self._unfinished_tasks -= 1
        if self._unfinished_tasks == 0:
            while self._joiners:
                self._joiners.serve(None)

    def join(self, timeout: Deadline = None) -> Future[None]:
        """Wait until every item that was put in has been dealt with.

        Arguments:
            timeout: a deadline in terms of ``loop.time()``, or a ``timedelta`` from now.
        Raises:
            TimeoutError: (in the future) the time was over before.
        """
        return _Joiner(self._joiners, None, timeout) if self._unfinished_tasks else done()

    def __aiter__(self) -> _Items[T]:
        return _Items(self)

    def _admit(self) -> None:
        """Put in the item of the first putter in line."""
        putter: Any = self._putters[0]
        self._putters.serve(None)
        self._unfinished_tasks += 1
        self._put(putter.item)

    def _take_back(self, item: T) -> None:
        """Give an item that came back to the next getter, or put it where he will look first."""
        if self._getters:
            self._getters.serve(item)
        elif type(self)._put is Queue._put:
            self._queue.insert(self._returned, item)
            self._returned += 1
        else:
            # An order of its own finds the item's place.
            self._put(item)

    # What a subclass overrides to order its items otherwise.

    def _init(self) -> None:
        self._queue: Any = deque()

    def _get(self) -> T:
        item: T = self._queue.popleft()
        return item

    def _put(self, item: T) -> None:
        self._queue.append(item)


class PriorityQueue(Queue[T]):
    """The smallest item first: ``put((priority, item))``."""

    def _init(self) -> None:
        self._queue = []

    def _put(self, item: T) -> None:
        heapq.heappush(self._queue, item)

    def _get(self) -> T:
        item: T = heapq.heappop(self._queue)
        return item


class LifoQueue(Queue[T]):
    """The latest item first."""

    def _init(self) -> None:
        self._queue = []

    def _put(self, item: T) -> None:
        self._queue.append(item)

    def _get(self) -> T:
        item: T = self._queue.pop()
        return item
