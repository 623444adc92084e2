"""What users make: ``IOStream`` on a socket, ``SSLIOStream`` on TLS, ``PipeIOStream`` on a pipe.

Each is a ``BaseIOStream`` (see ``transfer``), which reads, writes and closes; here streams are
opened.

TLS is what ``tls.wrap`` makes, in a socket's place under the same code. Two things differ: bytes
that wait inside the TLS layer do not show at the descriptor, so they are drained before the
descriptor is waited for; and "not now" tells what to wait for, which may be WRITE for a read and
READ for a write.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import ssl
from collections.abc import Callable
from typing import Any, NoReturn

from coro.buffer import Bytes
from coro.errors import (
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
    format_address,
)
from coro.future import PENDING, Future
from coro.net import (
    READ,
    WRITE,
    PipeSocket,
    SocketAddress,
    reset_on_close,
    set_nodelay,
    socket_error,
)
from coro.operations import CLOSED, CONNECTING, HANDSHAKING, OPEN, Opening, Read, no_callback
from coro.tls import (
    TLSOptions,
    TLSPump,
    context_for,
    discard_received,
    keep_session,
    name_peer,
    wrap,
)
from coro.transfer import ENDED, ENDING, WRITE_BUDGET, BaseIOStream

__all__ = [
    "BaseIOStream",
    "IOStream",
    "PipeIOStream",
    "SSLIOStream",
    "StreamBufferFullError",
    "StreamClosedError",
    "UnsatisfiableReadError",
]

_log = logging.getLogger("coro.general")


class IOStream(BaseIOStream):
    """A stream of bytes on a non-blocking socket, connected or about to be.

    Arguments:
        socket: the socket; the stream owns it from now on.
        max_buffer_size: bytes that may wait to be asked for (default 100 MB).
        read_chunk_size: bytes to receive at once (default 64 KB, at most half of
            ``max_buffer_size``).
        max_write_buffer_size: bytes that may wait to be sent (default: no limit).
        write_low_water: bytes of a write that may still wait when it counts as done (default 0).
        half_open: stay open for writing when the peer has ended its direction (default: close). It
            may also be set later, as an attribute.
    Raises:
        ValueError: a limit is negative; the socket is left to the caller.
    """

    def set_nodelay(self, value: bool) -> None:
        """Send small writes at once (TCP_NODELAY), or let the system gather them."""
        if self._state != CLOSED:
            set_nodelay(self.socket, value)

    def _where(self) -> str:
        try:
            peer = format_address(self.socket.getpeername())
        except OSError:
            peer = ""
        return f"fd {self._fd} peer {peer}" if peer else super()._where()

    # --- opening ---------------------------------------------------------------------------

    def connect(
        self, address: SocketAddress, server_hostname: str | None = None, callback: None = None
    ) -> Future[Any]:
        """Connect to a socket address; return a future of the stream itself.

        Writes may begin at once; they are sent when the connection stands. Cancelling the future
        closes the stream.

        Arguments:
            address: as the socket's family has it: ``(ip, port)``, a path for unix sockets.
            server_hostname: for TLS, the name that the peer must prove.
            callback: None.
        Raises:
            StreamClosedError: (in the future) the connection failed; ``real_error`` tells why.
        """
        if callback is not None or callable(server_hostname):
            raise no_callback("yield stream.connect(address)")
        future = self._opening = Opening(self, address)
        self._state = CONNECTING
        self._at_once = -1
        try:
            self.socket.connect(address)
        except OSError as error:
            # It goes on in the background, and the descriptor tells when it is over; but not where
            # the queue of a unix socket's listener is full (EAGAIN).
            if error.errno not in (errno.EINPROGRESS, errno.EINTR):
                self._break(error)
                return future
        self._want(WRITE)
        return future

    def _on_opening(self) -> None:
        self._on_connected()

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
        self._open_for_writes()
        if self._queue.size:
            self._on_writable()
        if self._state == OPEN:
            events = WRITE if self._queue.size or self._sending == ENDING else 0
            if self._read is not None or self._close_callback is not None:
                events |= READ
            self._set_events(events)

    # --- closing ---------------------------------------------------------------------------

    def abort(self) -> None:
        """Close the stream now, and let the peer see that it was cut off; see ``BaseIOStream``."""
        if self._state != CLOSED:
            with contextlib.suppress(OSError):
                reset_on_close(self.socket)
            super().abort()

    # --- TLS -------------------------------------------------------------------------------

    def start_tls(
        self,
        server_side: bool,
        ssl_options: TLSOptions = None,
        server_hostname: str | None = None,
        *,
        half_close: bool = False,
    ) -> Future[SSLIOStream]:
        """Begin TLS on this connection; return a future of the new stream, which replaces this one.

        On a stream that is TLS already, it makes TLS inside TLS. Cancelling the future closes the
        connection.

        Arguments:
            server_side: which side of the handshake to take.
            ssl_options: an ``ssl.SSLContext``, a dict of its options, or None for the safe
                defaults.
            server_hostname: for clients, the name or address that the peer must prove.
            half_close: make ``send_eof`` possible, at some cost.
        Raises:
            ValueError: the stream is not idle, or holds bytes that were received before the upgrade
                (which an attacker may have put there); or the options do not suffice. The stream
                is as it was.
            ssl.SSLError: (in the future) the handshake failed.
            StreamClosedError: (in the future) the peer left during the handshake.
        """
        if not self.idle():
            raise ValueError(f"{self!r} is not idle; cannot convert to SSL")
        context = context_for(ssl_options, server_side)
        try:
            secured = wrap(
                self.socket,
                context,
                server_side=server_side,
                server_hostname=server_hostname,
                half_close=half_close,
            )
        except OSError as error:
            # The peer has left already.
            gone = self._opening = Opening(self)
            self._break(error)
            return gone
        self._forget_events()
        self.socket = None
        self.error = io.UnsupportedOperation(
            "this stream has gone over to TLS: use the one that start_tls gave"
        )
        self._end()
        callback, self._close_callback = self._close_callback, None
        stream = SSLIOStream(
            secured,
            max_buffer_size=self.max_buffer_size,
            read_chunk_size=self.read_chunk_size,
            max_write_buffer_size=self.max_write_buffer_size,
            write_low_water=self.write_low_water,
            half_open=self.half_open,
        )
        stream.attempts = self.attempts
        stream._close_callback = callback
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.take(stream)
        return stream.wait_for_handshake()


class PipeIOStream(BaseIOStream):
    """A stream of bytes on a pipe, a FIFO, a terminal or another character device.

    Its open file is made non-blocking, for all processes that share it, and stays so.

    Arguments:
        fd: the descriptor; the stream owns it from now on. An end that can only be read from or
            only be written to refuses the other with ``io.UnsupportedOperation``.
        limits: as those of ``IOStream``.
    Raises:
        ValueError: it is a file or a directory, which no loop can wait for: use a thread.
    """

    socket: PipeSocket

    # Nothing is hidden, but so every read passes ``_begin``, which refuses it on a write end.
    _hides = True

    def __init__(self, fd: int, **limits: Any) -> None:
        pipe = PipeSocket(fd)
        try:
            super().__init__(pipe, **limits)
        except BaseException:
            pipe.close()
            raise
        if not pipe.writable:
            self._sending = ENDED
            self._at_once = -1

    def _begin(self, read: Read) -> Future[Any]:
        if self._state != CLOSED and not self.socket.readable:
            raise io.UnsupportedOperation(f"{self!r} cannot be read from")
        return super()._begin(read)

    def _refuse_write(self) -> NoReturn:
        if self._state != CLOSED and not self.socket.writable:
            raise io.UnsupportedOperation(f"{self!r} cannot be written to")
        super()._refuse_write()

    def send_eof(self) -> Future[None]:
        """Close an end that can only be written to, once all that was written is sent.

        Raises:
            io.UnsupportedOperation: it can be read from; a pipe has no other end of writing than
                its closing.
            StreamClosedError: the stream is closed.
        """
        if self._state != CLOSED and self.socket.readable:
            raise io.UnsupportedOperation(f"{self!r} has no end of writing but its closing")
        return super().send_eof()

    def _end_sending(self) -> None:
        self._sending = ENDED
        if self._eof is not None and self._eof._state == PENDING:
            self._eof._settle(None)
        self.close()


class SSLIOStream(IOStream):
    """An ``IOStream`` over TLS.

    What TLS is made of is shown by ``getpeercert``, ``selected_alpn_protocol``, ``version``,
    ``cipher`` and ``session_reused``, as ``ssl.SSLObject`` has them.

    Arguments:
        socket: a plain socket, which takes the client's side when it is connected, or what
            ``tls.wrap`` or ``SSLContext.wrap_socket`` has made, whose handshake begins at once.
        ssl_options: an ``ssl.SSLContext``, a dict of its options, or None for the safe defaults.
        half_close: make ``send_eof`` possible, at some cost.
    """

    _hides = True

    def __init__(
        self,
        socket: Any,
        *,
        ssl_options: TLSOptions = None,
        half_close: bool = False,
        **limits: Any,
    ) -> None:
        # Whether a read waits for WRITE or a write for READ, as TLS may demand when keys change.
        self._crossed = False
        # Whether a session may have come that is to be kept.
        self._session_due = False
        super().__init__(socket, **limits)
        self._ssl_options = ssl_options
        self._half_close = half_close
        self._server_hostname: str | None = None
        if isinstance(socket, ssl.SSLSocket | TLSPump):
            self._state = HANDSHAKING
            self._at_once = -1
            # What the handshake waits for: READ or WRITE. It begins in the next turn.
            self._want(WRITE)

    # --- looking ---------------------------------------------------------------------------

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the peer's certificate: a dict of what was checked, or its bytes (DER)."""
        return self.socket.getpeercert(binary_form)

    def selected_alpn_protocol(self) -> str | None:
        """Return the protocol that both sides agreed on (RFC 7301), or None."""
        return self.socket.selected_alpn_protocol()  # type: ignore[no-any-return]

    def version(self) -> str | None:
        """Return the version of TLS, such as "TLSv1.3"."""
        return self.socket.version()  # type: ignore[no-any-return]

    def cipher(self) -> tuple[str, str, int] | None:
        """Return the cipher's name, its protocol and its bits."""
        return self.socket.cipher()  # type: ignore[no-any-return]

    @property
    def session_reused(self) -> bool:
        """Whether the handshake was shortened by an earlier session with the same server."""
        return bool(self.socket.session_reused)

    # --- opening ---------------------------------------------------------------------------

    def connect(
        self, address: SocketAddress, server_hostname: str | None = None, callback: None = None
    ) -> Future[Any]:
        """Connect and shake hands; see ``IOStream.connect``."""
        self._server_hostname = server_hostname
        return super().connect(address, server_hostname, callback)

    def wait_for_handshake(self) -> Future[SSLIOStream]:
        """Return a future of the stream that is done once the handshake is.

        Raises:
            RuntimeError: somebody waits for it already.
            ssl.SSLError: (in the future) it failed.
            StreamClosedError: (in the future) the peer left.
        """
        if self._opening is not None:
            raise RuntimeError(f"the handshake of {self!r} is waited for already")
        future = Opening(self)
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
                self.socket,
                context,
                server_side=False,
                server_hostname=self._server_hostname,
                half_close=self._half_close,
            )
        except (OSError, ValueError) as error:
            self._break(error)
            return
        self._bind()
        self._state = HANDSHAKING
        self._shake()

    def _on_opening(self) -> None:
        if self._state == HANDSHAKING:
            self._shake()
        else:
            self._on_connected()

    def _shake(self) -> None:
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._set_events(READ)
        except ssl.SSLWantWriteError:
            self._set_events(WRITE)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not isinstance(error, _LEFT):
                name_peer(error, self._peer())
                _log.warning("SSL Error on fd %s: %s", self._fd, error)
            self._break(error)
        else:
            self._state = OPEN
            self._session_due = not self.socket.server_side
            self._finish_opening(self)
            self._after_opening()
            self._drain_hidden()

    def _peer(self) -> str:
        """The peer's name, if it had to have one, and its address."""
        where = "unknown"
        with contextlib.suppress(OSError):
            where = format_address(self.socket.getpeername())
        name = self.socket.server_hostname
        return where if name is None else f"{name!r} at {where}"

    def _fail_opening(self, opening: Opening) -> None:
        """Fail with TLS's own error; where the peer has left, with what streams have for that."""
        error = self.error
        if isinstance(error, ssl.SSLError) and not isinstance(error, _LEFT):
            if opening._state == PENDING:
                opening._fail_quietly(error)
        else:
            super()._fail_opening(opening)

    # --- traffic ---------------------------------------------------------------------------

    def _bind(self) -> None:
        super()._bind()
        self._recv = functools.partial(_receive_records, self.socket.recv)
        self._send = functools.partial(_send_bounded, self.socket.send)

    def _send_views(self, views: list[memoryview]) -> int:
        return self._send(views[0])

    def _on_readable(self) -> None:
        super()._on_readable()
        if self._session_due:
            self._session_due = False
            if self._state == OPEN:
                keep_session(self.socket)
        self._drain_hidden()

    def watch(self) -> None:
        """Notice the peer's end also while nobody reads; one chunk may be buffered meanwhile."""
        super().watch()
        self._drain_hidden()

    def _drain_hidden(self) -> None:
        """Receive what TLS has taken from the descriptor already; no more than it may hold."""
        while (
            self._state == OPEN
            and (
                self._read is not None
                or (self._close_callback and self.reads_ahead and not self._received)
            )
            and self.socket.pending()
            and not self._crossed
        ):
            super()._on_readable()

    def _on_not_now(self, error: Exception, events: int) -> None:
        """Wait for the other event, and not for this one, which may be there and would spin."""
        other, crosswise = (
            (WRITE, ssl.SSLWantWriteError) if events == READ else (READ, ssl.SSLWantReadError)
        )
        if isinstance(error, crosswise):
            self._want(other)
            self._unwant(events)
            self._crossed = True

    def _on_events(self, events: int) -> None:
        if self._crossed:
            # Whatever it is, both may go on by it.
            self._crossed = False
            events = READ | WRITE
            self._set_events(events)
        self._on_other_events(events)

    def _unwant(self, events: int) -> None:
        if not self._crossed:
            super()._unwant(events)

    # --- closing ---------------------------------------------------------------------------

    def send_eof(self) -> Future[None]:
        """Say goodbye (close_notify) once all that was written is sent, and go on reading.

        Raises:
            io.UnsupportedOperation: the stream was not made for that: see ``half_close``.
            StreamClosedError: the stream is closed.
        """
        if self._state != CLOSED and not (self._half_close or isinstance(self.socket, TLSPump)):
            raise io.UnsupportedOperation(
                "this TLS cannot end one direction alone without losing what the peer still sends;"
                " use connect(..., tls_half_close=True) or start_tls(..., half_close=True)"
            )
        return super().send_eof()

    def _is_whole(self) -> bool:
        """A reset is no goodbye here: anybody on the way can send one."""
        return self.error is None

    def _close_socket(self) -> None:
        """Say goodbye (close_notify, RFC 8446 section 6.1) if that goes at once, and close.

        Not where the stream ends before all was said: the peer is to see that.
        """
        if (
            self.error is None
            and not self.unsent()
            and isinstance(self.socket, ssl.SSLSocket | TLSPump)
        ):
            with contextlib.suppress(OSError, ValueError):
                self.socket.unwrap()
            if isinstance(self.socket, ssl.SSLSocket):
                discard_received(self.socket)
        super()._close_socket()


# What the peer does when it leaves in the middle of a handshake.
_LEFT = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

# The most that one record holds (RFC 8446 section 5.1).
_RECORD = 16 * 1024


def _receive_records(recv: Callable[[int], bytes], size: int) -> bytes:
    """Receive a record, and more of them where it is full: more is likely to be there."""
    chunk = recv(size)
    left = size - len(chunk)
    if len(chunk) < _RECORD or not left:
        return chunk
    chunks = [chunk]
    while len(chunk) == _RECORD and left:
        try:
            chunk = recv(left)
        except OSError:
            break  # Not now; or an error, which the next call will meet again.
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _send_bounded(send: Callable[[Bytes], int], data: Bytes) -> int:
    """Send the first bytes: as many as when they are tried again, or OpenSSL refuses these."""
    if len(data) <= WRITE_BUDGET:
        return send(data)
    with memoryview(data) as view, view[:WRITE_BUDGET] as first:
        return send(first)
