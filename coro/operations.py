"""What is under way on a stream: the futures of its reads, its writes and its opening.

A pending read knows what it waits for and answers itself from the bytes that have come (``match``).
The stream that holds it decides when to ask, and receives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from coro.buffer import ReadBuffer
from coro.errors import UnsatisfiableReadError, format_address
from coro.future import PENDING, Future
from coro.net import SocketAddress

__all__ = ["Opening", "Read", "Write", "no_callback"]

# The states of a stream.
CONNECTING, HANDSHAKING, OPEN, CLOSED = range(4)

# Kinds of reads.
EXACT, PARTIAL, DELIMITER, REGEX, INTO, UNTIL_CLOSE = range(6)
READ_NAMES = (
    "read_bytes",
    "read_bytes(partial)",
    "read_until",
    "read_until_regex",
    "read_into",
    "read_until_close",
)


class Stream(Protocol):
    """As much of a stream as its operations need to know."""

    io_loop: Any
    _fd: int
    _state: int
    _received: bytearray

    def unsent(self) -> int: ...
    def close(self) -> None: ...
    def _unread(self, read: Read) -> None: ...
    def _take_back(self, data: bytes) -> None: ...
    def _where(self) -> str: ...


class Read(Future[Any]):
    """A pending read. Cancelling it takes nothing from the stream."""

    __slots__ = ("filled", "kind", "limit", "pattern", "size", "stream", "target")

    # Its maker sets its fields: a constructor would cost each read a call more.
    __init__ = object.__init__

    def set_up(self, stream: Stream, kind: int, size: int) -> Read:
        """Set its fields; return it."""
        self._loop = stream.io_loop
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._others = None
        self._asyncio_future_blocking = False
        self.stream = stream
        self.kind = kind
        self.size = size
        return self

    pattern: Any  # delimiter or compiled expression
    limit: int | None  # max_bytes of a search; the least that read_into is content with
    target: memoryview  # the caller's buffer of read_into; released when the read is done
    filled: int  # bytes written to it so far

    def match(self, buffer: ReadBuffer) -> bool:
        """Settle it with the buffer's first bytes, if they suffice; return whether they did.

        Raises:
            UnsatisfiableReadError: what is searched does not end within ``limit`` bytes.
        """
        kind = self.kind
        size = self.size
        if kind == EXACT:
            if len(buffer.data) < size:
                return False
            self._settle(buffer.take(size))
        elif kind == PARTIAL:
            if size and not buffer.data:
                return False
            self._settle(buffer.take(size))
        elif kind == INTO:
            if buffer.data and self.filled < size:
                self.fill(buffer.take_into, size)
            if self.filled < min(self.limit or 0, size):
                return False
            self.target.release()
            self._settle(self.filled)
        elif kind == UNTIL_CLOSE:
            return False
        else:
            end = buffer.find(self.pattern) if kind == DELIMITER else buffer.search(self.pattern)
            limit = self.limit
            if limit is not None and (end if end >= 0 else len(buffer.data)) > limit:
                what = "delimiter" if kind == DELIMITER else "regex"
                pattern = self.pattern if kind == DELIMITER else self.pattern.pattern
                raise UnsatisfiableReadError(f"{what} {pattern!r} not found within {limit} bytes")
            if end < 0:
                return False
            self._settle(buffer.take(end))
        return True

    def fill(self, source: Callable[[memoryview], int], most: int) -> int:
        """Let ``source`` write to what is left of the caller's buffer; return how much it wrote.

        Arguments:
            source: what writes.
            most: how many bytes it may write.
        """
        with self.target[self.filled : self.filled + most] as rest:
            count = source(rest)
        self.filled += count
        return count

    def give_back(self, buffer: ReadBuffer) -> None:
        """Return what was taken out of the stream's buffer, and let go of the caller's."""
        if self.kind == INTO:
            with self.target[: self.filled] as taken:
                buffer.prepend(taken)
            self.target.release()

    def cancel(self, msg: Any = None) -> bool:
        if self._state == PENDING:
            self.stream._unread(self)
        return super().cancel(msg)

    def _unclaimed(self) -> None:
        """Who waits for it was cancelled in the turn of its end: the next read has the bytes."""
        if self.kind not in (INTO, UNTIL_CLOSE):
            self.stream._take_back(self._value)

    def _describe(self) -> str:
        return f"{READ_NAMES[self.kind]} on {self.stream!r} {super()._describe()}"

    def _awaited(self) -> str:
        kind = self.kind
        what = READ_NAMES[kind]
        if kind in (EXACT, PARTIAL):
            what += f" {self.size}"
        elif kind == DELIMITER:
            what += f" {self.pattern!r}"
        elif kind == REGEX:
            what += f" {self.pattern.pattern!r}"
        elif kind == INTO:
            what += f" {self.filled}/{self.size}"
        stream = self.stream
        return f"{what} on {stream._where()}, {len(stream._received)} bytes buffered"


class Write(Future[None]):
    """A write that the system has not taken whole."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        # Future.__init__ spelt out.
        self._loop = stream.io_loop
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._others = None
        self._asyncio_future_blocking = False
        self.stream = stream

    def _awaited(self) -> str:
        return f"write on {self.stream._where()}, {self.stream.unsent()} bytes queued"


class Opening(Future[Any]):
    """A pending connect or handshake. Cancelling it closes the socket."""

    __slots__ = ("address", "stream")

    def __init__(self, stream: Stream, address: SocketAddress | None = None) -> None:
        super().__init__(loop=stream.io_loop)
        self.stream = stream
        self.address = address

    def cancel(self, msg: Any = None) -> bool:
        if self._state != PENDING:
            return False
        super().cancel(msg)
        self.stream.close()
        return True

    def _describe(self) -> str:
        return f"opening of {self.stream!r} {super()._describe()}"

    def _awaited(self) -> str:
        stream = self.stream
        if stream._state == CONNECTING and self.address is not None:
            return f"connect fd {stream._fd} to {format_address(self.address)}"
        return f"TLS handshake on {stream._where()}"


def no_callback(instead: str) -> TypeError:
    """Return the error for who hands a callback to what once took one: it shows the line to write.

    Arguments:
        instead: that line.
    """
    return TypeError(f"it takes no callback, but returns a future; write: {instead}")
