"""ASGI applications (Starlette, FastAPI, Django, Quart, ...) on coro's server.

``ASGIHandler(app)`` is a handler for ``HTTPServer(handler, stream_body=True)``: it calls the
application for each request and each WebSocket, with the ``scope``, ``receive`` and ``send`` of
ASGI 3. ``Lifespan`` tells an application of the beginning and the end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import unquote

from coro.errors import CancelledError, StreamClosedError
from coro.future import Future
from coro.gen import convert_yielded, coroutine, current_task, shield
from coro.http.framing import parse_length
from coro.http.headers import HTTPHeaders, check_name, is_field_block
from coro.http.request import HTTPServerRequest
from coro.http.response import Response
from coro.http.writer import ResponseWriter
from coro.queues import Queue

try:
    from coro.http import websocket
    from coro.http.handshake import HandshakeError, Opening
except ImportError:
    websocket = None  # type: ignore[assignment]

__all__ = ["ASGIApplication", "ASGIHandler", "Lifespan", "LifespanError"]

_app_log = logging.getLogger("coro.application")

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_INCOMPLETE = "the ASGI application returned without having completed a response"

_VERSION = {"version": "3.0", "spec_version": "2.4"}

# What the server writes itself, but for the length.
_OWN = frozenset({"Transfer-Encoding", "Connection"})


class LifespanError(RuntimeError):
    """The application said that it cannot start or end."""


class ASGIHandler:
    """A handler that calls an ASGI application.

    The next request of a connection is served when the response is complete; the application may
    go on with work of its own.

    Arguments:
        app: the application.
        root_path: where it is mounted (a path without a slash at its end).
        state: what ``Lifespan`` gave it.
        allowed_origins: from which pages browsers may open WebSockets, see ``WebSocketHandler``;
            by default the application decides.
        websocket_options: those of ``WebSocketOptions``.
    """

    def __init__(
        self,
        app: ASGIApplication,
        *,
        root_path: str = "",
        state: dict[str, Any] | None = None,
        allowed_origins: Any = "*",
        websocket_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.root_path = root_path
        self.state = state
        self.allowed_origins = allowed_origins
        self.websocket_options = dict(websocket_options or {})
        # The calls of the application that are under way.
        self.tasks: set[Future[None]] = set()

    def __call__(self, request: HTTPServerRequest) -> Response | Future[Response | None] | None:
        """Begin to serve a request."""
        if request.head.upgrade is not None and request.head.upgrade.lower() == "websocket":
            if websocket is not None:
                return self._open(request)
            _app_log.warning("WebSockets need wsproto: pip install 'coro-loop[websocket]'")
        exchange = _Exchange(request)
        task = convert_yielded(self.app(self._scope(request), exchange.receive, exchange.send))
        if task.done():
            return exchange.result(task)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if exchange.response is not None:
            task.add_done_callback(_log_failure)
            return exchange.response
        return exchange.wait(task)

    def _open(self, request: HTTPServerRequest) -> Response | Future[Response | None]:
        """Begin to serve a WebSocket."""
        try:
            opening = Opening(request, self.allowed_origins)
        except HandshakeError as error:
            return error.response
        scope = self._scope(request)
        del scope["method"]
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if request.protocol == "https" else "ws"
        scope["subprotocols"] = opening.subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
        socket = _Socket(request, opening, websocket.WebSocketOptions(**self.websocket_options))
        return socket.serve(self.app(scope, socket.receive, socket.send))

    def _scope(self, request: HTTPServerRequest) -> Scope:
        head = request.head
        path, query = head.split()
        scope: Scope = {
            "type": "http",
            "asgi": _VERSION,
            "http_version": head.http_version,
            "method": head.method,
            "scheme": request.protocol,
            "path": unquote(path) if "%" in path else path,
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": self.root_path,
            "headers": [*head.pairs],
            "client": (request.remote_ip, request.connection.remote_port),
            "server": request.connection.local_address,
        }
        if self.state is not None:
            scope["state"] = self.state.copy()
        return scope


class _Exchange:
    """One request and its response, as the application sees them."""

    __slots__ = (
        "_done",
        "_heard_all",
        "_nothing",
        "_request",
        "_sent",
        "_start",
        "_writer",
        "response",
    )

    def __init__(self, request: HTTPServerRequest) -> None:
        self._request = request
        # Status and fields, when the application has told them.
        self._start: tuple[int, bytes, int | None] | None = None
        self._heard_all = self._sent = False
        self._nothing: Future[None] = request.connection.stream.io_loop.nothing
        self._writer: ResponseWriter | None = None
        # The response, if it came in one piece.
        self.response: Response | None = None
        # Done when the response is complete, if somebody waits for that.
        self._done: Future[Response | None] | None = None

    def result(self, task: Future[None]) -> Response | None:
        """Return the response of an application that has ended; None if it was streamed."""
        if not self._sent:
            task.result()
            raise RuntimeError(_INCOMPLETE)
        _log_failure(task)
        return self.response

    @coroutine
    def wait(self, task: Future[None]) -> Generator[Any, Any, Response | None]:
        """Wait for the response, and give the application up if nobody else does."""
        self._done = Future()
        task.add_done_callback(self._ended)
        try:
            response: Response | None = yield self._done
        except BaseException:
            task.cancel()
            raise
        return response

    def _ended(self, task: Future[None]) -> None:
        done = self._done
        assert done is not None
        if done.done():
            _log_failure(task)
        elif task.cancelled():
            done.cancel()
        elif (error := task.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_exception(RuntimeError(_INCOMPLETE))

    def _complete(self, response: Response | None) -> None:
        self.response = response
        self._sent = True
        if self._done is not None and not self._done.done():
            self._done.set_result(response)

    # --- what the application calls --------------------------------------------------------

    @coroutine
    def receive(self) -> Generator[Any, Any, Message]:
        """Return the next piece of the body; after the last, wait for the client to go."""
        request = self._request
        if not self._heard_all:
            try:
                piece = yield request.read()
            except StreamClosedError:
                return {"type": "http.disconnect"}
            more = not request.connection.body_complete
            self._heard_all = not more
            return {"type": "http.request", "body": piece, "more_body": more}
        if not self._sent:
            try:
                yield request.disconnected()
            except CancelledError:
                # The request's end cancels what watches the client, not who asks.
                task = current_task()
                if not self._sent or (task is not None and task.cancelling()):
                    raise
        return {"type": "http.disconnect"}

    def send(self, message: Message) -> Future[None]:
        """Take the next part of the response."""
        kind = message["type"]
        if kind == "http.response.start":
            if self._start is not None:
                raise RuntimeError("the ASGI application sent http.response.start twice")
            fields, length = _encode(tuple(map(tuple, message["headers"])))
            self._start = (message["status"], fields, length)
            return self._nothing
        if kind != "http.response.body":
            raise RuntimeError(f"unexpected ASGI message {kind!r}")
        if self._start is None:
            raise RuntimeError("http.response.body before http.response.start")
        if self._sent:
            raise RuntimeError("http.response.body after the last one")
        return self._send(message.get("body", b""), message.get("more_body", False))

    def _send(self, body: bytes, more: bool) -> Future[None]:
        assert self._start is not None
        status, fields, length = self._start
        writer = self._writer
        if writer is None:
            if not more and length in (None, len(body)):
                self._complete(Response.encoded(bytes(body), status, fields))
                return self._nothing
            writer = self._writer = self._request.connection.begin(
                self._request, Response.encoded(b"", status, fields), length
            )
        written = writer.write(body)
        if not more:
            written = writer.finish()
            self._complete(None)
        return written


class _Socket:
    """One WebSocket, as the application sees it."""

    __slots__ = (
        "_answered",
        "_body",
        "_connection",
        "_denial",
        "_opening",
        "_options",
        "_request",
        "_told",
    )

    def __init__(self, request: HTTPServerRequest, opening: Any, options: Any) -> None:
        self._request = request
        self._opening = opening
        self._options = options
        self._connection: Any = None
        # What to answer instead of opening it, and its body so far.
        self._denial: Response | None = None
        self._body = b""
        # Whether the application was told that somebody connects; done when it has answered.
        self._told = False
        self._answered: Future[None] = Future()

    @coroutine
    def serve(self, call: Awaitable[None]) -> Generator[Any, Any, Response | None]:
        """Wait for the application; return the response if it opened nothing."""
        code = 1000
        try:
            yield call
        except CancelledError:
            if self._connection is not None:
                self._connection.leave(1001)
            raise
        except Exception as error:
            if self._connection is None and self._denial is None:
                raise
            if not (
                isinstance(error, StreamClosedError)
                and self._denial is None
                and self._connection.closed()
            ):
                code = 1011
                _app_log.error("Exception in the ASGI application", exc_info=error)
        if self._connection is not None:
            yield self._connection.close(code)
        elif self._denial is None:
            raise RuntimeError("the ASGI application returned without having opened the WebSocket")
        return self._denial

    # --- what the application calls --------------------------------------------------------

    @coroutine
    def receive(self) -> Generator[Any, Any, Message]:
        """Return the next event."""
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        if not self._answered.done():
            yield shield(self._answered)
        connection = self._connection
        if connection is None:
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        message = yield connection.read_message()
        if message is None:
            code, reason = connection.close_code, connection.close_reason
            return {"type": "websocket.disconnect", "code": code or 1005, "reason": reason or ""}
        return {
            "type": "websocket.receive",
            "text" if isinstance(message, str) else "bytes": message,
        }

    def send(self, message: Message) -> Future[None]:
        """Take what is to be sent, or done."""
        kind = message["type"]
        nothing: Future[None] = self._request.connection.stream.io_loop.nothing
        if self._connection is not None:
            if kind == "websocket.send":
                text = message.get("text")
                sent: Future[None] = self._connection.write_message(
                    message["bytes"] if text is None else text
                )
                return sent
            if kind == "websocket.close":
                self._connection.begin_close(message.get("code", 1000), message.get("reason") or "")
                return nothing
        elif self._answered.done():
            pass
        elif kind == "websocket.accept":
            fields = HTTPHeaders.from_pairs(message.get("headers", ()))
            self._connection = websocket.accept(
                self._request,
                self._opening,
                self._options,
                subprotocol=message.get("subprotocol"),
                headers=fields,
            )
            self._answered.set_result(None)
            return nothing
        elif kind == "websocket.close":
            self._denial = Response("403 Forbidden\n", 403)
            self._answered.set_result(None)
            return nothing
        elif kind == "websocket.http.response.start" and self._denial is None:
            lines, _ = _encode(tuple(map(tuple, message["headers"])))
            self._denial = Response.encoded(b"", message["status"], lines)
            return nothing
        elif kind == "websocket.http.response.body" and self._denial is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                self._denial.body = self._body
                self._answered.set_result(None)
            return nothing
        raise RuntimeError(f"unexpected ASGI message {kind!r}")


@lru_cache(1024)
def _encode(fields: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int | None]:
    """Encode the fields of a response; return them, and the length of the body if they tell it.

    Raises:
        ValueError: something that may not be written out.
    """
    length = None
    lines = []
    for name, value in fields:
        known = check_name(name.decode("latin-1"))
        if known == "Content-Length":
            length = parse_length(value)
        elif known not in _OWN:
            line = b"%b: %b\r\n" % (name, value.strip(b" \t"))
            if not is_field_block(line) or line.count(b"\n") > 1:
                raise ValueError(f"a field that may not be written out: {line[:200]!r}")
            lines.append(line)
    return b"".join(lines), length


def _log_failure(task: Future[None]) -> None:
    """Log the failure of an application whose response is complete."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _app_log.error("Exception in the ASGI application", exc_info=error)


class Lifespan:
    """Tells an application that the server begins, and that it ends.

        lifespan = Lifespan(app)
        yield lifespan.startup()
        ... serve, with ASGIHandler(app, state=lifespan.state) ...
        yield lifespan.shutdown()

    Arguments:
        app: the application. One that fails at once knows no lifespan, and is left alone.
    """

    def __init__(self, app: ASGIApplication) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self._messages: Queue[Message] = Queue()
        self._answer: Future[Message] | None = None
        self._task: Future[None] | None = None

    @coroutine
    def startup(self) -> Generator[Any, Any, None]:
        """Wait until the application is ready.

        Raises:
            LifespanError: it said that it cannot start.
        """
        scope = {"type": "lifespan", "asgi": _VERSION, "state": self.state}
        asked = self._ask("startup")
        self._task = convert_yielded(self._run(scope))
        answer = yield asked
        if answer["type"] == "lifespan.startup.failed":
            raise LifespanError(f"the application cannot start: {answer.get('message', '')}")

    @coroutine
    def shutdown(self) -> Generator[Any, Any, None]:
        """Wait until the application has cleaned up.

        Raises:
            LifespanError: it said that it cannot.
        """
        if self._task is None or self._task.done():
            return
        answer = yield self._ask("shutdown")
        if answer["type"] == "lifespan.shutdown.failed":
            raise LifespanError(f"the application cannot end: {answer.get('message', '')}")
        yield self._task

    async def _run(self, scope: Scope) -> None:
        try:
            await self.app(scope, self._messages.get, self._send)
        except Exception as error:
            if self._answer is None or self._answer.done():
                _app_log.error("Exception in the lifespan of the ASGI application", exc_info=error)
            else:
                _app_log.debug("the ASGI application knows no lifespan: %r", error)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result({"type": "unsupported"})

    def _ask(self, what: str) -> Future[Message]:
        """Send an event; return a future of the answer."""
        self._answer = Future()
        self._messages.put_nowait({"type": f"lifespan.{what}"})
        if self._task is not None and self._task.done():
            self._answer.set_result({"type": "unsupported"})
        return self._answer

    async def _send(self, message: Message) -> None:
        if self._answer is None or self._answer.done():
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        self._answer.set_result(message)
