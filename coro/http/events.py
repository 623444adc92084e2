"""Server-Sent Events: ``EventStream`` for servers, ``read_events`` for clients.

A response that does not end, of lines (HTML Standard, section "Server-sent events"): the fields
``event``, ``data``, ``id`` and ``retry`` make up an event, which an empty line ends; a line that
begins with a colon is a comment. A browser that has lost its connection comes again, and says by
``Last-Event-ID`` up to where it came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from coro.errors import HTTPProtocolError
from coro.future import Future
from coro.http.request import HTTPServerRequest
from coro.http.writer import ResponseWriter
from coro.timers import Timer

__all__ = ["Event", "EventStream", "read_events"]

# Seconds of silence after which a comment is sent, so that nobody between takes the connection for
# a dead one, and the server finds out about a client that has vanished.
KEEP_ALIVE = 15.0

# Bytes that one event may have, and one line of it.
MAX_EVENT = 1024 * 1024

_FIELDS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
_COMMENT = b":\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        data: its text; may have several lines.
        event: its type.
        id: what a client that comes again says it had last; "" to forget that.
        retry: milliseconds after which it is to come again.
    """

    data: str = ""
    event: str = "message"
    id: str | None = None
    retry: int | None = None

    def encode(self) -> bytes:
        """Return the event as it is sent.

        Raises:
            ValueError: a type or an id with a line end, which would end it there.
        """
        lines = []
        for name, value in (("event", self.event), ("id", self.id)):
            if value is None or (name == "event" and value == "message"):
                continue
            if "\n" in value or "\r" in value or (name == "id" and "\0" in value):
                raise ValueError(f"the {name} of an event may not have {value!r} in it")
            lines.append(f"{name}: {value}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry:d}")
        text = self.data.replace("\r\n", "\n").replace("\r", "\n")
        lines += [f"data: {line}" for line in text.split("\n")]
        return "\n".join([*lines, "", ""]).encode()


class EventStream:
    """A response of events, for a handler:

        @coroutine
        def handler(request):
            with EventStream(request) as events:
                while True:
                    yield events.send((yield news.get()))

    While nothing is sent, comments keep the connection alive. When the client goes, ``send`` raises
    ``StreamClosedError``, which ends the handler; ``request.disconnected()`` tells of it sooner.

    Arguments:
        request: what it answers.
        keep_alive: seconds of silence between comments; None: none are sent.
        headers: further fields of the response.
    """

    def __init__(
        self,
        request: HTTPServerRequest,
        *,
        keep_alive: float | None = KEEP_ALIVE,
        headers: Any = None,
    ) -> None:
        if keep_alive is not None and not keep_alive > 0:
            raise ValueError(f"keep_alive is more than 0 seconds, not {keep_alive!r}")
        self._loop = request.connection.stream.io_loop
        self._stream = request.connection.stream
        self._writer: ResponseWriter = request.respond(200, {**_FIELDS, **dict(headers or {})})
        self._keep_alive = keep_alive
        self._timer: Timer | None = None
        # The last event that the client of an earlier connection had; None: it does not say.
        self.last_event_id: str | None = request.headers.get("Last-Event-ID")

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, event: str | Event) -> Future[None]:
        """Send an event.

        Arguments:
            event: it, or simply its text.
        Returns:
            A future to wait for before the next one: done when few bytes wait to be sent.
        Raises:
            StreamClosedError: the client has gone.
            ValueError: a line end where none may be.
        """
        return self._write((event if isinstance(event, Event) else Event(event)).encode())

    def _write(self, data: bytes) -> Future[None]:
        if self._timer is not None:
            self._arm()
        return self._writer.write(data)

    def _arm(self) -> None:
        self.close()
        if self._keep_alive is not None:
            self._timer = self._loop.call_later(self._keep_alive, self._comment)

    def _comment(self) -> None:
        if self._stream.closed():
            self.close()
            return
        # A client that does not take what waits for it needs no comment.
        if not self._stream.writing():
            self._writer.write(_COMMENT)
        self._arm()

    def close(self) -> None:
        """Send no comments any more; the response ends with the handler."""
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None


async def read_events(response: Any, max_event_size: int = MAX_EVENT) -> AsyncIterator[Event]:
    """Iterate over the events of a response: ``fetch(url, stream=True)``.

    It ends with the response. An event that was cut short is not given.

    Arguments:
        response: a streamed one.
        max_event_size: limit for an event, in bytes.
    Raises:
        HTTPProtocolError: the response has another media type, or an event is too large.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise HTTPProtocolError(f"{kind or 'no media type'} is not text/event-stream")
    rest = b""
    reader = _Reader()
    size = 0
    first = True
    while piece := await response.read():
        rest += piece
        if first and len(rest) >= 3:
            rest = rest.removeprefix(b"\xef\xbb\xbf")
            first = False
        lines, rest = _split(rest)
        for line in lines:
            size += len(line) + 1
            if size > max_event_size:
                raise HTTPProtocolError(f"an event of over {max_event_size} bytes")
            event = reader.take(line.decode("utf-8", "replace"))
            if not line:
                size = 0
            if event is not None:
                yield event
        if size + len(rest) > max_event_size:
            raise HTTPProtocolError(f"an event of over {max_event_size} bytes")


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines that are whole, and what follows them; lines end with CRLF, LF or CR."""
    # The last CR may be the first half of an end.
    held = b"\r" if data.endswith(b"\r") else b""
    if held:
        data = data[:-1]
    *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines, rest + held


class _Reader:
    """Puts an event together from its lines."""

    def __init__(self) -> None:
        self._data: list[str] = []
        self._event = ""
        self._retry: int | None = None
        # It stays until there is another one.
        self._id: str | None = None

    def take(self, line: str) -> Event | None:
        """Take a line; return the event that it ends."""
        if not line:
            data, self._data = self._data, []
            event, self._event = self._event, ""
            retry, self._retry = self._retry, None
            if not data:
                return None
            return Event("\n".join(data), event or "message", self._id, retry)
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ") if colon else ""
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self._retry = int(value[:15])
        return None
