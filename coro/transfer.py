"""``BaseIOStream``: reads and writes on a non-blocking descriptor, whatever stands behind it.

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
descriptor is writable, several pieces with one call, a bounded amount per event. Nothing is copied:
the queue refers to the caller's data until it is sent. Each write's future is done when its own
last byte was handed to the system, or ``write_low_water`` bytes before that. The mark is 0 unless
asked for: the system's own buffer keeps the line busy while a writer is woken up, and who was told
"done" may close. Where it is higher, a write of nothing tells when all has gone.

Ending. ``send_eof`` ends this direction once the queue is empty, and reading goes on. When the peer
ends its direction, the stream closes, unless it is to stay ``half_open``: then nothing more can be
read, and it closes when this direction has ended too.

Closing. Bytes that were received before the end stay readable; the end is told when they are used
up. Where a write learns of the end first, what the peer sent before is taken in then: it may be the
answer that explains why it went. A pending read or write ends with ``StreamClosedError``, whose
``real_error`` is what closed the stream. Futures of a stream do not complain when nobody looks at
their error: the next operation on the stream raises it again.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import ssl
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Protocol, Self, TypeAlias

from coro.buffer import Bytes, ReadBuffer, WriteQueue
from coro.errors import (
    Attempt,
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
)
from coro.future import DONE, PENDING, Future, slot
from coro.loop import IOLoop
from coro.net import ERROR, READ, SHUT_WR, WRITE
from coro.operations import (
    CLOSED,
    DELIMITER,
    EXACT,
    INTO,
    OPEN,
    PARTIAL,
    READ_NAMES,
    REGEX,
    UNTIL_CLOSE,
    Opening,
    Read,
    Write,
    no_callback,
)

__all__ = ["BaseIOStream"]

_log = logging.getLogger("coro.general")

_STATE_NAMES = ("connecting", "handshaking", "open", "closed")

DEFAULT_MAX_BUFFER = 100 * 1024 * 1024
DEFAULT_CHUNK = 64 * 1024

# How much one event may send, in how many pieces, and receive straight into a caller's buffer.
WRITE_BUDGET = 256 * 1024
WRITE_PIECES = 64
READ_BUDGET = 256 * 1024

# What can still be sent: anything; what is queued and then the end; nothing.
SENDING, ENDING, ENDED = range(3)

# What is told when there is something to be received: bytes, the end, or an error.
_INCOMING = READ | ERROR

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_RESETS = frozenset({errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT})

# What ``sys.exc_info()`` returns.
ExcInfo: TypeAlias = "tuple[Any, BaseException | None, Any]"


class Owner(Protocol):
    """Who follows a stream to its end, as a server does."""

    def take(self, stream: Any) -> None:
        """Follow this stream, which takes the place of the other, from now on."""

    def stream_closed(self) -> None:
        """The stream was closed."""


class BaseIOStream:
    """A stream of bytes on something shaped like a non-blocking socket.

    Arguments:
        socket: the socket; the stream owns it from now on.
        max_buffer_size: bytes that may wait to be asked for (default 100 MB).
        read_chunk_size: bytes to receive at once (default 64 KB, at most half of
            ``max_buffer_size``).
        max_write_buffer_size: bytes that may wait to be sent (default: no limit).
        write_low_water: bytes of a write that may still wait when it counts as done (default 0).
        half_open: stay open for writing when the peer has ended its direction (default: close).
    Raises:
        ValueError: a limit is negative; the socket is left to the caller.
    """

    # Whether received bytes may wait where the descriptor does not show them.
    _hides: ClassVar[bool] = False

    # With slots, an idle stream takes a fifth of the memory; those who derive from it have a dict.
    __slots__ = (
        "__weakref__",
        "_at_once",
        "_buffer",
        "_close_callback",
        "_eof",
        "_fd",
        "_heard_all",
        "_lost",
        "_opening",
        "_owner",
        "_queue",
        "_read",
        "_received",
        "_recv",
        "_recv_into",
        "_registration",
        "_send",
        "_sending",
        "_soon",
        "_state",
        "_unasked_callback",
        "_usual_reads",
        "_was_reset",
        "_writes",
        "attempts",
        "error",
        "half_open",
        "io_loop",
        "max_buffer_size",
        "max_write_buffer_size",
        "read_chunk_size",
        "reads_ahead",
        "sent_at",
        "socket",
        "write_low_water",
    )

    def __init__(
        self,
        socket: Any,
        *,
        max_buffer_size: int | None = None,
        read_chunk_size: int | None = None,
        max_write_buffer_size: int | None = None,
        write_low_water: int = 0,
        half_open: bool = False,
    ) -> None:
        if min(max_buffer_size or 0, read_chunk_size or 0, write_low_water) < 0 or (
            max_write_buffer_size is not None and max_write_buffer_size < 0
        ):
            raise ValueError("the limits of a stream are numbers of bytes, none of them negative")
        self.socket: Any = socket
        self.io_loop: IOLoop = slot.running or slot.loop()
        self.max_buffer_size = max_buffer_size or DEFAULT_MAX_BUFFER
        self.read_chunk_size = min(
            read_chunk_size or DEFAULT_CHUNK, max(1, self.max_buffer_size // 2)
        )
        self.max_write_buffer_size = max_write_buffer_size
        self.write_low_water = write_low_water
        self.half_open = half_open
        # Whether a chunk may be received while nobody reads; without that, the end of the
        # connection is noticed by the next read only.
        self.reads_ahead = True
        # Whether the peer has ended its direction, and the stream stayed open.
        self._heard_all = False
        # How it was connected: every attempt that was made, the one that succeeded included.
        self.attempts: Sequence[Attempt] = ()
        # The error that closed the stream, if one did.
        self.error: BaseException | None = None
        self._was_reset = False
        self._fd: int = socket.fileno()
        self._buffer = ReadBuffer()
        self._received = self._buffer.data
        self._queue = WriteQueue()
        self._lost = 0
        # When bytes that had to wait were last taken by the system, in the loop's time.
        self.sent_at = -math.inf
        # What ``write_soon`` keeps until the end of the turn.
        self._soon = b""
        # (how many of all bytes ever queued must have been sent for it to be done, future).
        self._writes: deque[tuple[int, Future[None]]] | tuple[()] = ()
        # How far ``send_eof`` has got, and its future.
        self._sending = SENDING
        self._eof: Write | None = None
        self._read: Read | None = None
        # Whether the poller will tell a read all that it has to know: interest in READ is
        # registered, and nothing is hidden from the poller.
        self._usual_reads = False
        self._opening: Opening | None = None
        self._registration: Any = None
        self._close_callback: Callable[[], Any] | None = None
        self._unasked_callback: Callable[[], Any] | None = None
        # Is told when the stream ends, or goes over to TLS.
        self._owner: Owner | None = None
        self._state = OPEN
        # The most bytes that a write may try to send without a further question: -1 where the
        # stream is not open, others wait to be sent, or the end was announced.
        self._at_once = -1
        self._open_for_writes()
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
        if self._sending and self._state != CLOSED:
            parts.append(("", "sending eof", "sent eof")[self._sending])
        if self._read is not None:
            parts.append(READ_NAMES[self._read.kind])
        if self.error is not None:
            parts.append(f"error={self.error!r}")
        return f"<{type(self).__name__} {' '.join(parts)}>"

    def _where(self) -> str:
        """Its descriptor and its peer, for dumps."""
        return f"fd {self._fd}"

    # --- in async def ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over what comes in, in pieces of ``read_chunk_size`` bytes at most, to its end.

        Raises:
            StreamClosedError: the stream failed.
        """
        while True:
            try:
                piece = await self.read_bytes(self.read_chunk_size, partial=True)
            except StreamClosedError as error:
                if error.real_error is None:
                    return
                raise
            yield piece

    # --- looking ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor; -1 when the stream is closed, and another may have its number."""
        return -1 if self._state == CLOSED else self._fd

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
        return self._at_once >= 0 and self._read is None and not (self._received or self._soon)

    def still_idle(self) -> bool:
        """Whether it is idle; the system is asked too, which may know of bytes, or of the end."""
        if self.idle():
            self.receive()
        return self.idle()

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

    def set_unasked_callback(self, callback: Callable[[], Any] | None) -> None:
        """Call ``callback()`` when bytes come that no read waits for; they stay readable."""
        self._unasked_callback = callback

    def set_nodelay(self, value: bool) -> None:
        """Send small writes at once, where the system may gather them; here it does not."""

    def watch(self) -> None:
        """Notice the peer's end also while nobody reads; one chunk may be buffered meanwhile."""
        if self._state != CLOSED and not self._received and not self._heard_all:
            self._want(READ)

    def receive(self) -> None:
        """Receive now what has come, if anything has: who can wait is told by the poller."""
        if self._state == OPEN and not self._heard_all:
            self._on_readable()

    # --- reading ---------------------------------------------------------------------------

    # Old code hands a ``callback`` to these: it is told what to write instead.

    def read_bytes(
        self, num_bytes: int, partial: bool = False, callback: None = None
    ) -> Future[bytes]:
        """Read ``num_bytes`` bytes.

        Arguments:
            num_bytes: how many.
            partial: be content with fewer, at least one.
            callback: None.
        Raises:
            StreamClosedError: the stream is closed and the buffer does not suffice.
            ValueError: ``num_bytes`` is negative.
        """
        if (
            self._usual_reads
            and self._read is None
            and not self._received
            and type(num_bytes) is int
            and num_bytes > 0
            and callback is None
            and (partial is True or partial is False)
        ):
            # The usual read: all is set up, and nothing is there yet. ``set_up`` spelt out.
            read: Any = Read()
            read._loop = self.io_loop
            read._state = PENDING
            read._waiter = read._others = None
            read._asyncio_future_blocking = False
            read.stream = self
            read.kind = PARTIAL if partial else EXACT
            read.size = num_bytes
            self._read = read
            return read  # type: ignore[no-any-return]
        if not isinstance(num_bytes, int):
            raise TypeError(f"num_bytes is an int, not {num_bytes!r}")
        if callback is not None or (partial is not False and callable(partial)):
            raise no_callback("data = yield stream.read_bytes(num_bytes)")
        if num_bytes < 0:
            raise ValueError(f"cannot read {num_bytes} bytes")
        return self._begin(Read().set_up(self, PARTIAL if partial else EXACT, num_bytes))

    def unread(self, data: bytes) -> None:
        """Give back bytes that were read: the next read begins with them.

        Raises:
            RuntimeError: a read is pending.
        """
        if self._read is not None:
            raise RuntimeError("bytes cannot be given back while a read is pending")
        self._buffer.prepend(data)

    def read_into(self, buf: bytearray | memoryview, partial: bool = False) -> Future[int]:
        """Read into a buffer of the caller's; return a future of the number of bytes.

        Arguments:
            buf: a writable buffer, filled whole. Until the future is done it cannot be resized.
            partial: be content with fewer bytes, at least one.
        Raises:
            TypeError: the buffer cannot be written to, or does not lie in one piece.
        """
        with memoryview(buf) as view:
            if view.readonly:
                raise TypeError("read_into needs a buffer that can be written to")
            read = Read().set_up(self, INTO, view.nbytes)
            read.target = view.cast("B")
        read.filled = 0
        read.limit = 1 if partial else read.size
        try:
            return self._begin(read)
        except BaseException:
            read.target.release()
            raise

    def read_until(
        self, delimiter: bytes, max_bytes: int | None = None, callback: None = None
    ) -> Future[bytes]:
        """Read up to and including a delimiter.

        Arguments:
            delimiter: the bytes to look for.
            max_bytes: close the stream if the delimiter does not end within that many bytes.
            callback: None.
        """
        if not isinstance(delimiter, bytes):
            raise TypeError(f"a delimiter is bytes, not {delimiter!r}")
        if callback is not None or callable(max_bytes):
            raise no_callback("data = yield stream.read_until(delimiter)")
        read = Read().set_up(self, DELIMITER, -1)
        read.pattern = delimiter
        read.limit = max_bytes
        return self._begin(read)

    def read_until_regex(
        self, regex: bytes, max_bytes: int | None = None, callback: None = None
    ) -> Future[bytes]:
        """Read up to and including the first match of a regular expression.

        What has come is searched from its beginning whenever more comes, so ``max_bytes`` also
        bounds the time that this takes.

        Arguments:
            regex: the expression.
            max_bytes: close the stream if the match does not end within that many bytes.
            callback: None.
        """
        if callback is not None or callable(max_bytes):
            raise no_callback("data = yield stream.read_until_regex(regex)")
        pattern = re.compile(regex)
        if not isinstance(pattern.pattern, bytes):
            raise TypeError(f"an expression is bytes, not {regex!r}")
        read = Read().set_up(self, REGEX, -1)
        read.pattern = pattern
        read.limit = max_bytes
        return self._begin(read)

    def read_until_close(self, callback: None = None) -> Future[bytes]:
        """Read all that comes until the peer closes, or resets, the connection."""
        if callback is not None:
            raise no_callback("data = yield stream.read_until_close()")
        return self._begin(Read().set_up(self, UNTIL_CLOSE, -1))

    def _begin(self, read: Read) -> Future[Any]:
        if self._read is not None:
            if self._state == CLOSED:
                raise StreamClosedError(self.error)
            raise AssertionError(f"Already reading: {self!r}")
        if self._received or not read.size:
            try:
                if read.match(self._buffer):
                    if self._close_callback is not None and not self._usual_reads:
                        self.watch()
                    return read
            except UnsatisfiableReadError as error:
                self._reject(read, error)
                return read
        if self._state == CLOSED or self._heard_all:
            if read.kind == UNTIL_CLOSE and self._is_whole():
                read._settle(self._buffer.take(len(self._received)))
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

    def _unread(self, read: Read) -> None:
        """Take back a read that was cancelled or cannot begin, with the bytes it has taken."""
        if self._read is read:
            self._read = None
        read.give_back(self._buffer)

    def _take_back(self, data: bytes) -> None:
        """Take back what a read gave to nobody."""
        self._buffer.prepend(data)
        if self._read is not None:
            self._answer(self._read)

    def _reject(self, read: Read, error: UnsatisfiableReadError) -> None:
        """End a read that can never be satisfied, and with it the stream, if it is open yet."""
        _log.info("Unsatisfiable read, closing connection: %s", error)
        self._read = None
        read._fail_quietly(StreamClosedError(error.with_traceback(None)))
        self._break(error)

    def _on_readable(self) -> None:
        read = self._read
        if read is None and (self._received or not self.reads_ahead):
            self._unwant(READ)
            return
        try:
            if read is not None and read.kind == INTO:
                count = read.fill(self._recv_into, READ_BUDGET)
                chunk = b""
            else:
                chunk = self._recv(self.read_chunk_size)
                count = len(chunk)
        except OSError as error:
            self._on_failed_read(error)
        else:
            self._on_received(chunk, count)

    def _on_failed_read(self, error: OSError) -> None:
        if isinstance(error, _NOT_NOW):
            self._on_not_now(error, READ)
        else:
            self._on_read_error(error)

    def _on_received(self, chunk: bytes, count: int) -> None:
        """Use what was received: ``count`` bytes, which a ``read_into`` has already."""
        read = self._read
        if not count:
            self._on_eof()
        elif read is None:
            self._buffer.append(chunk)
            if self._unasked_callback is not None:
                self._unasked_callback()
        elif read.kind == PARTIAL and count <= read.size and not self._received:
            self._read = None
            read._settle(chunk)
        else:
            self._buffer.append(chunk)
            if not self._answer(read) and len(self._received) > self.max_buffer_size:
                _log.error("Reached maximum read buffer size")
                self._on_read_error(StreamBufferFullError("Reached maximum read buffer size"))

    def _on_eof(self) -> None:
        if not self.half_open or self._heard_all or self._sending == ENDED:
            self.close()
            return
        self._heard_all = True
        self._unwant(READ)
        self._end_read()

    def _end_read(self) -> None:
        """End the pending read: nothing more will come."""
        read = self._read
        if read is None:
            return
        if read.kind == UNTIL_CLOSE and self._is_whole():
            self._read = None
            read._settle(self._buffer.take(len(self._received)))
        else:
            self._unread(read)
            self._fail(read)

    def _answer(self, read: Read) -> bool:
        """End the pending read, if what has come suffices, or shows that nothing ever will."""
        try:
            if not read.match(self._buffer):
                return False
            self._read = None
        except UnsatisfiableReadError as error:
            self._reject(read, error)
        return True

    def _on_read_error(self, error: Exception) -> None:
        if not _is_reset(error):
            _log.warning("error on read: %s", error)
        self._break(error)

    # --- writing ---------------------------------------------------------------------------

    def write(self, data: Bytes, callback: None = None) -> Future[None]:
        """Send bytes; return a future that is done when the last of them was handed to the system.

        Nothing is copied. With a ``write_low_water``, the future of bytes is done that much earlier
        (of other data it is not, since that may change afterwards). That of ``write(b"")`` is done
        when nothing of what was written before waits any more. Cancelling it takes nothing back.

        Arguments:
            data: bytes, a bytearray or a memoryview. Until the future is done, a bytearray cannot
                be resized, and should not be changed.
            callback: None.
        Raises:
            StreamClosedError: the stream is closed, or ``send_eof`` was called.
            StreamBufferFullError: more than ``max_write_buffer_size`` bytes would wait; nothing of
                these was sent.
        """
        if (
            type(data) is bytes
            and (size := len(data)) <= self._at_once
            and not self._soon
            and callback is None
        ):
            send = self._send  # taken first: see IOLoop._dispatch
            try:
                sent = send(data)
                if sent == size:
                    return self.io_loop.nothing
            except OSError as error:
                if not self._may_retry(error):
                    failed: Future[None] = Future(loop=self.io_loop)
                    self._fail(failed)
                    return failed
                sent = 0
            return self._enqueue(memoryview(data)[sent:], self.write_low_water)
        if callback is not None:
            raise no_callback("yield stream.write(data)")
        return self._write_in_turn(data)

    def _write_in_turn(self, data: Bytes) -> Future[None]:
        """Write what cannot just be sent: it is long, it can change, or others are before it."""
        if self._soon:
            self._send_soon()
        if self._state == CLOSED or self._sending:
            self._refuse_write()
        view = memoryview(data).cast("B")
        queue = self._queue
        limit = self.max_write_buffer_size
        if limit is not None and queue.size + len(view) > limit:
            view.release()
            raise StreamBufferFullError("Reached maximum write buffer size")
        if not view:
            return self._flushed()
        is_first = not queue.size
        future = self._enqueue(view, self.write_low_water if type(data) is bytes else 0)
        if is_first and self._state == OPEN:
            self._on_writable()
        return future

    def _refuse_write(self) -> NoReturn:
        if self._state == CLOSED:
            raise StreamClosedError(self.error)
        raise StreamClosedError(BrokenPipeError("nothing can be written after send_eof"))

    def _enqueue(self, view: memoryview, early: int) -> Future[None]:
        """Let bytes wait until the descriptor is writable.

        Arguments:
            view: the bytes, at least one.
            early: how many of them may wait still when the future is done.
        """
        queue = self._queue
        queue.append(view)
        self._at_once = -1
        if queue.size <= early:
            future = self.io_loop.nothing
        else:
            future = self._write_until(queue.added - early)
        if self._state == OPEN:
            self._want(WRITE)
        return future

    def _flushed(self) -> Future[None]:
        """Return a future that is done when all that is queued now was sent."""
        queue = self._queue
        if not queue.size:
            return self.io_loop.nothing
        # One of its own, also where another waits for the same: each may be cancelled alone.
        return self._write_until(queue.added)

    def _write_until(self, end: int) -> Write:
        """Return a future that is done when so many of all bytes ever queued were sent."""
        write = Write(self)
        if self._writes:
            self._writes.append((end, write))
        else:
            self._writes = deque(((end, write),))
        return write

    def write_soon(self, data: bytes) -> None:
        """Send bytes at the end of this turn of the loop; an error shows in the next read.

        What many streams have to say in one turn then leaves in one go: a peer on the same machine
        that serves them all is woken up once, which can cost more than all the rest of a send.
        """
        if self._at_once < 0 or self._soon:
            self.write(data)
        else:
            self._soon = data
            self.io_loop._at_turn_end.append(self._send_soon)

    def _send_soon(self) -> None:
        data, self._soon = self._soon, b""
        if not data or self._state == CLOSED:
            return
        send = self._send
        try:
            sent = send(data)
            if sent == len(data):
                return
        except OSError as error:
            if not self._may_retry(error):
                return
            sent = 0
        self._enqueue(memoryview(data)[sent:], 0)

    def send_eof(self) -> Future[None]:
        """Tell the peer that nothing more will come, once all that was written is sent.

        Reading goes on; a further write raises. Calling it again gives the same future.

        Returns:
            A future that is done when the system was told; reading or closing need not wait for it.
        Raises:
            StreamClosedError: the stream is closed.
        """
        if self._soon:
            self._send_soon()
        if self._state == CLOSED:
            raise StreamClosedError(self.error)
        eof = self._eof
        if eof is None:
            eof = self._eof = Write(self)
            self._sending = ENDING
            self._at_once = -1
            if self._state == OPEN and not self._queue.size:
                self._end_sending()
        return eof

    def _end_sending(self) -> None:
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError as error:
            # The connection is gone, which its reading side may not have noticed yet.
            gone = error.errno == errno.ENOTCONN
            if self._may_retry(BrokenPipeError(errno.EPIPE, str(error)) if gone else error):
                self._want(WRITE)
            return
        self._sending = ENDED
        self._unwant(WRITE)
        if self._eof is not None and self._eof._state == PENDING:
            self._eof._settle(None)
        if self._heard_all:
            self.close()

    def _may_retry(self, error: OSError) -> bool:
        """Whether a send that failed is to be tried when the descriptor is writable; else close.

        The system's buffers may be used up (ENOBUFS) while the connection is well.
        """
        if isinstance(error, _NOT_NOW) or error.errno == errno.ENOBUFS:
            return True
        if _is_reset(error):
            error = self._receive_rest() or error
        else:
            _log.warning("Write error on fd %s: %s", self._fd, error)
        self._break(error)
        return False

    def _receive_rest(self) -> OSError | None:
        """Take in what the peer sent before it went: it stays readable.

        Returns:
            The peer's own reason, where TLS has told one.
        """
        reason: OSError | None = None
        try:
            while len(self._received) <= self.max_buffer_size:
                chunk = self._recv(self.read_chunk_size)
                if not chunk:
                    break
                self._buffer.append(chunk)
        except _NOT_NOW:
            pass
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not _is_reset(error):
                reason = error
        if self._read is not None:
            self._answer(self._read)
        try:
            return reason
        finally:
            del reason  # whose traceback leads to this frame

    def _on_writable(self) -> None:
        queue = self._queue
        if queue.size:
            try:
                sent = self._send_views(queue.peek(WRITE_BUDGET, WRITE_PIECES))
            except OSError as error:
                if self._may_retry(error):
                    self._on_not_now(error, WRITE)
                return
            queue.advance(sent)
            self.sent_at = self.io_loop.time()
            done = queue.added - queue.size
            writes = self._writes
            while writes and writes[0][0] <= done:
                future = writes.popleft()[1]
                if future._state == PENDING:
                    future._settle(None)
            if not writes:
                self._writes = ()
        if not queue.size:
            self._open_for_writes()
            if self._sending == ENDING:
                self._end_sending()
            else:
                self._unwant(WRITE)

    def _open_for_writes(self) -> None:
        """Let the next write be tried at once, if nothing speaks against it."""
        if self._state == OPEN and not self._sending and not self._queue.size:
            limit = self.max_write_buffer_size
            self._at_once = WRITE_BUDGET if limit is None else min(WRITE_BUDGET, limit)

    def _send_views(self, views: list[memoryview]) -> int:
        """Send the first bytes of the queue with one call; return how many went."""
        if len(views) == 1:
            with views[0][:WRITE_BUDGET] as view:
                return self._send(view)
        return self.socket.sendmsg(views)  # type: ignore[no-any-return]

    # --- events ----------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        read: Any = self._read
        if events != READ or read is None or read.kind != PARTIAL or self._received:
            self._on_other_events(events)
            return
        # The usual event: bytes for a read that is content with what has come. A stream that is not
        # open yet has other events, for it waits until it can be written to.
        recv = self._recv
        try:
            chunk = recv(self.read_chunk_size)
        except OSError as error:
            self._on_failed_read(error)
            return
        if chunk and len(chunk) <= read.size and read._others is None:
            self._read = None
            # ``_settle`` spelt out.
            read._state = DONE
            read._value = chunk
            waiter = read._waiter
            if waiter is not None:
                read._waiter = None
                self.io_loop._ready.append(waiter)
        else:
            self._on_received(chunk, len(chunk))

    def _on_other_events(self, events: int) -> None:
        state = self._state
        if state == OPEN:
            if events & _INCOMING:
                self._on_readable()
            if events & WRITE and self._state == OPEN:
                self._on_writable()
        elif state != CLOSED:
            self._on_opening()

    def _on_opening(self) -> None:
        """Go on with what opens the stream."""

    def _on_not_now(self, error: Exception, events: int) -> None:
        """Learn that what came by these events has to wait; as a rule for the next such event."""

    def _want(self, events: int) -> None:
        """Listen for further events."""
        registration = self._registration
        known = 0 if registration is None else registration.events
        if known & events != events:
            self._set_events(known | events)

    def _unwant(self, events: int) -> None:
        registration = self._registration
        if registration is not None and registration.events & events:
            self._set_events(registration.events & ~events)

    def _set_events(self, events: int) -> None:
        if not events:
            # Not merely an empty mask: a hang-up is told whatever the mask, and would spin.
            self._forget_events()
            return
        registration = self._registration
        if registration is None:
            self._registration = self.io_loop._register(self._fd, self, self._on_events, events)
        else:
            self.io_loop._modify(self._fd, registration, events)
        self._usual_reads = bool(events & READ) and not self._hides

    def _forget_events(self) -> None:
        if self._registration is not None:
            self._registration = None
            self._usual_reads = False
            self.io_loop._unregister(self._fd)

    # --- closing ---------------------------------------------------------------------------

    def close(self, exc_info: bool | BaseException | ExcInfo = False) -> None:
        """Close the stream now; unsent bytes are dropped, received ones stay readable.

        Arguments:
            exc_info: the error to give as reason, or True for the one being handled, or what
                ``sys.exc_info()`` said of it.
        """
        if self._state == CLOSED:
            return
        if exc_info is True:
            exc_info = sys.exc_info()
        if isinstance(exc_info, tuple):
            self.error = exc_info[1]
        elif isinstance(exc_info, BaseException):
            self.error = exc_info
        self._end()
        self._unasked_callback = None
        self._forget_events()
        self._close_socket()
        if self._owner is not None:
            self._owner.stream_closed()
        self._lost = self._queue.size + len(self._soon)
        self._soon = b""
        self._queue.clear()
        self._end_read()
        while self._writes:
            self._fail(self._writes.popleft()[1])
        eof, self._eof = self._eof, None
        if eof is not None:
            self._fail(eof)
        opening, self._opening = self._opening, None
        if opening is not None:
            self._fail_opening(opening)
        if self._close_callback is not None:
            self._schedule_close_callback()

    def abort(self) -> None:
        """Close the stream now, and let the peer see that it was cut off, where that is possible.

        What is pending ends with an error, also ``read_until_close``. On TCP, what the system was
        to send yet is dropped and the connection reset; on TLS, no goodbye is said.
        """
        self.close(ConnectionAbortedError("aborted by this side"))

    def _is_whole(self) -> bool:
        """Whether what was received by the close is all that there was to come."""
        return self.error is None or self._was_reset

    def _end(self) -> None:
        self._state = CLOSED
        self._at_once = -1
        hooks = self.io_loop._hooks
        if hooks is not None:
            hooks.resource_closed(self)

    def _break(self, error: BaseException) -> None:
        """Close because of an error that the stream met itself.

        Its traceback goes: it would show this room's frames, and through these the error would
        refer to the futures that end with it, in a circle.
        """
        if self._state != CLOSED:
            self._was_reset = _is_reset(error)
            self.close(error.with_traceback(None))

    def _close_socket(self) -> None:
        self.socket.close()

    def _fail(self, future: Future[Any]) -> None:
        if future._state == PENDING:
            future._fail_quietly(StreamClosedError(self.error))

    def _fail_opening(self, opening: Opening) -> None:
        self._fail(opening)

    def _schedule_close_callback(self) -> None:
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            self.io_loop.add_callback(callback)


def _is_reset(error: BaseException | None) -> bool:
    """Whether an error is the peer's rude way to say goodbye, no more."""
    return isinstance(error, ssl.SSLEOFError) or (
        isinstance(error, OSError) and error.errno in _RESETS
    )
