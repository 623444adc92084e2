"""``IOStream``: reads and writes on a non-blocking socket; ``SSLIOStream``: the same over TLS.

A stream is in one of four states: CONNECTING, HANDSHAKING (TLS only), OPEN, CLOSED, and moves only
forward. At most one read is pending (``_read``), any number of writes.

Reading. A read is answered from the buffer if that suffices; otherwise it waits for the descriptor
to be readable. The stream then receives one chunk per event: the poller is level-triggered and will
tell again, so one fast peer cannot starve others, and no call is spent on learning that nothing is
left. Interest in READ stays registered from read to read. When an event finds no reader, one
chunk is taken into the buffer (so that the end of an idle connection is noticed), and once that
holds something, the next event without a reader drops the interest: the peer then feels the
pressure.

Writing. A write is tried at once, and what the system did not take is queued and sent when the
descriptor is writable, a bounded amount per event. Each write's future is done when its own last
byte was handed to the system.

Closing. Bytes that were received before the end stay readable; the end is told when they are used
up. A pending read or write ends with ``StreamClosedError``, whose ``real_error`` is what closed
the stream. Futures of a stream do not complain when nobody looks at their error: the next
operation on the stream raises it again.

TLS on a socket is an ``ssl.SSLSocket`` under the same code. Two things differ: bytes that wait
inside the TLS layer do not show at the descriptor, so they are drained before the descriptor is
waited for; and "not now" arrives as ``SSLWantReadError`` or ``SSLWantWriteError``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import re
import ssl
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from coro.buffer import Bytes, ReadBuffer, WriteQueue
from coro.errors import (
    Attempt,
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
    format_address,
)
from coro.future import PENDING, Future, slot
from coro.loop import IOLoop
from coro.net import (
    ERROR,
    READ,
    WRITE,
    SocketAddress,
    set_nodelay,
    socket_error,
)
from coro.tls import TLSOptions, context_for, wrap

__all__ = ["IOStream", "SSLIOStream"]

_log = logging.getLogger("coro.general")

CONNECTING, HANDSHAKING, OPEN, CLOSED = range(4)
_STATE_NAMES = ("connecting", "handshaking", "open", "closed")

# Kinds of reads.
EXACT, PARTIAL, DELIMITER, REGEX, INTO, UNTIL_CLOSE = range(6)
_READ_NAMES = (
    "read_bytes",
    "read_bytes(partial)",
    "read_until",
    "read_until_regex",
    "read_into",
    "read_until_close",
)

DEFAULT_MAX_BUFFER = 100 * 1024 * 1024
DEFAULT_CHUNK = 64 * 1024

# How much one event may send, in how many pieces.
WRITE_BUDGET = 256 * 1024
WRITE_PIECES = 64

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_RESETS = frozenset({errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT})


class _Read(Future[Any]):
    """A pending read. Cancelling it takes nothing from the stream."""

    __slots__ = ("filled", "kind", "limit", "pattern", "size", "stream", "target")

    def __init__(self, stream: IOStream, kind: int, size: int) -> None:
        # Future.__init__ spelt out: every read passes here.
        self._loop = stream.io_loop
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._callbacks = None
        self._asyncio_future_blocking = False
        self.stream = stream
        self.kind = kind
        self.size = size

    pattern: Any  # delimiter or compiled expression
    limit: int | None  # max_bytes of a search
    target: Any  # the caller's buffer of read_into
    filled: int  # bytes written to it so far

    def cancel(self, msg: Any = None) -> bool:
        if self._state == PENDING:
            self.stream._unread(self)
        return super().cancel(msg)

    def _describe(self) -> str:
        return f"{_READ_NAMES[self.kind]} on {self.stream!r} {super()._describe()}"

    def _awaited(self) -> str:
        kind = self.kind
        what = _READ_NAMES[kind]
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


class _Write(Future[None]):
    """A write that the system has not taken whole."""

    __slots__ = ("stream",)

    def __init__(self, stream: IOStream) -> None:
        # Future.__init__ spelt out.
        self._loop = stream.io_loop
        self._state = PENDING
        self._value = None
        self._waiter = None
        self._callbacks = None
        self._asyncio_future_blocking = False
        self.stream = stream

    def _awaited(self) -> str:
        return f"write on {self.stream._where()}, {self.stream.unsent()} bytes queued"


class _Opening(Future[Any]):
    """A pending connect or handshake. Cancelling it closes the socket."""

    __slots__ = ("address", "stream")

    def __init__(self, stream: IOStream, address: SocketAddress | None = None) -> None:
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


class IOStream:
    """A stream of bytes on a non-blocking socket, connected or about to be.

    Arguments:
        socket: the socket; the stream owns it from now on.
        max_buffer_size: bytes that may wait to be asked for (default 100 MB).
        read_chunk_size: bytes to receive at once (default 64 KB, at most half of
            ``max_buffer_size``).
        max_write_buffer_size: bytes that may wait to be sent (default: no limit).
    """

    # Whether received bytes may wait where the descriptor does not show them.
    _hides: ClassVar[bool] = False

    def __init__(
        self,
        socket: Any,
        *,
        max_buffer_size: int | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: int | None = None,
    ) -> None:
        self.socket: Any = socket
        self.io_loop: IOLoop = slot.running or slot.loop()
        self.max_buffer_size = max_buffer_size or DEFAULT_MAX_BUFFER
        self.read_chunk_size = min(
            read_chunk_size or DEFAULT_CHUNK, max(1, self.max_buffer_size // 2)
        )
        self.max_write_buffer_size = max_write_buffer_size
        # How it was connected: every attempt that was made, the one that succeeded included.
        self.attempts: Sequence[Attempt] = ()
        # The error that closed the stream, if one did.
        self.error: BaseException | None = None
        self._fd: int = socket.fileno()
        self._buffer = ReadBuffer()
        self._received = self._buffer.data
        self._queue = WriteQueue()
        self._lost = 0
        # When bytes that had to wait were last taken by the system, in the loop's time.
        self.sent_at = -math.inf
        # What ``write_soon`` keeps until the end of the turn.
        self._soon = b""
        # (value of queue.added at which it is done, future), in order.
        self._writes: deque[tuple[int, Future[None]]] = deque()
        self._read: _Read | None = None
        self._opening: _Opening | None = None
        self._registration: Any = None
        self._close_callback: Callable[[], Any] | None = None
        self._state = OPEN
        socket.setblocking(False)
        self._bind()
        hooks = self.io_loop._hooks
        if hooks is not None:
            hooks.resource_opened(self)

    def _bind(self) -> None:
        self._recv: Callable[[int], bytes] = self.socket.recv
        self._recv_into: Callable[[memoryview], int] = self.socket.recv_into
        self._send: Callable[[Bytes], int] = self.socket.send

    def __repr__(self) -> str:
        parts = [f"fd={self._fd}", _STATE_NAMES[self._state]]
        if self._received:
            parts.append(f"buffered={len(self._received)}")
        if self._queue.size:
            parts.append(f"unsent={self._queue.size}")
        if self._read is not None:
            parts.append(_READ_NAMES[self._read.kind])
        if self.error is not None:
            parts.append(f"error={self.error!r}")
        return f"<{type(self).__name__} {' '.join(parts)}>"

    def _where(self) -> str:
        """Its descriptor and its peer, for dumps."""
        try:
            peer = format_address(self.socket.getpeername())
        except OSError:
            peer = ""
        return f"fd {self._fd} peer {peer}" if peer else f"fd {self._fd}"

    # --- looking ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def closed(self) -> bool:
        """Whether it is closed. Bytes received before may still be readable."""
        return self._state == CLOSED

    def reading(self) -> bool:
        """Whether a read is pending."""
        return self._read is not None

    def writing(self) -> bool:
        """Whether bytes wait to be sent."""
        return self._queue.size > 0

    def idle(self) -> bool:
        """Whether it is open and nothing is under way: no read, no byte to read or to send."""
        return (
            self._state == OPEN
            and self._read is None
            and not (self._received or self._queue.size or self._soon)
        )

    def unsent(self) -> int:
        """How many bytes wait to be sent, or were not sent when the stream was closed."""
        return self._queue.size + len(self._soon) + self._lost

    def set_close_callback(self, callback: Callable[[], Any] | None) -> None:
        """Call ``callback()`` (in a turn of the loop) when the stream is closed, by whomever."""
        self._close_callback = callback
        if callback is not None:
            if self._state == CLOSED:
                self._schedule_close_callback()
            elif self._state == OPEN:
                self.watch()

    def watch(self) -> None:
        """Notice the peer's end also while nobody reads; one chunk may be buffered meanwhile."""
        if not self._received:
            self._want(READ)

    def set_nodelay(self, value: bool) -> None:
        """Send small writes at once (TCP_NODELAY), or let the system gather them."""
        if self._state != CLOSED:
            set_nodelay(self.socket, value)

    # --- opening ---------------------------------------------------------------------------

    def connect(self, address: SocketAddress, server_hostname: str | None = None) -> Future[Any]:
        """Connect to a socket address; return a future of the stream itself.

        Writes may begin at once; they are sent when the connection stands. Cancelling the future
        closes the stream.

        Arguments:
            address: as the socket's family has it: ``(ip, port)``, a path for unix sockets.
            server_hostname: for TLS, the name that the peer must prove.
        Raises:
            StreamClosedError: (in the future) the connection failed; ``real_error`` tells why.
        """
        future = self._opening = _Opening(self, address)
        self._state = CONNECTING
        try:
            self.socket.connect(address)
        except (BlockingIOError, InterruptedError):
            pass  # It goes on in the background; the descriptor tells when it is over.
        except OSError as error:
            self._break(error)
            return future
        self._want(WRITE)
        return future

    def _on_connected(self) -> None:
        code = socket_error(self.socket)
        if code:
            self._break(OSError(code, os.strerror(code)))
            return
        self._state = OPEN
        self._finish_opening(self)
        self._after_opening()

    def _finish_opening(self, result: Any) -> None:
        opening = self._opening
        self._opening = None
        if opening is not None and opening._state == PENDING:
            opening._settle(result)

    def _after_opening(self) -> None:
        """Set what to wait for, now that bytes may flow."""
        if self._queue.size:
            self._on_writable()
        if self._state == OPEN:
            events = WRITE if self._queue.size else 0
            if self._read is not None or self._close_callback is not None:
                events |= READ
            self._set_events(events)

    def start_tls(
        self,
        server_side: bool,
        ssl_options: TLSOptions = None,
        server_hostname: str | None = None,
    ) -> Future[SSLIOStream]:
        """Begin TLS on this connection; return a future of the new stream, which replaces this one.

        Arguments:
            server_side: which side of the handshake to take.
            ssl_options: an ``ssl.SSLContext``, a dict of its options, or None for the safe
                defaults.
            server_hostname: for clients, the name that the peer must prove.
        Raises:
            ValueError: the stream is not idle, or holds bytes that were received before the upgrade
                (which an attacker may have put there).
            ssl.SSLError: (in the future) the handshake failed.
        """
        if self._state != OPEN or self._read is not None or self._queue.size or self._received:
            raise ValueError(f"{self!r} is not idle; cannot convert to SSL")
        context = context_for(ssl_options, server_side)
        self._forget_events()
        plain, self.socket = self.socket, None
        self._end()
        callback, self._close_callback = self._close_callback, None
        stream = SSLIOStream(
            wrap(plain, context, server_side=server_side, server_hostname=server_hostname),
            max_buffer_size=self.max_buffer_size,
            read_chunk_size=self.read_chunk_size,
            max_write_buffer_size=self.max_write_buffer_size,
        )
        stream.attempts = self.attempts
        stream._close_callback = callback
        return stream.wait_for_handshake()

    # --- reading ---------------------------------------------------------------------------

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Future[bytes]:
        """Read ``num_bytes`` bytes.

        Arguments:
            num_bytes: how many.
            partial: be content with fewer, at least one.
        Raises:
            StreamClosedError: the stream is closed and the buffer does not suffice.
        """
        if not isinstance(num_bytes, int):
            raise TypeError(f"num_bytes is an int, not {num_bytes!r}")
        read = _Read(self, PARTIAL if partial else EXACT, num_bytes)
        registration = self._registration
        if (
            self._read is None
            and not self._received
            and num_bytes > 0
            and self._state == OPEN
            and registration is not None
            and registration.events & READ
            and not self._hides
        ):
            # The usual read: all is set up, and nothing is there yet.
            self._read = read
            return read
        return self._begin(read)

    def read_into(self, buf: bytearray | memoryview, partial: bool = False) -> Future[int]:
        """Read into a buffer of the caller's; return a future of the number of bytes.

        Arguments:
            buf: a writable buffer, filled whole. Until the future is done it must not be resized.
            partial: be content with fewer bytes, at least one.
        """
        with memoryview(buf) as view:
            read = _Read(self, INTO, view.nbytes)
        read.target = buf
        read.filled = 0
        read.limit = 1 if partial else read.size
        return self._begin(read)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Future[bytes]:
        """Read up to and including a delimiter.

        Arguments:
            delimiter: the bytes to look for.
            max_bytes: close the stream if the delimiter does not end within that many bytes.
        """
        read = _Read(self, DELIMITER, -1)
        read.pattern = delimiter
        read.limit = max_bytes
        return self._begin(read)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Future[bytes]:
        """Read up to and including the first match of a regular expression.

        Arguments:
            regex: the expression.
            max_bytes: close the stream if the match does not end within that many bytes.
        """
        read = _Read(self, REGEX, -1)
        read.pattern = re.compile(regex)
        read.limit = max_bytes
        return self._begin(read)

    def read_until_close(self) -> Future[bytes]:
        """Read all that comes until the peer closes, or resets, the connection."""
        return self._begin(_Read(self, UNTIL_CLOSE, -1))

    def _begin(self, read: _Read) -> Future[Any]:
        if self._read is not None:
            if self._state == CLOSED:
                raise StreamClosedError(self.error)
            raise AssertionError(f"Already reading: {self!r}")
        if self._received or not read.size:
            try:
                if self._try(read):
                    return read
            except UnsatisfiableReadError as error:
                self._read = read
                self._reject(error)
                return read
        if self._state == CLOSED:
            if read.kind == UNTIL_CLOSE:
                self._answer(read, self._buffer.take(len(self._received)))
                return read
            self._unread(read)
            raise StreamClosedError(self.error)
        self._read = read
        if self._state == OPEN:
            if self._registration is None or not self._registration.events & READ:
                self._want(READ)
            if self._hides:
                self._drain_hidden()
        return read

    def _drain_hidden(self) -> None:
        """Receive what does not show at the descriptor."""

    def _try(self, read: _Read) -> bool:
        """Answer a read from the buffer if that suffices."""
        buffer = self._buffer
        kind = read.kind
        if kind == PARTIAL:
            if not self._received and read.size:
                return False
            return self._answer(read, buffer.take(read.size))
        if kind == EXACT:
            return len(self._received) >= read.size and self._answer(read, buffer.take(read.size))
        if kind == UNTIL_CLOSE:
            return False
        if kind == INTO:
            if self._received and read.filled < read.size:
                with (
                    memoryview(read.target) as view,
                    view.cast("B") as target,
                    target[read.filled :] as rest,
                ):
                    read.filled += buffer.take_into(rest)
            return read.filled >= min(read.limit or 0, read.size) and self._answer(
                read, read.filled
            )
        end = buffer.find(read.pattern) if kind == DELIMITER else buffer.search(read.pattern)
        if read.limit is not None and (end if end >= 0 else len(self._received)) > read.limit:
            what = "delimiter" if kind == DELIMITER else "regex"
            pattern = read.pattern if kind == DELIMITER else read.pattern.pattern
            raise UnsatisfiableReadError(f"{what} {pattern!r} not found within {read.limit} bytes")
        return end >= 0 and self._answer(read, buffer.take(end))

    def _answer(self, read: _Read, value: Any) -> bool:
        if self._read is read:
            self._read = None
        read._settle(value)
        return True

    def _unread(self, read: _Read) -> None:
        """Take back a read that was cancelled or cannot begin, with the bytes it has taken."""
        if self._read is read:
            self._read = None
        if read.kind == INTO and read.filled:
            with (
                memoryview(read.target) as view,
                view.cast("B") as target,
                target[: read.filled] as taken,
            ):
                self._buffer.prepend(taken)
            read.filled = 0

    def _reject(self, error: UnsatisfiableReadError) -> None:
        _log.info("Unsatisfiable read, closing connection: %s", error)
        self._break(error)

    def _on_readable(self) -> None:
        read = self._read
        buffer = self._buffer
        if read is None and self._received:
            self._unwant(READ)
            return
        try:
            if read is not None and read.kind == INTO:
                with (
                    memoryview(read.target) as view,
                    view.cast("B") as target,
                    target[read.filled :] as rest,
                ):
                    count = self._recv_into(rest)
                read.filled += count
                chunk = b""
            else:
                chunk = self._recv(self.read_chunk_size)
                count = len(chunk)
        except _NOT_NOW:
            return
        except OSError as error:
            self._on_read_error(error)
            return
        if not count:
            self.close()
        elif read is None:
            buffer.append(chunk)
        elif read.kind == PARTIAL and count <= read.size and not self._received:
            self._read = None
            read._settle(chunk)
        else:
            buffer.append(chunk)
            try:
                if not self._try(read) and len(self._received) > self.max_buffer_size:
                    _log.error("Reached maximum read buffer size")
                    self._on_read_error(StreamBufferFullError("Reached maximum read buffer size"))
            except UnsatisfiableReadError as error:
                self._reject(error)

    def _on_read_error(self, error: Exception) -> None:
        if not _is_reset(error):
            _log.warning("error on read: %s", error)
        self._break(error)

    # --- writing ---------------------------------------------------------------------------

    def write(self, data: Bytes) -> Future[None]:
        """Send bytes; return a future that is done when the last of them was handed to the system.

        Arguments:
            data: bytes, a bytearray (which must not change until then) or a memoryview.
        Raises:
            StreamClosedError: the stream is closed.
            StreamBufferFullError: more than ``max_write_buffer_size`` bytes would wait.
        """
        if self._state == CLOSED:
            raise StreamClosedError(self.error)
        if self._soon:
            self._send_soon()
        queue = self._queue
        if type(data) is bytes and not queue.size and self._state == OPEN:
            try:
                sent = self._send(data)
                if sent == len(data):
                    return self.io_loop.nothing
            except _NOT_NOW:
                sent = 0
            except OSError as error:
                self._on_write_error(error)
                failed: Future[None] = Future(loop=self.io_loop)
                self._fail(failed)
                return failed
            return self._enqueue(memoryview(data)[sent:])
        return self._enqueue(memoryview(data).cast("B"), try_now=True)

    def _enqueue(self, view: memoryview, try_now: bool = False) -> Future[None]:
        """Let bytes wait until the descriptor is writable, unless they are to be tried now."""
        queue = self._queue
        size = len(view)
        limit = self.max_write_buffer_size
        if limit is not None and queue.size + size > limit:
            view.release()
            raise StreamBufferFullError("Reached maximum write buffer size")
        if not size:
            return self._empty_write()
        was_empty = not queue.size
        queue.append(view)
        future = _Write(self)
        self._writes.append((queue.added, future))
        if self._state == OPEN:
            if was_empty and try_now:
                self._on_writable()
            if queue.size:
                self._want(WRITE)
        return future

    def write_soon(self, data: bytes) -> None:
        """Send bytes at the end of this turn of the loop; an error shows in the next read.

        What many streams have to say in one turn then leaves in one go: a peer on the same machine
        that serves them all is woken up once, which can cost more than all the rest of a send.
        """
        if self._state != OPEN or self._soon or self._queue.size:
            self.write(data)
        else:
            self._soon = data
            self.io_loop._at_turn_end.append(self._send_soon)

    def _send_soon(self) -> None:
        data, self._soon = self._soon, b""
        if not data or self._state == CLOSED:
            return
        try:
            sent = self._send(data)
            if sent == len(data):
                return
        except _NOT_NOW:
            sent = 0
        except OSError as error:
            self._on_write_error(error)
            return
        try:
            self._enqueue(memoryview(data)[sent:])
        except StreamBufferFullError as error:
            self._break(error)

    def _empty_write(self) -> Future[None]:
        """A write of nothing is done when the writes before it are."""
        return self._writes[-1][1] if self._writes else self.io_loop.nothing

    def _on_write_error(self, error: OSError) -> None:
        if not _is_reset(error):
            _log.warning("Write error on fd %s: %s", self._fd, error)
        self._break(error)

    def _on_writable(self) -> None:
        queue = self._queue
        if queue.size:
            try:
                sent = self._send_views(queue.peek(WRITE_BUDGET, WRITE_PIECES))
            except _NOT_NOW:
                return
            except OSError as error:
                self._on_write_error(error)
                return
            queue.advance(sent)
            self.sent_at = self.io_loop.time()
            done = queue.added - queue.size
            writes = self._writes
            while writes and writes[0][0] <= done:
                future = writes.popleft()[1]
                if future._state == PENDING:
                    future._settle(None)
        if not queue.size:
            self._unwant(WRITE)

    def _send_views(self, views: list[memoryview]) -> int:
        """Send the first bytes of the queue with one call; return how many went."""
        if len(views) == 1:
            with views[0][:WRITE_BUDGET] as view:
                return self._send(view)
        return self.socket.sendmsg(views)  # type: ignore[no-any-return]

    # --- events ----------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        state = self._state
        if state == OPEN:
            if events & (READ | ERROR):
                self._on_readable()
            if events & WRITE and self._state == OPEN:
                self._on_writable()
        elif state == CONNECTING:
            self._on_connected()

    def _want(self, events: int) -> None:
        """Listen for further events."""
        registration = self._registration
        if registration is None:
            self._registration = self.io_loop._register(self._fd, self, self._on_events, events)
        elif registration.events & events != events:
            self.io_loop._modify(self._fd, registration, registration.events | events)

    def _unwant(self, events: int) -> None:
        registration = self._registration
        if registration is not None and registration.events & events:
            self._set_events(registration.events & ~events)

    def _set_events(self, events: int) -> None:
        if not events:
            # Not merely an empty mask: a hang-up is told whatever the mask, and would spin.
            self._forget_events()
        elif self._registration is None:
            self._want(events)
        else:
            self.io_loop._modify(self._fd, self._registration, events)

    def _forget_events(self) -> None:
        if self._registration is not None:
            self._registration = None
            self.io_loop._unregister(self._fd)

    # --- closing ---------------------------------------------------------------------------

    def close(self, exc_info: bool | BaseException = False) -> None:
        """Close the stream now; unsent bytes are dropped, received ones stay readable.

        Arguments:
            exc_info: the error to give as reason, or True for the one being handled.
        """
        if self._state == CLOSED:
            return
        if exc_info:
            self.error = sys.exc_info()[1] if isinstance(exc_info, bool) else exc_info
        self._end()
        self._forget_events()
        self._close_socket()
        self._lost = self._queue.size + len(self._soon)
        self._soon = b""
        self._queue.clear()
        read = self._read
        if read is not None:
            if read.kind == UNTIL_CLOSE and (self.error is None or _is_reset(self.error)):
                self._answer(read, self._buffer.take(len(self._received)))
            else:
                self._unread(read)
                self._fail(read)
        while self._writes:
            self._fail(self._writes.popleft()[1])
        opening, self._opening = self._opening, None
        if opening is not None:
            self._fail_opening(opening)
        if self._close_callback is not None:
            self._schedule_close_callback()

    def _end(self) -> None:
        self._state = CLOSED
        hooks = self.io_loop._hooks
        if hooks is not None:
            hooks.resource_closed(self)

    def _break(self, error: BaseException) -> None:
        """Close because of an error that the stream met itself.

        Its traceback goes: it would show this room's frames, and through these the error would
        refer to the futures that end with it, in a circle.
        """
        self.close(error.with_traceback(None))

    def _close_socket(self) -> None:
        self.socket.close()

    def _fail(self, future: Future[Any]) -> None:
        if future._state == PENDING:
            future._fail_quietly(StreamClosedError(self.error))

    def _fail_opening(self, opening: _Opening) -> None:
        self._fail(opening)

    def _schedule_close_callback(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self.io_loop.add_callback(callback)


class SSLIOStream(IOStream):
    """An ``IOStream`` over TLS.

    Arguments:
        socket: a plain socket, wrapped when it is connected, or an ``ssl.SSLSocket``.
        ssl_options: an ``ssl.SSLContext``, a dict of its options, or None for the safe defaults.
        server_side: which side of the handshake to take, for a plain socket.
    """

    _hides = True

    def __init__(self, socket: Any, *, ssl_options: TLSOptions = None, **limits: Any) -> None:
        super().__init__(socket, **limits)
        self._ssl_options = ssl_options
        self._server_hostname: str | None = None
        if isinstance(socket, ssl.SSLSocket):
            self._state = HANDSHAKING
            # What the handshake waits for: READ or WRITE. It begins in the next turn.
            self._want(WRITE)

    def connect(self, address: SocketAddress, server_hostname: str | None = None) -> Future[Any]:
        """Connect and shake hands; see ``IOStream.connect``."""
        self._server_hostname = server_hostname
        return super().connect(address)

    def wait_for_handshake(self) -> Future[SSLIOStream]:
        """Return a future of the stream that is done once the handshake is.

        Raises:
            RuntimeError: somebody waits for it already.
            ssl.SSLError: (in the future) it failed.
        """
        if self._opening is not None:
            raise RuntimeError(f"the handshake of {self!r} is waited for already")
        future = _Opening(self)
        if self._state == OPEN:
            future._settle(self)
        elif self._state == CLOSED:
            self._fail_opening(future)
        else:
            self._opening = future
        return future

    def _on_connected(self) -> None:
        code = socket_error(self.socket)
        if code:
            self._break(OSError(code, os.strerror(code)))
            return
        self._forget_events()
        try:
            context = context_for(self._ssl_options, server_side=False)
            self.socket = wrap(
                self.socket, context, server_side=False, server_hostname=self._server_hostname
            )
        except (OSError, ValueError) as error:
            self._break(error)
            return
        self._bind()
        self._state = HANDSHAKING
        self._shake()

    def _shake(self) -> None:
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._set_events(READ)
        except ssl.SSLWantWriteError:
            self._set_events(WRITE)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                _log.warning("SSL Error on %s: %s", self._fd, error)
            self._break(error)
        except ValueError as error:
            self._break(error)
        else:
            self._state = OPEN
            self._finish_opening(self)
            self._after_opening()
            self._drain_hidden()

    def _close_socket(self) -> None:
        """Say goodbye (close_notify, RFC 8446 section 6.1) if that goes at once, and close."""
        if self.error is None and isinstance(self.socket, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.socket.unwrap()
        super()._close_socket()

    def _fail_opening(self, opening: _Opening) -> None:
        if opening._state != PENDING:
            return
        error = self.error
        opening._fail_quietly(
            error if isinstance(error, ssl.SSLError) else StreamClosedError(error)
        )

    def _on_events(self, events: int) -> None:
        if self._state == HANDSHAKING:
            self._shake()
        else:
            super()._on_events(events)

    def _on_readable(self) -> None:
        super()._on_readable()
        if self._state == OPEN and self._read is not None:
            self._drain_hidden()

    def _drain_hidden(self) -> None:
        """Receive records that the TLS layer has decrypted already; bounded by what one holds."""
        while self._state == OPEN and self._read is not None and self.socket.pending():
            super()._on_readable()

    def _bind(self) -> None:
        super()._bind()
        self._send = functools.partial(_send_bounded, self.socket)

    def _send_views(self, views: list[memoryview]) -> int:
        return self._send(views[0])

    def start_tls(self, *args: Any, **kwargs: Any) -> Future[SSLIOStream]:
        """TLS inside TLS is not possible on a socket's own TLS."""
        raise NotImplementedError("TLS inside TLS is not supported on this stream")


def _is_reset(error: BaseException | None) -> bool:
    """Whether an error is the peer's rude way to say goodbye, no more."""
    return isinstance(error, ssl.SSLEOFError) or (
        isinstance(error, OSError) and error.errno in _RESETS
    )


def _send_bounded(sock: ssl.SSLSocket, data: Bytes) -> int:
    """Send the first bytes: as many as when they are tried again, or OpenSSL refuses these."""
    with memoryview(data) as view, view[:WRITE_BUDGET] as first:
        return sock.send(first)
