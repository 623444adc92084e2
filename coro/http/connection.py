"""One connection to an HTTP server, and one request after another on it.

A connection joins a stream and a decoder and adds nothing but order: send a request, feed the
decoder with what comes until it says that the response is complete. The coroutines of this room
are plain generators for ``yield from``: a fetch runs them inside its own task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any, TypeAlias

from coro.errors import (
    BodyTooLargeError,
    HTTPClosedError,
    HTTPInputError,
    IncompleteBodyError,
    RequestError,
    StreamClosedError,
    TimeoutError,
)
from coro.future import Future
from coro.gen import convert_yielded, coroutine
from coro.http.codec import (
    MAX_HEADERS,
    ResponseDecoder,
    ResponseHead,
    encode_chunk,
    encode_last_chunk,
)
from coro.http.outgoing import Outgoing
from coro.http.urls import Origin, format_origin
from coro.scopes import Timeout, timeout
from coro.stream import IOStream
from coro.timers import DEADLINE, Timer

__all__ = ["HTTPConnection", "Progress", "Sink"]

# Seconds to wait for 100 (Continue), which a server need not send.
CONTINUE_SECONDS = 1.0

# Takes a piece of a body; ``yield from`` it.
Sink: TypeAlias = Callable[[bytes], Generator[Any, Any, None]]


class Progress:
    """How far a fetch has come: its present phase, and when (in the loop's time) it passed the
    others.

    A time of None means: not passed, or, on a connection that was kept, not needed. A request that
    finds a free slot acquires it when it starts.
    """

    __slots__ = (
        "acquired",
        "attempts",
        "begun",
        "connected",
        "ended",
        "first_byte",
        "phase",
        "resolved",
        "secured",
        "sent",
        "started",
    )

    def __init__(self, started: float) -> None:
        self.phase = "queue"
        self.attempts = 0
        self.started = started
        self.acquired = started
        self.resolved: float | None = None
        self.connected: float | None = None
        self.secured: float | None = None
        self.sent: float | None = None
        self.first_byte: float | None = None
        self.ended = started
        self.begun = started

    def begin_again(self, now: float) -> None:
        """Note that a redirect is followed: the phases are those of the last request."""
        self.phase = "queue"
        self.begun = self.acquired = now
        self.resolved = self.connected = self.secured = self.sent = self.first_byte = None

    def time_info(self) -> dict[str, float]:
        """Return the seconds of each phase; ``total`` is all of them and the body's transfer.

        If redirects were followed, the phases are those of the last request, ``total`` is all.
        """
        info: dict[str, float] = {}
        before = self.begun
        for key, passed in (
            ("queue", self.acquired),
            ("dns", self.resolved),
            ("connect", self.connected),
            ("tls", self.secured),
            ("sent", self.sent),
            ("first_byte", self.first_byte),
        ):
            if passed is None:
                info[key] = 0.0
            else:
                # What a server says while it is still being sent to may come before ``sent``.
                info[key] = max(0.0, passed - before)
                before = max(before, passed)
        info["total"] = self.ended - self.started
        return info


class HTTPConnection:
    """A connected stream that carries one exchange at a time.

    Arguments:
        stream: connected, and TLS established if there is to be TLS.
        key: what distinguishes it in the pool: origin and TLS options.
        max_header_bytes: limit for the head of a response.
        origin: of whom it serves requests: scheme, host and port.
        max_headers: limit for the number of fields of that head.
    """

    __slots__ = (
        "_cut_off",
        "_deadline",
        "_inactivity",
        "_limit",
        "_timer",
        "_total",
        "_written",
        "decoder",
        "exchanges",
        "idle_since",
        "key",
        "on_close",
        "opened",
        "origin",
        "stream",
    )

    def __init__(
        self,
        stream: IOStream,
        key: Hashable,
        max_header_bytes: int,
        origin: Origin,
        max_headers: int = MAX_HEADERS,
    ) -> None:
        self.stream = stream
        self.key = key
        self.origin = origin
        self.decoder = ResponseDecoder(max_header_bytes, max_headers)
        self.exchanges = 0
        # When it was opened, and when the last exchange ended, in the loop's time.
        self.opened = self.idle_since = stream.io_loop.time()
        # Called once, when the stream closes, whoever closes it, or when it leaves HTTP.
        self.on_close: Callable[[HTTPConnection], Any] | None = None
        # Of the present exchange; None between exchanges.
        self._limit: Timeout | None = None
        # When the exchange must have ended, and when the timer is to look; None between exchanges.
        self._total: float | None = None
        self._deadline: float | None = None
        self._timer: Timer | None = None
        # The seconds of silence that are allowed.
        self._inactivity = 0.0
        # Bytes of the present request that were given to the stream.
        self._written = 0
        # Whether a request was not sent to its end.
        self._cut_off = False
        stream.set_close_callback(self._closed)
        stream.set_unasked_callback(self._take_unasked)

    def __repr__(self) -> str:
        # Not the key, in which there may be a proxy's password.
        origin = format_origin(self.origin)
        return f"<HTTPConnection {origin} exchanges={self.exchanges} {self.stream!r}>"

    def close(self) -> None:
        """Close the connection."""
        self._disarm()
        self.stream.close()

    def detach(self) -> IOStream:
        """Leave HTTP after a 101: return the stream, with the first bytes of what follows."""
        # As a connection it has ended: whoever counts them is told.
        self._closed()
        stream = self.stream
        stream.set_close_callback(None)
        stream.set_unasked_callback(None)
        surplus, self.decoder.surplus = self.decoder.surplus, b""
        stream.unread(surplus)
        return stream

    def _take_unasked(self) -> None:
        """Bytes have come that no read waits for: between two exchanges, nobody asked for them."""
        if self._limit is None:
            self.close()

    def _closed(self) -> None:
        self._disarm()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close(self)

    def exchange(
        self,
        out: Outgoing,
        progress: Progress,
        begin_body: Callable[[ResponseHead], Sink | None],
        max_body_size: int | None = None,
        inactivity: float | None = None,
        upload_inactivity: float | None = None,
        on_interim: Callable[[ResponseHead], object] | None = None,
        limit: Timeout | None = None,
        deadline: float | None = None,
    ) -> Generator[Any, Any, ResponseDecoder]:
        """Send a request and receive its response; the decoder holds it until the next exchange.

        Arguments:
            out: the request.
            progress: updated on the way.
            begin_body: called with the final head; returns the sink that takes the body piece by
                piece, or None to collect it in the decoder.
            max_body_size: limit for the body as received, in bytes; None: no limit.
            inactivity: seconds without a byte received after which the ``limit`` expires.
            upload_inactivity: seconds without a byte of the body sent after which it does.
            on_interim: called with the head of each interim (1xx) response.
            limit: is made to expire by the deadlines.
            deadline: when the exchange must have ended, in the loop's time; None: whenever.
        Raises:
            HTTPClosedError: the connection ended before the response's head.
            IncompleteBodyError: it ended inside the body.
            HTTPInputError: what came is not HTTP/1.1, or exceeds a limit.
            BodyTooLargeError: the body exceeds ``max_body_size``.

        Errors of ``begin_body``, of the sink and of the request's producer pass through as they
        are, a ``StreamClosedError`` that tells of another stream among them.
        """
        stream = self.stream
        decoder = self.decoder
        loop = stream.io_loop
        sink: Sink | None = None
        self._limit = limit
        self._total = self._deadline = deadline
        if deadline is not None and (self._timer is None or self._timer[DEADLINE] > deadline):
            self._arm(deadline)
        decoder.begin(out.method, on_interim)
        self.exchanges += 1
        progress.phase = "send"
        # Whether the final head has just been read, and whether the response is complete.
        begins = complete = False
        try:
            self._written = len(out.head)
            try:
                stream.write_soon(out.head)
                if out.uploads:
                    slow = inactivity if upload_inactivity is None else upload_inactivity
                    begins, complete = yield from self._upload(out, progress, slow)
            except StreamClosedError as error:
                if not stream.closed():
                    raise
                raise self._truncated(out, progress, error) from error
            progress.phase = "wait"
            progress.sent = loop.time()
            while True:
                if not begins:
                    if inactivity is not None:
                        self._extend(inactivity)
                    try:
                        data = yield stream.read_bytes(stream.read_chunk_size, True)
                    except StreamClosedError as error:
                        if error.real_error is not None or decoder.eof() is not None:
                            raise self._truncated(out, progress, error) from error
                        break
                    if progress.first_byte is None:
                        # When this turn began: it is what came then that made it.
                        progress.first_byte = loop._now
                    begins = decoder.head is None
                    complete = decoder.feed(data)
                if begins and decoder.head is not None:
                    progress.phase = "body"
                    sink = begin_body(decoder.head)
                begins = False
                if max_body_size is not None and decoder.body_bytes > max_body_size:
                    raise BodyTooLargeError(f"the body is larger than {max_body_size} bytes")
                if sink is not None:
                    # While the taker is busy, the peer is not to blame for silence, and what
                    # it sends meanwhile stays with the system.
                    self._deadline = self._total
                    stream.reads_ahead = False
                    for piece in decoder.take_pieces():
                        yield from sink(piece)
                    stream.reads_ahead = True
                    if complete:
                        stream.watch()
                if complete:
                    break
        finally:
            self._limit = self._deadline = None
        return decoder

    # --- time limit ------------------------------------------------------------------------

    # An exchange's limit is two stores. One timer per connection looks after it: it is armed for
    # the first deadline, and when it fires and the deadline has moved meanwhile, it is armed
    # again. So a request that ends in time, which is nearly each, costs no timer.

    def _arm(self, deadline: float) -> None:
        self._disarm()
        self._timer = self.stream.io_loop.call_at(deadline, self._on_timer)

    def _extend(self, inactivity: float) -> None:
        """Move the deadline to ``inactivity`` seconds from now, but not beyond the total limit."""
        self._inactivity = inactivity
        deadline = self.stream.io_loop.time() + inactivity
        if self._total is not None:
            deadline = min(deadline, self._total)
        self._deadline = deadline
        if self._timer is None or self._timer[DEADLINE] > deadline:
            self._arm(deadline)

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        if deadline != self._total:
            # Nothing came, but the request may still be moving.
            deadline = max(deadline, self.stream.sent_at + self._inactivity)
        if deadline > self.stream.io_loop.time():
            self._arm(deadline if self._total is None else min(deadline, self._total))
        elif self._limit is not None:
            self._limit.expire()

    def _disarm(self) -> None:
        if self._timer is not None:
            self.stream.io_loop.remove_timeout(self._timer)
            self._timer = None

    def _upload(
        self, out: Outgoing, progress: Progress, inactivity: float | None
    ) -> Generator[Any, Any, tuple[bool, bool]]:
        """Send the body, and listen meanwhile: the server may not want it, or no more of it.

        Returns:
            Whether the final head was read already, and whether the response is complete. Then
            something of the request may be missing, and the connection is not used again.
        """
        decoder = self.decoder
        if out.expects:
            begins, complete = yield from self._wait_for_100(progress)
            if begins:
                return begins, complete
        if inactivity is not None:
            self._extend(inactivity)
        sending = convert_yielded(self._send_body(out))
        try:
            while not sending.done():
                try:
                    reading = self.stream.read_bytes(self.stream.read_chunk_size, True)
                except StreamClosedError:
                    break
                yield from _first_of(sending, reading)
                if not reading.done():
                    reading.cancel()
                    break
                if reading.cancelled() or reading.exception() is not None:
                    # What the server said before it closed has been read already.
                    break
                if progress.first_byte is None:
                    progress.first_byte = self.stream.io_loop.time()
                complete = decoder.feed(reading.result())
                if decoder.head is not None:
                    self._cut_off = not _has_succeeded(sending)
                    return True, complete
            yield sending
        except StreamClosedError:
            if not self.stream.closed():
                raise
            # What is readable yet may be the answer.
            self._cut_off = True
        finally:
            if not sending.done():
                sending.cancel()
            # Its error, if it has one, will hold this frame.
            del sending
        return False, False

    def _wait_for_100(self, progress: Progress) -> Generator[Any, Any, tuple[bool, bool]]:
        """Wait for the leave to send the body, or for the final head, but not for long."""
        decoder = self.decoder
        stream = self.stream
        seen = decoder.interim
        limit = timeout(CONTINUE_SECONDS)
        try:
            with limit:
                while decoder.interim == seen:
                    data = yield stream.read_bytes(stream.read_chunk_size, True)
                    if progress.first_byte is None:
                        progress.first_byte = stream.io_loop.time()
                    complete = decoder.feed(data)
                    if decoder.head is not None:
                        self._cut_off = True
                        return True, complete
        except TimeoutError:
            if not limit.expired():
                raise
        return False, False

    @coroutine
    def _send_body(self, out: Outgoing) -> Generator[Any, Any, None]:
        """Write the body, and wait until the system has taken all of it."""
        if out.producer is not None:
            yield from self._produce(out)
        else:
            self._write(out.body)
        yield self.stream.write(b"")

    def _produce(self, out: Outgoing) -> Generator[Any, Any, None]:
        """Let the request's producer write the body."""
        left = out.length

        def write(piece: bytes) -> Future[None]:
            nonlocal left
            if left is None:
                return self._write(encode_chunk(piece))
            left -= memoryview(piece).nbytes
            if left < 0:
                # What follows would be read as the beginning of another request.
                raise ValueError(
                    f"body_producer wrote more than its Content-Length of {out.length}"
                )
            return self._write(piece)

        assert out.producer is not None
        out.begun = True
        produced = out.producer(write)
        if produced is not None:
            try:
                yield produced
            finally:
                del produced  # Its error, if it has one, will hold this frame.
        if left is None:
            self._write(_last_chunk(out))
        elif left > 0:
            raise ValueError(
                f"body_producer wrote {left} bytes less than its Content-Length of {out.length}"
            )

    def _write(self, data: bytes) -> Future[None]:
        self._written += memoryview(data).nbytes
        return self.stream.write(data)

    def _truncated(
        self, out: Outgoing, progress: Progress, error: StreamClosedError
    ) -> RequestError:
        """Say what is missing of a response whose connection has ended."""
        decoder = self.decoder
        reason = "" if error.real_error is None else f" ({error.real_error})"
        missing = decoder.eof()
        details = self.details(out, progress)
        if decoder.head is not None:
            expected = decoder.head.content_length
            of = "" if expected is None else f" of {expected}"
            return IncompleteBodyError(
                f"connection closed after {decoder.body_bytes}{of} bytes of the body{reason}",
                partial=decoder.body,
                expected=expected,
                **details,
            )
        what = (
            "inside the response's head"
            if missing and decoder.bytes_received
            else "before any response"
        )
        return HTTPClosedError(f"connection closed {what}{reason}", **details)

    def details(self, out: Outgoing, progress: Progress) -> dict[str, Any]:
        """Return what a ``RequestError`` tells of an exchange that failed."""
        sent = max(0, self._written - self.stream.unsent())
        return {
            "phase": progress.phase,
            "attempts": progress.attempts,
            "bytes_sent": sent,
            "safe_to_retry": out.replayable or not sent,
        }

    def reusable(self) -> bool:
        """Whether the exchange that just ended leaves the connection fit for another one."""
        return self.decoder.reusable and not self._cut_off and self.stream.idle()


def _last_chunk(out: Outgoing) -> bytes:
    """Encode the end of a request's body; ask its trailers what they are.

    Raises:
        ValueError: something that may not be written out.
    """
    if not out.trailers:
        return encode_last_chunk()
    fields = [(name, v() if callable(v) else v) for name, v in out.trailers.items()]
    try:
        return encode_last_chunk(fields)
    except HTTPInputError as error:
        # It is this side's own fault, and no error of the protocol.
        raise ValueError(str(error)) from error


def _has_succeeded(sending: Future[None]) -> bool:
    """Whether a body was sent whole; that it was not is no error where the answer is there."""
    return (
        sending.done()
        and not sending.cancelled()
        and not isinstance(sending.exception(), StreamClosedError)
    )


def _first_of(*futures: Future[Any]) -> Generator[Any, Any, None]:
    """Wait until one of them is done."""
    first: Future[None] = Future()

    def note(_done: Any) -> None:
        if not first.done():
            first.set_result(None)

    for future in futures:
        future.add_done_callback(note)
    try:
        yield first
    finally:
        for future in futures:
            future.remove_done_callback(note)
