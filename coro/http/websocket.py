"""WebSockets (RFC 6455): ``WebSocketHandler`` for servers, ``websocket_connect`` for clients.

Both give a ``WebSocketConnection``. A task of its own reads from the stream, whether or not anybody
waits for a message: only so is a ping answered, and noticed that the peer closes or has vanished.
It stops reading while messages that nobody has taken weigh too much, or while the peer does not
take what is sent to it, so that either side holds back the other by way of TCP.

How a connection ends. Who closes sends a frame that says so, and waits for the peer's (section
7.1.2); then the server closes the stream, and the client waits for that. All of it has one time
limit. A peer at fault is told why, and what it still sends is received and dropped: to close on
that would reset the connection, which can take with it what was told.

Keeping alive. After some seconds without a sign of the peer it is sent a ping; if there is none
after some more, the connection is given up. Signs are: any bytes that came, and any of those that
had to wait which went. While this side does not read, because its own messages are not taken, the
peer is not to blame for silence.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from coro.errors import (
    CancelledError,
    HTTPError,
    HTTPProtocolError,
    StreamClosedError,
    WebSocketClosedError,
)
from coro.future import Future
from coro.gen import Task, coroutine, moment, shield
from coro.http.client import AsyncHTTPClient
from coro.http.frames import Closing, Deflate, Fault, FrameCodec, Ping, Pong
from coro.http.handshake import (
    AllowedOrigins,
    HandshakeError,
    Opening,
    agreed_deflate,
    check_answer,
    client_fields,
    new_key,
)
from coro.http.headers import HTTPHeaders
from coro.http.messages import HTTPRequest, HTTPResponse
from coro.http.request import HTTPServerRequest
from coro.stream import IOStream, SSLIOStream
from coro.tcp import Handover
from coro.timers import Timer

__all__ = [
    "WebSocketConnection",
    "WebSocketHandler",
    "WebSocketOptions",
    "accept",
    "websocket_connect",
]

_app_log = logging.getLogger("coro.application")
_log = logging.getLogger("coro.general")

DEFAULT_MAX_MESSAGE = 10 * 1024 * 1024

# Seconds.
PING_INTERVAL = 20.0
PING_TIMEOUT = 20.0
CLOSE_TIMEOUT = 10.0

# What messages that nobody has taken may weigh before nothing more is read, in bytes; and what each
# of them weighs beside its own.
_MAX_HELD = 64 * 1024
_WEIGHT = 128

# Bytes that may wait to be sent when more is read.
_MAX_UNSENT = 256 * 1024

# Events after which others on the loop get their turn.
_TURN = 64

# Why, if nothing else is known.
_LOST = "the connection was lost"

_OPEN, _CLOSING, _CLOSED = range(3)
_STATE_NAMES = ("open", "closing", "closed")


@dataclass(frozen=True, slots=True)
class WebSocketOptions:
    """What a connection is told of limits and times.

    Attributes:
        max_message_size: limit for a message that comes, in bytes, as inflated.
        ping_interval: seconds of silence after which the peer is sent a ping; None: never.
        ping_timeout: seconds that it then has to give a sign.
        close_timeout: seconds that closing may take.
        compression_options: compress messages (permessage-deflate), if the peer does too: a dict,
            which may have ``compression_level`` and ``mem_level`` of zlib; None: do not.
    """

    max_message_size: int = DEFAULT_MAX_MESSAGE
    ping_interval: float | None = PING_INTERVAL
    ping_timeout: float = PING_TIMEOUT
    close_timeout: float = CLOSE_TIMEOUT
    compression_options: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.max_message_size < 1 or min(self.ping_timeout, self.close_timeout) <= 0:
            raise ValueError(f"limits are above zero: {self!r}")
        if self.ping_interval is not None and self.ping_interval <= 0:
            raise ValueError("a ping_interval is above zero, or None for no pings")
        if not {"compression_level", "mem_level"}.issuperset(self.compression_options or ()):
            raise ValueError("compression_options are compression_level and mem_level")


class WebSocketConnection:
    """A WebSocket that is open, or was; see ``websocket_connect`` and ``WebSocketHandler``.

    ``async for message in connection`` reads until it closes, ``async with`` closes it in the end.

    Attributes:
        request: on a server, the ``HTTPServerRequest`` that opened it.
        response: on a client, the ``HTTPResponse`` that did.
        selected_subprotocol: on which both sides agreed, or None.
        close_code: once it is closing: the code that the peer gave (1005: none), or that it was
            told for its fault; 1006 if the connection was lost (RFC 6455 section 7.4.1).
        close_reason: likewise, the text; of a connection that was lost, what is known of it.
    """

    __slots__ = (
        "__weakref__",
        "_client",
        "_codec",
        "_counter",
        "_heard_all",
        "_heard_at",
        "_held",
        "_loop",
        "_messages",
        "_options",
        "_pinged_at",
        "_pings",
        "_reader",
        "_room",
        "_state",
        "_stream",
        "_task",
        "_timer",
        "close_code",
        "close_reason",
        "request",
        "response",
        "selected_subprotocol",
    )

    def __init__(
        self,
        stream: IOStream,
        options: WebSocketOptions,
        *,
        client: bool,
        subprotocol: str | None = None,
        deflate: Deflate | None = None,
        request: HTTPServerRequest | None = None,
        response: HTTPResponse | None = None,
    ) -> None:
        self.request = request
        self.response = response
        self.selected_subprotocol = subprotocol
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._stream = stream
        self._loop = stream.io_loop
        self._options = options
        self._client = client
        self._codec = FrameCodec(client, options.max_message_size, deflate)
        self._state = _OPEN
        # What came and was not taken, and what it weighs; whether nothing more will come; who waits
        # for a message, and whether the reading task waits for one to be taken.
        self._messages: deque[str | bytes] = deque()
        self._held = 0
        self._heard_all = False
        self._reader: Future[None] | None = None
        self._room: Future[None] | None = None
        # Pings that were not answered, by what they carry, with when they were sent.
        self._pings: dict[bytes, tuple[Future[float], float]] = {}
        self._counter = itertools.count(1)
        # When bytes came last, and when a ping was sent that is to bring a sign.
        self._heard_at = self._loop.time()
        self._pinged_at: float | None = None
        # That of keeping alive while it is open, that of closing afterwards.
        self._timer: Timer | None = None
        if options.ping_interval is not None:
            self._arm(self._heard_at + options.ping_interval)
        stream.half_open = False
        task = self._receive()
        task.set_name("websocket")
        self._task: Task[None] | None = None if task.done() else task

    def __repr__(self) -> str:
        code = "" if self.close_code is None else f" code={self.close_code}"
        return f"<WebSocketConnection {_STATE_NAMES[self._state]}{code} {self._stream!r}>"

    def closed(self) -> bool:
        """Whether it is closed, or closing: nothing can be sent any more."""
        return self._state != _OPEN or self._stream.closed()

    # --- messages --------------------------------------------------------------------------

    @coroutine
    def read_message(self) -> Generator[Any, Any, str | bytes | None]:
        """Return the next message: text as ``str``, binary as ``bytes``; None at the end.

        A read that is cancelled takes nothing.

        Raises:
            RuntimeError: somebody waits for a message already.
        """
        while not self._messages:
            if self._heard_all:
                return None
            if self._reader is not None:
                raise RuntimeError("somebody is reading from this WebSocket already")
            self._reader = Future()
            try:
                yield self._reader
            finally:
                self._reader = None
        message = self._messages.popleft()
        self._held -= len(message) + _WEIGHT
        if self._held <= _MAX_HELD:
            self._make_room()
        return message

    def write_message(
        self,
        message: str | bytes | bytearray | memoryview | dict[str, Any],
        binary: bool | None = None,
    ) -> Future[None]:
        """Send a message: ``str`` as text, bytes as binary, a dict as JSON.

        Arguments:
            message: the message.
            binary: send it as binary (text in UTF-8), or as text (bytes that are UTF-8).
        Returns:
            A future to wait for before the next message: done when the system has taken this one,
            all but a bounded part.
        Raises:
            WebSocketClosedError: the connection is closed, or closing.
            TypeError: a message of another kind.
            ValueError: bytes that are to be sent as text and are not UTF-8.
        """
        if self.closed():
            raise self._closed_error()
        if isinstance(message, dict):
            message = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        if isinstance(message, str):
            if binary:
                message = message.encode()
        elif not isinstance(message, bytes | bytearray | memoryview):
            raise TypeError(f"a message is text, bytes or a dict, not {message!r:.100}")
        elif binary is False:
            message = bytes(message).decode()
        elif isinstance(message, memoryview):
            message = bytes(message)
        return self._send(self._codec.encode(message))

    def ping(self, data: str | bytes = b"") -> Future[float]:
        """Send a ping; return a future of the seconds until its pong came.

        Arguments:
            data: what it carries, at most 125 bytes; by default something of its own.
        Raises:
            WebSocketClosedError: the connection is closed, or (in the future) closes.
            ValueError: the data are too long, or those of a ping that was not answered yet.
        """
        if self.closed():
            raise self._closed_error()
        payload = data.encode() if isinstance(data, str) else bytes(data)
        payload = payload or b"%d" % next(self._counter)
        if len(payload) > 125 or payload in self._pings:
            raise ValueError(
                "a ping carries at most 125 bytes, and other ones than those under way"
            )
        future: Future[float] = Future()
        self._pings[payload] = (future, self._loop.time())
        self._send(self._codec.ping(payload))
        return future

    @coroutine
    def close(self, code: int = 1000, reason: str = "") -> Generator[Any, Any, None]:
        """Close, and wait until that has been done; at most for the ``close_timeout``.

        Messages that still come are dropped. It need not be waited for.

        Arguments:
            code: 1000 to 1003, 1007 to 1013, or 3000 to 4999 (RFC 6455 section 7.4).
            reason: at most 123 bytes in UTF-8.
        Raises:
            ValueError: another code, or a reason that is too long.
        """
        self.begin_close(code, reason)
        if self._task is not None:
            yield shield(self._task)

    # --- in async def ----------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        message = await self.read_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(1000 if error is None else 1001 if self._client else 1011)

    # --- sending ---------------------------------------------------------------------------

    def _closed_error(self) -> WebSocketClosedError:
        if self.close_code is None and self._stream.closed():
            return WebSocketClosedError(1006, _LOST)
        return WebSocketClosedError(self.close_code, self.close_reason)

    def _send(self, data: bytes) -> Future[None]:
        try:
            written = self._stream.write(data)
        except StreamClosedError as error:
            raise self._closed_error() from error
        if written.done() and not written.cancelled() and written.exception() is None:
            return written
        sent: Future[None] = Future()

        def tell(written: Future[None]) -> None:
            if sent.done():
                return
            if written.cancelled() or written.exception() is not None:
                sent._fail_quietly(self._closed_error())
            else:
                sent.set_result(None)

        written.add_done_callback(tell)
        return sent

    def _send_control(self, frame: bytes) -> None:
        """Send a frame, unless the stream is gone, which its reader will notice."""
        if not self._stream.closed():
            self._stream.write(frame)

    # --- receiving -------------------------------------------------------------------------

    @coroutine
    def _receive(self) -> Generator[Any, Any, None]:
        try:
            last = yield from self._take_events()
            yield from self._part(last)
        except StreamClosedError as error:
            if self.close_code is None and error.real_error is not None:
                self.close_reason = str(error.real_error)
        finally:
            self._end()

    def _take_events(self) -> Generator[Any, Any, Closing | Fault]:
        """Take what comes, until the peer closes or is at fault."""
        stream, codec, loop = self._stream, self._codec, self._loop
        steps = 0
        while True:
            for event in codec.events():
                if isinstance(event, str | bytes):
                    if self._state == _OPEN:
                        self._messages.append(event)
                        self._held += len(event) + _WEIGHT
                        self._wake_reader()
                        while self._held > _MAX_HELD and self._state == _OPEN:
                            self._room = Future()
                            yield self._room
                elif isinstance(event, Ping):
                    if self._state == _OPEN:
                        self._send_control(codec.pong(event.payload))
                elif isinstance(event, Pong):
                    self._on_pong(bytes(event.payload))
                else:
                    return event
                steps += 1
                if steps % _TURN == 0:
                    yield moment
                    if self._state != _OPEN and stream.closed():
                        # Given up here: what is left of what came counts no more.
                        raise StreamClosedError(stream.error)
            if stream.unsent() > _MAX_UNSENT:
                yield stream.write(b"")
            data = yield stream.read_bytes(stream.read_chunk_size, True)
            self._heard_at = loop.time()
            codec.feed(data)

    def _on_pong(self, payload: bytes) -> None:
        """A pong answers also the pings before its own (RFC 6455 section 5.5.3)."""
        if payload not in self._pings:
            return
        now = self._loop.time()
        while True:
            oldest = next(iter(self._pings))
            future, sent_at = self._pings.pop(oldest)
            if not future.done():
                future.set_result(now - sent_at)
            if oldest == payload:
                return

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # --- closing ---------------------------------------------------------------------------

    def begin_close(self, code: int, reason: str = "") -> None:
        """Begin to close, if nobody has; see ``close``."""
        if not (1000 <= code <= 1003 or 1007 <= code <= 1013 or 3000 <= code <= 4999):
            raise ValueError(f"{code!r} is no code to close with (RFC 6455 section 7.4)")
        if len(reason.encode()) > 123:
            raise ValueError("a reason has at most 123 bytes (RFC 6455 section 5.5)")
        if self._state != _OPEN:
            return
        self._enter_closing()
        self._send_control(self._codec.close(code, reason))
        self._make_room()

    def go_away(self) -> None:
        """The server stops."""
        self.begin_close(1001, "the server stops")

    def leave(self, code: int) -> None:
        """Close now, without waiting for the peer."""
        self.begin_close(code)
        if self.close_code is None:
            self.close_reason = "closed by this side"
        self._stream.close()

    def _enter_closing(self) -> None:
        self._state = _CLOSING
        self._pinged_at = None
        self._arm(self._loop.time() + self._options.close_timeout)

    def _part(self, last: Closing | Fault) -> Generator[Any, Any, None]:
        """The peer has said its last: answer, and end the stream."""
        stream = self._stream
        self.close_code, self.close_reason = last.code, last.reason
        if self._state == _OPEN:
            self._enter_closing()
            self._send_control(self._codec.close(last.code, last.reason))
        self._heard_all = True
        self._wake_reader()
        if isinstance(last, Fault):
            _log.info("WebSocket closed with %d: %s", last.code, last.reason)
            if not isinstance(stream, SSLIOStream):
                yield stream.send_eof()
        elif not self._client:
            yield stream.write(b"")
            return
        while True:
            yield stream.read_bytes(stream.read_chunk_size, True)

    def _end(self) -> None:
        """All is over."""
        self._state = _CLOSED
        self._disarm()
        self._stream.close()
        self._heard_all = True
        self._task = None
        if self.close_code is None:
            self.close_code = 1006
            self.close_reason = self.close_reason or _LOST
        pings, self._pings = self._pings, {}
        for future, _ in pings.values():
            if not future.done():
                future._fail_quietly(self._closed_error())
        self._wake_reader()

    # --- time limits -----------------------------------------------------------------------

    def _arm(self, deadline: float) -> None:
        self._disarm()
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._state == _OPEN:
            self._keep_alive()
            return
        if self.close_code is None:
            self.close_reason = "the peer did not close in time"
        self._break()

    def _break(self) -> None:
        if self._stream.writing():
            self._stream.abort()
        else:
            self._stream.close()
        self._make_room()

    def _keep_alive(self) -> None:
        interval, patience = self._options.ping_interval, self._options.ping_timeout
        assert interval is not None
        now = self._loop.time()
        stream = self._stream
        sign = max(self._heard_at, stream.sent_at)
        if self._room is not None and not stream.writing():
            # Nobody reads, here: the peer may have given signs that were not seen.
            self._pinged_at = None
            self._arm(now + interval)
        elif self._pinged_at is not None and sign < self._pinged_at:
            self.close_reason = f"no sign of the peer for {now - sign:.3g} s"
            self._state = _CLOSING
            self._break()
        elif now < sign + interval:
            self._pinged_at = None
            self._arm(sign + interval)
        else:
            self._pinged_at = now
            self._send_control(self._codec.ping(b""))
            self._arm(now + patience)


# --- the client's side ---------------------------------------------------------------------


def websocket_connect(
    url: str | HTTPRequest,
    *,
    subprotocols: Sequence[str] = (),
    compression_options: Mapping[str, int] | None = None,
    max_message_size: int = DEFAULT_MAX_MESSAGE,
    ping_interval: float | None = PING_INTERVAL,
    ping_timeout: float = PING_TIMEOUT,
    close_timeout: float = CLOSE_TIMEOUT,
    client: AsyncHTTPClient | None = None,
    **options: Any,
) -> Future[WebSocketConnection]:
    """Connect to a WebSocket; return a future of the ``WebSocketConnection``.

    Arguments:
        url: as in "wss://example.org/chat"; or an ``HTTPRequest`` with such a URL.
        subprotocols: what to offer, the best first.
        compression_options, max_message_size, ping_interval, ping_timeout, close_timeout: see
            ``WebSocketOptions``.
        client: whose settings, cookies and proxies count; by default the loop's.
        options: those of ``HTTPRequest``: ``headers``, ``connect_timeout``, ``request_timeout``
            (for all up to the open connection), ``validate_cert``, ``proxy``, and so on.
    Raises:
        HTTPError: (in the future) the server answered with something else than a WebSocket; its
            ``response`` tells what. ``RequestError`` and its subclasses: it did not answer, or not
            as RFC 6455 section 4 wants it.
        ValueError: the URL or an option makes no sense.
    """
    if isinstance(url, HTTPRequest):
        if options:
            raise ValueError("options can't be given beside an HTTPRequest")
        request = url
    else:
        request = HTTPRequest(url, **options)
    settings = WebSocketOptions(
        max_message_size, ping_interval, ping_timeout, close_timeout, compression_options
    )
    return Handover(lambda handover: _open(handover, request, subprotocols, settings, client))


@coroutine
def _open(
    handover: Handover[WebSocketConnection],
    request: HTTPRequest,
    subprotocols: Sequence[str],
    settings: WebSocketOptions,
    client: AsyncHTTPClient | None,
) -> Generator[Any, Any, None]:
    try:
        scheme, colon, rest = request.url.partition(":")
        http = {"ws": "http", "wss": "https"}.get(scheme.lower())
        if http is None or not colon:
            raise ValueError(f"a WebSocket's URL begins with ws: or wss:, unlike {request.url!r}")
        if request.method != "GET":
            raise ValueError(f"a WebSocket is opened by GET, not {request.method}")
        key = new_key()
        compression = settings.compression_options
        fields = client_fields(key, subprotocols, compression)
        client = AsyncHTTPClient() if client is None else client
        response, stream = yield from client.switch_protocols(request, http + colon + rest, fields)
        if stream is None:
            response.rethrow()
            raise HTTPError(response.code, "the server opened no WebSocket", response)
        try:
            chosen = check_answer(response.headers, key, subprotocols)
            deflate = agreed_deflate(response.headers, compression)
        except HandshakeError as error:
            stream.close()
            raise HTTPProtocolError(str(error), phase="wait") from error
        handover.arrive(
            WebSocketConnection(
                stream,
                settings,
                client=True,
                subprotocol=chosen,
                deflate=deflate,
                response=response,
            )
        )
    finally:
        # This frame stands in the traceback of an error that the future holds.
        del handover


# --- the server's side ---------------------------------------------------------------------


class WebSocketHandler:
    """A handler for ``HTTPServer`` or ``Router`` that opens WebSockets.

        @WebSocketHandler
        @coroutine
        def echo(connection):
            while (message := (yield connection.read_message())) is not None:
                yield connection.write_message(message)

    It calls the function with each ``WebSocketConnection``, and with what the route has found in
    the path; when that has returned, the connection is closed, with 1011 if it has failed.

    Arguments:
        function: what to call, as a rule a coroutine.
        subprotocols: which are spoken here, the best first.
        allowed_origins: from which pages browsers may connect: origins as in
            ``"https://example.org"``, or "*" for any; None: pages of the request's own host.
        options: see ``WebSocketOptions``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        subprotocols: Sequence[str] = (),
        allowed_origins: AllowedOrigins = None,
        **options: Any,
    ) -> None:
        self.function = function
        self.subprotocols = subprotocols
        self.allowed_origins = allowed_origins
        self.options = WebSocketOptions(**options)

    def __call__(self, request: HTTPServerRequest, **places: str) -> Any:
        """Open a WebSocket, or answer why not."""
        try:
            opening = Opening(request, self.allowed_origins)
        except HandshakeError as error:
            _log.info("%s: %s %s", error, request.method, request.uri)
            return error.response
        return self._serve(request, opening, places)

    @coroutine
    def _serve(
        self, request: HTTPServerRequest, opening: Opening, places: dict[str, str]
    ) -> Generator[Any, Any, None]:
        chosen = opening.choose(self.subprotocols)
        connection = accept(request, opening, self.options, subprotocol=chosen)
        code = 1000
        try:
            result = self.function(connection, **places)
            if result is not None:
                try:
                    yield result
                finally:
                    # It holds its error, whose traceback refers to this frame.
                    del result
        except CancelledError:
            connection.leave(1001)
            raise
        except Exception as error:
            if not (isinstance(error, StreamClosedError) and connection.closed()):
                code = 1011
                _app_log.error(
                    "Uncaught exception in the WebSocket of %s from %s",
                    request.uri,
                    request.remote_ip,
                    exc_info=error,
                )
        yield connection.close(code)


def accept(
    request: HTTPServerRequest,
    opening: Opening,
    options: WebSocketOptions,
    *,
    subprotocol: str | None = None,
    headers: HTTPHeaders | None = None,
) -> WebSocketConnection:
    """Open the WebSocket that a request asks for.

    Arguments:
        request, opening: the request, and its handshake.
        options: limits and times.
        subprotocol: one of those that the client offers, or None.
        headers: further fields of the response.
    """
    fields, deflate = opening.answer(subprotocol, options.compression_options)
    for name, value in () if headers is None else headers.get_all():
        fields.add(name, value)
    stream = request.upgrade(101, fields)
    connection = WebSocketConnection(
        stream, options, client=False, subprotocol=subprotocol, deflate=deflate, request=request
    )
    request.call_on_stop(connection.go_away)
    return connection
