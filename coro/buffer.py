"""Bytes on their way: the read buffer that remembers how far it was searched, and the write queue.

Both are pure: no descriptors, no loop. They grow at one end and shrink at the other; a bytearray
does both without moving its contents (deleting from the front only moves its start).
"""

from __future__ import annotations

import re
from collections import deque
from typing import TypeAlias

__all__ = ["ReadBuffer", "WriteQueue"]

Bytes: TypeAlias = bytes | bytearray | memoryview


class ReadBuffer:
    """Bytes that were received and not yet asked for.

    ``find`` is linear over the buffer's life, however small the pieces in which it grows: it goes
    on where the last search for the same delimiter ended.
    """

    __slots__ = ("_delimiter", "_searched", "data")

    def __init__(self) -> None:
        # The bytes; always this one object, so that a look at it is all a reader needs.
        self.data = bytearray()
        self._delimiter = b""
        # Invariant: no ``_delimiter`` begins before this position.
        self._searched = 0

    def __len__(self) -> int:
        return len(self.data)

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end."""
        self.data += chunk

    def prepend(self, chunk: Bytes) -> None:
        """Give back bytes that were taken."""
        self.data[:0] = chunk
        self._searched = 0

    def take(self, size: int) -> bytes:
        """Remove and return the first ``size`` bytes, or all if there are fewer."""
        data = self.data
        self._searched = max(0, self._searched - size)
        if size >= len(data):
            taken = bytes(data)
            data.clear()
            return taken
        with memoryview(data) as view:
            taken = bytes(view[:size])
        del data[:size]
        return taken

    def take_into(self, target: memoryview) -> int:
        """Move bytes into ``target``, as many as fit or there are; return how many."""
        data = self.data
        count = min(len(target), len(data))
        with memoryview(data) as view:
            target[:count] = view[:count]
        del data[:count]
        self._searched = max(0, self._searched - count)
        return count

    def find(self, delimiter: bytes) -> int:
        """Return the position just after the first ``delimiter``, or -1."""
        if delimiter != self._delimiter:
            self._delimiter = delimiter
            self._searched = 0
        at = self.data.find(delimiter, self._searched)
        if at >= 0:
            self._searched = at
            return at + len(delimiter)
        self._searched = max(0, len(self.data) - len(delimiter) + 1)
        return -1

    def search(self, pattern: re.Pattern[bytes]) -> int:
        """Return the position just after the first match of a regular expression, or -1."""
        match = pattern.search(self.data)
        return -1 if match is None else match.end()


class WriteQueue:
    """Bytes that wait to be sent, as views of the callers' data: nothing is copied.

    A view pins the caller's bytearray to its size, so each is released as soon as it is sent, and
    all of them when the queue is cleared.
    """

    __slots__ = ("_views", "added", "size")

    def __init__(self) -> None:
        # A deque is made for each rush and goes with it: an empty one takes 600 bytes.
        self._views: deque[memoryview] | tuple[()] = ()
        # Bytes in the queue, and bytes ever added: their difference is what was sent.
        self.size = 0
        self.added = 0

    def append(self, data: memoryview) -> None:
        """Add a view of bytes (item size 1) at the end; the queue releases it."""
        if self._views:
            self._views.append(data)
        else:
            self._views = deque((data,))
        self.size += len(data)
        self.added += len(data)

    def peek(self, limit: int, count: int) -> list[memoryview]:
        """Return the first views: at most ``count``, and ``limit`` bytes if they are several."""
        chosen: list[memoryview] = []
        total = 0
        for view in self._views:
            total += len(view)
            if chosen and total > limit:
                break
            chosen.append(view)
            if len(chosen) >= count:
                break
        return chosen

    def advance(self, size: int) -> None:
        """Remove the first ``size`` bytes, which were sent."""
        views = self._views
        self.size -= size
        while size and views:
            view = views[0]
            length = len(view)
            if size < length:
                views[0] = view[size:]
                view.release()
                return
            size -= length
            views.popleft().release()
        if not views:
            self._views = ()

    def clear(self) -> None:
        """Drop and release everything."""
        while self._views:
            self._views.popleft().release()
        self._views = ()
        self.size = 0
