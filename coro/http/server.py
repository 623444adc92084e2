"""``HTTPServer``: HTTP/1.1 over a ``TCPServer``; one coroutine a connection, one request at a time.

A connection is a loop: read a head, read the body (unless the handler wants to), call the handler,
send its response. While a handler is at work nothing is read, so that a client that pipelines
without end is held back by TCP, and responses leave in the order of their requests.

Time limits are two stores: each connection has one timer that looks after its present deadline,
which moves with every phase. If the timer fires and the deadline has moved, it is armed again.

How a connection ends. When the client said that it sends nothing more, the stream is closed. When
the server ends it (an error, a limit, a stop), bytes of the client may still be on their way, and
closing on them would make the system reset the connection, which can take the response with it. So
the server says that it has finished, and goes on receiving for a while (RFC 9112 section 9.6).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Generator, Iterable
from email.utils import formatdate
from typing import Any, NoReturn

from coro.errors import (
    CancelledError,
    HTTPInputError,
    StreamClosedError,
    TimeoutError,
    format_address,
)
from coro.future import DONE, Future
from coro.gen import Timeout, coroutine, shield, timeout, to_thread
from coro.http.compressors import compress, compressor_for, mark
from coro.http.forwarded import Proxies, forwarded
from coro.http.framing import MAX_HEADER_BYTES, MAX_HEADERS, parse_length
from coro.http.headers import HTTPHeaders, InvalidHeaderError
from coro.http.incoming import MAX_TARGET_BYTES, RefusalError, RequestDecoder
from coro.http.request import HTTPServerRequest
from coro.http.response import Response, encode_head, has_no_body, reason_of
from coro.http.writer import ResponseWriter, pour
from coro.stream import IOStream, SSLIOStream
from coro.tcpserver import TCPServer
from coro.timers import DEADLINE, Timer
from coro.tls import TLSOptions

__all__ = ["HTTPServer", "ServerConnection", "log_access"]

_app_log = logging.getLogger("coro.application")
_access_log = logging.getLogger("coro.access")
_log = logging.getLogger("coro.general")

DEFAULT_MAX_BODY = 100 * 1024 * 1024

# Seconds.
IDLE_TIMEOUT = 75.0
HEADER_TIMEOUT = 30.0
BODY_TIMEOUT = 60.0
WRITE_TIMEOUT = 60.0
LINGER = 2.0

# Seconds that a connection has for a request while the server stops: one that had a request before,
# and one that was just accepted.
LAST_LOOK = 0.1
FIRST_LOOK = 5.0

# Bytes that are received and dropped after the last response, before the connection is cut. Of a
# body whose length was announced it may be more: who sends all of it before he looks for an answer
# sees that one only if so much is taken.
LINGER_BYTES = 1024 * 1024
LINGER_ANNOUNCED = 16 * 1024 * 1024

# Pieces up to this many bytes are sent in one go with the head.
JOINED = 65536

# Bodies of more bytes are compressed in a thread.
COMPRESSED_AT_ONCE = 65536

# Requests that one connection may have answered before others get their turn.
PIPELINED = 16

# Phases of a connection. One that was left is the handler's, see ``HTTPServerRequest.upgrade``.
_IDLE, _HEAD, _BODY, _HANDLER, _WRITE, _LINGER, _LEFT = range(7)
_PHASE_NAMES = ("idle", "head", "body", "handler", "write", "linger", "left")

# Heads of responses that are kept for as long as the date stays the same.
_MAX_KEPT_HEADS = 256

# Bytes of a response that may wait to be sent while its handler goes on.
WRITE_LOW_WATER = 65536

_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: Keep-Alive\r\n"

Handler = Callable[[HTTPServerRequest], Any]


class HTTPServer(TCPServer):
    """Serves HTTP: ``HTTPServer(handler).listen(8888)``.

    The handler is called with each ``HTTPServerRequest``, as a rule it is a coroutine. It returns a
    ``Response``; or None, having written a response by ``request.respond()``. If it fails, the
    error is logged, and the client gets a 500.

    Arguments:
        handler: answers requests.
        no_keep_alive: close each connection after its first response.
        xheaders: take the client's address and protocol from ``X-Forwarded-For``, ``X-Real-Ip``,
            ``X-Forwarded-Proto`` and ``X-Scheme``. True: of every request, which is only for
            servers that nobody can reach but through a proxy that sets them; or the addresses and
            networks of the proxies, as in ("10.0.0.0/8", "unix"), where "unix" stands for who comes
            by a unix socket.
        ssl_options: serve TLS, see ``TCPServer``.
        max_header_size: limit for a request's head, in bytes.
        max_headers: limit for the number of its fields.
        max_target_size: limit for its first line, in bytes.
        max_body_size: limit for a request's body, in bytes.
        idle_connection_timeout: seconds that a connection may wait for its next request.
        header_timeout: seconds that a head may take to come.
        body_timeout: seconds that a body may take to come; of a streamed one, each piece.
        write_timeout: seconds that a client may take to receive a piece of a response.
        handler_timeout: seconds that a handler may take; then it is cancelled, and the client gets
            a 503. None: no limit.
        stream_body: call the handler when the head has come, and leave the body to
            ``request.read()``; or a function of the request that says so.
        compress_response: compress what gains by it, for clients that take it; not what an ASGI
            application answers, which has its own means. Where a response has both a secret and
            what an attacker may put into it, its length can give the secret away.
        trusted_downstream: addresses of further proxies that ``X-Forwarded-For`` may name.
        on_request_end: called with the request, the response's status and the number of bytes of
            its body, when it has been handed to the system; see ``log_access``.
        options: further arguments of ``TCPServer``.
    """

    def __init__(
        self,
        handler: Handler,
        no_keep_alive: bool = False,
        xheaders: bool | Iterable[str] = False,
        ssl_options: TLSOptions = None,
        *,
        max_header_size: int = MAX_HEADER_BYTES,
        max_headers: int = MAX_HEADERS,
        max_target_size: int = MAX_TARGET_BYTES,
        max_body_size: int = DEFAULT_MAX_BODY,
        idle_connection_timeout: float = IDLE_TIMEOUT,
        header_timeout: float = HEADER_TIMEOUT,
        body_timeout: float = BODY_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
        handler_timeout: float | None = None,
        stream_body: bool | Callable[[HTTPServerRequest], bool] = False,
        compress_response: bool = False,
        trusted_downstream: list[str] | None = None,
        on_request_end: Callable[[HTTPServerRequest, int, int], Any] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(ssl_options, dict):
            ssl_options = {"alpn_protocols": ["http/1.1"], **ssl_options}
        super().__init__(ssl_options, half_open=True, **options)
        self.handler = handler
        self.no_keep_alive = no_keep_alive
        self.xheaders = xheaders if isinstance(xheaders, bool) else Proxies(xheaders)
        self.max_header_size = max_header_size
        self.max_headers = max_headers
        self.max_target_size = max_target_size
        self.max_body_size = max_body_size
        self.idle_timeout = idle_connection_timeout
        self.header_timeout = header_timeout
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.handler_timeout = handler_timeout
        self.stream_body = stream_body
        self.compress_response = compress_response
        self.trusted_downstream = frozenset(trusted_downstream or ())
        self.on_request_end = on_request_end
        self._stopping = False
        # A dict for its order: they are told of a stop in the order in which they came.
        self._live: dict[ServerConnection, None] = {}
        self._requests = 0
        # The line of the Date field, and the second that it tells.
        self._date = b""
        self._date_second = -1
        self._heads: dict[Any, bytes] = {}

    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        """Serve one connection."""
        stream.write_low_water = WRITE_LOW_WATER
        return ServerConnection(self, stream, address).serve()

    def statistics(self) -> dict[str, int]:
        """Return figures of the server: those of ``TCPServer``, and ``requests`` so far."""
        return {**super().statistics(), "requests": self._requests}

    @coroutine
    def shutdown(self, grace: Any = None) -> Generator[Any, Any, None]:
        """Stop, and let nobody lose a request.

        What waits to be accepted is accepted. Connections get a last look: a request that has come
        is answered, the last one with ``Connection: close``. Then see ``TCPServer.shutdown``.

        Arguments:
            grace: seconds that requests under way have to finish; None: no limit.
        """
        self._stopping = True
        for connection in list(self._live):
            connection.last_look()
        yield super().shutdown(grace)

    def date_line(self) -> bytes:
        """Return the line of the ``Date`` field (RFC 9110 section 6.6.1)."""
        now = time.time()
        if int(now) != self._date_second:
            self._date_second = int(now)
            self._date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode("ascii")
            self._heads.clear()
        return self._date


class ServerConnection:
    """One connection of an ``HTTPServer``."""

    __slots__ = (
        "_address",
        "_answered",
        "_deadline",
        "_decoder",
        "_expired",
        "_handling",
        "_local",
        "_looked",
        "_on_stop",
        "_owes_continue",
        "_phase",
        "_reading",
        "_received",
        "_request",
        "_timer",
        "_watcher",
        "_writer",
        "server",
        "stream",
    )

    def __init__(self, server: HTTPServer, stream: IOStream, address: Any) -> None:
        self.server = server
        self.stream = stream
        self._address = address
        self._local: tuple[str, int | None] | None = None
        self._decoder = RequestDecoder(
            server.max_header_size, server.max_headers, server.max_target_size
        )
        self._phase = _IDLE
        # When the present phase must have ended, in the loop's time; None: whenever.
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._expired = False
        # The pending read that the deadline ends.
        self._reading: Future[bytes] | None = None
        # The present request; whether it waits for 100, bytes of its body so far, what writes its
        # response, what waits for its client to go.
        self._request: HTTPServerRequest | None = None
        self._owes_continue = False
        self._received = 0
        self._writer: ResponseWriter | None = None
        self._watcher: Future[None] | None = None
        self._answered = 0
        # Whether it was seen, while the server stops, if the client has sent more.
        self._looked = False
        # The time limit of the handler, if it has one; what to call when the server stops.
        self._handling: Timeout | None = None
        self._on_stop: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        return f"<ServerConnection {_PHASE_NAMES[self._phase]} {self.stream!r}>"

    @coroutine
    def serve(self) -> Generator[Any, Any, None]:
        """Answer one request after the other, until one side has enough."""
        server, stream, decoder = self.server, self.stream, self._decoder
        loop = stream.io_loop
        chunk = stream.read_chunk_size
        handler = server.handler
        server._live[self] = None
        try:
            while True:
                self._phase = _IDLE
                self._limit(self._patience() if server._stopping else server.idle_timeout)
                head, heard = None, False
                if decoder.rest:
                    head = decoder.feed(b"")
                    heard = decoder.begun
                while head is None:
                    if heard and self._phase == _IDLE:
                        self._phase = _HEAD
                        self._limit(server.header_timeout)
                    self._reading = stream.read_bytes(chunk, True)
                    head = decoder.feed((yield self._reading))
                    heard = True
                self._phase = _HANDLER
                self._reading = self._deadline = self._writer = None
                self._request = request = HTTPServerRequest(self, head, loop._now)
                server._requests += 1
                if not decoder.complete:
                    yield from self._begin_body(request)
                try:
                    response = handler(request)
                    if type(response) is not Response:
                        if (
                            isinstance(response, Future)
                            and response._state == DONE
                            and type(response._value) is Response
                        ):
                            response = response._value
                        else:
                            response = yield from self._follow(response)
                except Exception as error:
                    response = self._failed(request, error)
                if self._watcher is not None:
                    self._watcher.cancel()
                    self._watcher = None
                try:
                    if (
                        type(response) is Response
                        and type(response.body) is bytes
                        and not server.compress_response
                    ):
                        keep = self._send(request, response)
                    else:
                        keep = yield from self._finish(request, response)
                except ValueError as error:
                    # Something that may not be written out.
                    keep = self._send(request, self._failed(request, error))
                client_ends = not head.keep_alive
                # An idle connection keeps nothing of its last request.
                del request, response
                head = self._request = None
                if not keep:
                    break
                self._answered += 1
                if stream.writing():
                    yield from self._flush()
                elif decoder.rest and self._answered % PIPELINED == 0:
                    yield
            if self._phase != _LEFT:
                yield from self._end(client_ends)
        except StreamClosedError:
            if not stream.closed():
                # The client has said all, and gets what it asked for.
                with contextlib.suppress(StreamClosedError):
                    yield from self._flush()
        except HTTPInputError as error:
            yield from self._refuse(error)
        except CancelledError:
            if not self._expired:
                raise
            if self._phase == _IDLE:
                yield from self._linger()
            else:
                yield from self._refuse(RefusalError(408, "the request took too long"))
        finally:
            server._live.pop(self, None)
            self._on_stop = None
            self._disarm()
            # They refer to this, the last one by the traceback of its error.
            self._request = self._writer = self._reading = None
            if self._phase != _LEFT:
                stream.close()

    def _patience(self) -> float:
        """How many seconds to wait for a request while the server stops."""
        return LAST_LOOK if self._answered else FIRST_LOOK

    def last_look(self) -> None:
        """The server stops: wait for a request for a moment only."""
        if self._phase == _IDLE:
            self._limit(self._patience())
        elif self._on_stop is not None:
            self._on_stop()

    def call_on_stop(self, callback: Callable[[], Any] | None) -> None:
        """Call this when the server begins to stop; soon, if it has."""
        self._on_stop = callback
        if callback is not None and self.server._stopping:
            self.stream.io_loop.add_callback(callback)

    # --- receiving -------------------------------------------------------------------------

    def _begin_body(self, request: HTTPServerRequest) -> Generator[Any, Any, None]:
        """Receive the body, unless the handler wants to."""
        server, head = self.server, request.head
        self._received = 0
        self._owes_continue = head.expects_continue
        if head.content_length is not None and head.content_length > server.max_body_size:
            self._refuse_size()
        streamed = server.stream_body
        if streamed if isinstance(streamed, bool) else streamed(request):
            return
        pieces = []
        self._phase = _BODY
        self._limit(server.body_timeout)
        while not self._decoder.complete:
            pieces.append((yield from self._receive()))
        request.body = b"".join(pieces)
        self._phase = _HANDLER
        self._deadline = None

    def _receive(self) -> Generator[Any, Any, bytes]:
        """Return the next bytes of the body; b"" if what came completed none."""
        decoder, stream = self._decoder, self.stream
        if decoder.rest:
            piece = decoder.feed_body(b"")
        else:
            if self._owes_continue:
                self._owes_continue = False
                stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._reading = stream.read_bytes(stream.read_chunk_size, True)
            piece = decoder.feed_body((yield self._reading))
            self._reading = None
        self._owes_continue = False
        self._received += len(piece)
        if self._received > self.server.max_body_size:
            self._refuse_size()
        return piece

    def _refuse_size(self) -> NoReturn:
        raise RefusalError(413, f"a body of over {self.server.max_body_size} bytes")

    def _check_present(self, request: HTTPServerRequest) -> None:
        if self._request is not request:
            if self.stream.closed():
                raise StreamClosedError(self.stream.error)
            raise RuntimeError(f"{request!r} is over")

    @coroutine
    def read(self, request: HTTPServerRequest, max_bytes: int) -> Generator[Any, Any, bytes]:
        """Return some of a streamed body; b"" at its end."""
        self._check_present(request)
        if max_bytes < 1:
            raise ValueError(f"max_bytes is at least 1, not {max_bytes!r}")
        piece, request.unread = request.unread, b""
        decoder = self._decoder
        try:
            while not piece and not decoder.complete:
                self._limit(self.server.body_timeout)
                piece = yield from self._receive()
        except CancelledError:
            if not self._expired:
                raise
            raise RefusalError(408, "the body took too long") from None
        finally:
            self._deadline = None
        request.unread = piece[max_bytes:]
        return piece[:max_bytes]

    def trailers(self) -> HTTPHeaders:
        """Return the fields that came after the body."""
        return self._decoder.trailers

    def disconnected(self, request: HTTPServerRequest) -> Future[None]:
        """Return a future that is done when the client has gone."""
        if self.stream.closed():
            return self.stream.io_loop.nothing
        self._check_present(request)
        if self._watcher is None:
            self._watcher = self._watch()
        return shield(self._watcher)

    @coroutine
    def _watch(self) -> Generator[Any, Any, None]:
        """Wait for the client to go; what it pipelines meanwhile is kept, and ends the watch."""
        decoder, stream = self._decoder, self.stream
        try:
            if not decoder.rest:
                decoder.rest = yield stream.read_bytes(stream.read_chunk_size, True)
        except StreamClosedError:
            return
        yield Future()

    @property
    def body_complete(self) -> bool:
        """Whether all of the present request's body was received and read."""
        request = self._request
        return self._decoder.complete and (request is None or not request.unread)

    @property
    def remote_port(self) -> int | None:
        """The client's port; None on a unix socket."""
        return self._address[1] if isinstance(self._address, tuple) else None

    @property
    def local_address(self) -> tuple[str, int | None]:
        """The server's address and port, or its path and None."""
        if self._local is None:
            address = self.stream.socket.getsockname()
            self._local = address[:2] if isinstance(address, tuple) else (address, None)
        return self._local

    def client_of(self, request: HTTPServerRequest) -> tuple[str, str]:
        """Return the client's address and the protocol that it used."""
        address = self._address
        ip = address[0] if isinstance(address, tuple) else ""
        protocol = "https" if isinstance(self.stream, SSLIOStream) else "http"
        if self.server.xheaders is True or (self.server.xheaders and self.server.xheaders.have(ip)):
            ip, protocol = forwarded(request.headers, ip, protocol, self.server.trusted_downstream)
        return ip, protocol

    # --- handling --------------------------------------------------------------------------

    def _follow(self, result: Any) -> Generator[Any, Any, Any]:
        """Wait for a handler; return its response."""
        limit = self.server.handler_timeout
        if limit is None or self._phase == _LEFT:
            if result is not None:
                result = yield result
        elif result is not None:
            block = self._handling = timeout(limit)
            try:
                with block:
                    result = yield result
            except TimeoutError:
                if not block.expired():
                    raise
                _app_log.warning("%r: the handler took more than %g s", self, limit)
                result = self._plain(503)
            finally:
                self._handling = None
        if result is not None and not isinstance(result, Response):
            raise TypeError(f"a handler returns a Response or None, not {result!r:.100}")
        if result is None and self._writer is None and self._phase != _LEFT:
            raise RuntimeError(
                "the handler returned None without having answered: return a Response, or write "
                "one by request.respond()"
            )
        return result

    def _failed(self, request: HTTPServerRequest, error: Exception) -> Response:
        """The handler failed: log it, and return what to answer."""
        gone = isinstance(error, StreamClosedError) and self.stream.closed()
        if gone or (
            isinstance(error, HTTPInputError) and not isinstance(error, InvalidHeaderError)
        ):
            try:
                raise error
            finally:
                # This frame stands in its traceback.
                del error
        _app_log.error(
            "Uncaught exception in the handler of %s %s from %s",
            request.method,
            request.uri,
            request.remote_ip,
            exc_info=error,
        )
        if self._phase == _LEFT or self._writer is not None:
            self._break()
        return self._plain(500)

    def _break(self) -> NoReturn:
        """A response was begun that cannot be ended: let the client see it."""
        self._phase = _HANDLER
        self.stream.abort()
        raise StreamClosedError(self.stream.error)

    def _plain(self, status: int) -> Response:
        return Response(f"{status} {reason_of(status)}\n", status)

    # --- responding ------------------------------------------------------------------------

    def _keeps(self, request: HTTPServerRequest) -> bool:
        """Whether the connection may carry another request."""
        server = self.server
        return (
            request.head.keep_alive
            and not server.no_keep_alive
            and (not server._stopping or self._has_more())
        )

    def _has_more(self) -> bool:
        """Whether the client has sent more requests already, for a server that stops."""
        decoder, stream = self._decoder, self.stream
        if not decoder.complete:
            return False
        if not self._looked and not decoder.rest and not stream.reading():
            # Once only: who goes on sending for ever is not to hold the server up.
            self._looked = True
            with contextlib.suppress(StreamClosedError):
                reading = stream.read_bytes(stream.read_chunk_size, True)
                if not reading.done():
                    stream.receive()
                if reading.done():
                    decoder.rest = reading.result()
                else:
                    reading.cancel()
        return bool(decoder.rest)

    def _connection_line(self, request: HTTPServerRequest, keep: bool) -> bytes:
        if not keep:
            return _CLOSE
        return b"" if request.head.http_version == "1.1" else _KEEP_ALIVE

    def _send(self, request: HTTPServerRequest, response: Response) -> bool:
        """Send a response whose body is bytes; return whether the connection is kept."""
        server = self.server
        body: Any = response.body
        keep = self._decoder.complete and self._keeps(request)
        size = len(body)
        date = server.date_line()
        key = None
        if response.headers is None:
            key = (
                response.status,
                response.reason,
                response.content_type,
                response.fields,
                size,
                keep,
                request.head.http_version,
            )
        head = server._heads.get(key)
        if head is None:
            head = self._encode(response, date, size, self._connection_line(request, keep))
            if key is not None and len(server._heads) < _MAX_KEPT_HEADS:
                server._heads[key] = head
        if request.head.method == "HEAD" or has_no_body(response.status):
            self.stream.write_soon(head)
        elif size <= JOINED:
            self.stream.write_soon(head + body)
        else:
            self.stream.write(head)
            self.stream.write(body)
        if server.on_request_end is not None:
            self._end_request(request, response.status, size)
        return keep

    def _encode(self, response: Response, date: bytes, size: int, connection: bytes) -> bytes:
        # A 304 has no body, but may tell the length of the one that it stands for.
        no_length = has_no_body(response.status)
        return encode_head(
            response, date, content_length=None if no_length else size, connection=connection
        )

    def _finish(
        self, request: HTTPServerRequest, response: Response | None
    ) -> Generator[Any, Any, bool]:
        """End a response that is streamed; return whether the connection is kept."""
        if self._phase == _LEFT:
            return False
        writer = self._writer
        if response is not None:
            if writer is not None:
                _app_log.error("%r: a Response was returned after request.respond()", request)
                self._break()
            body = response.body
            if isinstance(body, bytes):
                if self.server.compress_response:
                    response = yield from self._compressed(request, response, body)
                return self._send(request, response)
            try:
                writer = self.begin(request, response)
                yield from pour(body, writer)
            except Exception as error:
                self._failed(request, error)
                raise
        assert writer is not None
        yield writer.finish()
        if self.server.on_request_end is not None:
            self._end_request(request, writer.status, writer.sent)
        return writer.keep and self._decoder.complete

    def _compressed(
        self, request: HTTPServerRequest, response: Response, body: bytes
    ) -> Generator[Any, Any, Response]:
        """Return the response compressed, if that is of use."""
        # The handler may answer with the same one again.
        response = copy.copy(response)
        size = len(body)
        found = compressor_for(response, request.headers.get("Accept-Encoding"), size)
        if found is not None:
            coding, compressor = found
            if size <= COMPRESSED_AT_ONCE:
                response.body = compress(compressor, body)
            else:
                response.body = yield to_thread(compress, compressor, body)
            mark(response, coding)
        return response

    def _end_request(self, request: HTTPServerRequest, status: int, size: int) -> None:
        request.ended = self.stream.io_loop.time()
        try:
            self.server.on_request_end(request, status, size)  # type: ignore[misc]
        except Exception:
            _app_log.exception("Exception in %r", self.server.on_request_end)

    def _check_unanswered(self, request: HTTPServerRequest) -> None:
        self._check_present(request)
        if self._writer is not None or self._phase == _LEFT:
            raise RuntimeError(f"{request!r} was answered already")

    def respond(
        self, request: HTTPServerRequest, status: int, headers: Any, **options: Any
    ) -> ResponseWriter:
        """Begin a response whose body the handler writes."""
        return self.begin(request, Response((), status, headers, **options))

    def begin(
        self, request: HTTPServerRequest, response: Response, length: int | None = None
    ) -> ResponseWriter:
        """Begin a response whose body is written by the writer that this returns."""
        self._check_unanswered(request)
        if response.headers is not None and "Content-Length" in response.headers:
            response.headers = response.headers.copy()
            length = parse_length(response.headers.pop("Content-Length").encode("latin-1"))
        compressor = None
        if self.server.compress_response:
            accepted = request.headers.get("Accept-Encoding")
            response = copy.copy(response)
            found = compressor_for(response, accepted, length)
            if found is not None:
                coding, compressor = found
                mark(response, coding)
                length = None
        bodyless = request.head.method == "HEAD" or has_no_body(response.status)
        chunked = length is None and request.head.http_version == "1.1"
        # The rest of the request's body may yet be read.
        keep = self._keeps(request) and (chunked or bodyless or length is not None)
        head = encode_head(
            response,
            self.server.date_line(),
            content_length=length,
            chunked=chunked and not has_no_body(response.status),
            connection=self._connection_line(request, keep),
        )
        writer = ResponseWriter(
            self.stream,
            self._watch_writing,
            head,
            response.status,
            keep,
            length,
            chunked,
            bodyless,
            compressor,
        )
        self._writer = writer
        return writer

    def take_over(self, request: HTTPServerRequest, status: int, headers: Any) -> IOStream:
        """Answer, and leave the stream to the handler."""
        self._check_unanswered(request)
        if not self._decoder.complete:
            raise RuntimeError(f"the body of {request!r} has not been read")
        head = encode_head(
            Response(status=status, headers=headers), self.server.date_line(), content_length=None
        )
        self._phase = _LEFT
        self._deadline = None
        self._disarm()
        if self._handling is not None:
            # From now on it is no answer that takes long.
            self._handling.reschedule(None)
        rest, self._decoder.rest = self._decoder.rest, b""
        self.stream.unread(rest)
        self.stream.write(head)
        return self.stream

    # --- ending ----------------------------------------------------------------------------

    def _flush(self) -> Generator[Any, Any, None]:
        """Wait until the system has taken all that was written."""
        self._phase = _WRITE
        self._limit(self.server.write_timeout)
        yield self.stream.write(b"")

    def _refuse(self, error: HTTPInputError) -> Generator[Any, Any, None]:
        """Answer what is no request, and end the connection."""
        status = error.status if isinstance(error, RefusalError) else 400
        _log.info("%s: %s from %s", status, error, format_address(self._address))
        if self.stream.closed():
            return
        if self._writer is not None:
            self.stream.abort()
            return
        response = self._plain(status)
        body = response.body
        assert isinstance(body, bytes)
        self.stream.write(self._encode(response, self.server.date_line(), len(body), _CLOSE) + body)
        yield from self._linger()

    def _end(self, client_ends: bool) -> Generator[Any, Any, None]:
        """End the connection after its last response."""
        if client_ends and self._decoder.complete and not self._decoder.rest:
            yield from self._flush()
        else:
            yield from self._linger()

    def _linger(self) -> Generator[Any, Any, None]:
        """Say that nothing more will come, and receive for a while what is still on its way."""
        stream = self.stream
        self._phase = _LINGER
        self._expired = False
        self._limit(LINGER)
        left = max(LINGER_BYTES, min(self._decoder.left, LINGER_ANNOUNCED))
        try:
            if isinstance(stream, SSLIOStream):
                # It cannot half-close: who has said all need not wait to be left.
                yield stream.write(b"")
                decoder = self._decoder
                if decoder.complete and not decoder.begun and not decoder.rest:
                    return
            else:
                yield stream.send_eof()
            while left > 0:
                self._reading = stream.read_bytes(stream.read_chunk_size, True)
                left -= len((yield self._reading))
        except StreamClosedError:
            pass
        except CancelledError:
            if not self._expired:
                raise

    # --- time limits -----------------------------------------------------------------------

    def _limit(self, seconds: float) -> None:
        """Let the present phase end in so many seconds."""
        self._deadline = deadline = self.stream.io_loop._now + seconds
        timer = self._timer
        if timer is None or timer[DEADLINE] > deadline:
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        self._disarm()
        self._timer = self.stream.io_loop.call_at(deadline, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self.stream.io_loop.remove_timeout(self._timer)
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        stream = self.stream
        reading = self._reading
        if reading is not None and reading.done():
            reading = None
        if reading is None:
            # A client that takes what is written, however slowly, has its time again.
            deadline = max(deadline, stream.sent_at + self.server.write_timeout)
        if deadline > stream.io_loop.time():
            self._arm(deadline)
            return
        self._deadline = None
        if reading is not None:
            if self._phase == _IDLE:
                # Where very many are ready, the poller may not have told of this one yet.
                stream.receive()
                if reading.done():
                    return
            self._expired = True
            reading.cancel()
        elif stream.writing():
            stream.abort()

    def _watch_writing(self) -> None:
        """A piece of a response waits to be sent: see that the client takes it."""
        self._limit(self.server.write_timeout)


def log_access(request: HTTPServerRequest, status: int, size: int) -> None:
    """Log a request to ``coro.access``: give it as ``on_request_end``."""
    level = logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
    if _access_log.isEnabledFor(level):
        _access_log.log(
            level,
            "%d %s %s (%s) %d bytes %.2f ms",
            status,
            request.method,
            request.uri,
            request.remote_ip,
            size,
            request.request_time() * 1e3,
        )
