"""Every exception of coro: who sinned, what was seen, what to try next.

Errors that the standard library already names (``TimeoutError``, ``asyncio.CancelledError``,
``ConnectionRefusedError``, ``ssl.SSLCertVerificationError``) are raised under their own names.
This room holds the rest, and nothing else: an exception is built by the room that meets the
trouble.
"""

from __future__ import annotations

from asyncio import CancelledError, InvalidStateError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from socket import gaierror
from ssl import SSLError
from typing import Any, ClassVar

__all__ = [
    "Attempt",
    "BadYieldError",
    "BodyTooLargeError",
    "CancelledError",
    "ConnectError",
    "ConnectTimeoutError",
    "DeadlockError",
    "HTTPClosedError",
    "HTTPConnectError",
    "HTTPError",
    "HTTPInputError",
    "HTTPProtocolError",
    "HTTPResolveError",
    "HTTPTLSError",
    "HTTPTimeoutError",
    "IncompleteBodyError",
    "InvalidStateError",
    "PhaseTimeoutError",
    "ProxyError",
    "QueueTimeoutError",
    "ReadTimeoutError",
    "RequestError",
    "ResolveError",
    "StreamBufferFullError",
    "StreamClosedError",
    "TimeoutError",
    "TooManyRedirectsError",
    "TotalTimeoutError",
    "UnsatisfiableReadError",
    "WebSocketClosedError",
    "WebSocketError",
    "WriteTimeoutError",
    "WrongLoopError",
    "WrongThreadError",
]

TimeoutError = TimeoutError  # noqa: PLW0127  (the builtin is the promised public name)


# --- loop and coroutines -------------------------------------------------------------------


class WrongThreadError(RuntimeError):
    """A loop's method was called from a thread that is not running that loop."""


class WrongLoopError(RuntimeError):
    """Something that belongs to one loop was awaited or yielded on another."""


class DeadlockError(RuntimeError):
    """A simulated program waits for ever; the text says what waits for what."""


class BadYieldError(Exception):
    """A coroutine yielded something that cannot be waited for."""


# --- streams and connections ---------------------------------------------------------------


class StreamClosedError(OSError):
    """The stream is closed; ``real_error`` is the error that closed it, or None.

    Arguments:
        real_error: what the operating system or TLS said, if the close was not an ordinary one.
    """

    def __init__(self, real_error: BaseException | None = None) -> None:
        text = "Stream is closed"
        if real_error is not None:
            text = f"{text}: {str(real_error) or type(real_error).__name__}"
        super().__init__(text)
        self.real_error = real_error


class UnsatisfiableReadError(Exception):
    """A read can never be satisfied: no match within its ``max_bytes``."""


class StreamBufferFullError(Exception):
    """A stream's buffer would grow beyond its limit."""


class ResolveError(gaierror):
    """A host name has no address; ``host`` is the name that was asked for.

    Arguments:
        errno: the ``EAI_*`` number that ``getaddrinfo`` gave.
        strerror: the text that came with it.
        host: the name.
    """

    def __init__(self, errno: int, strerror: str, host: str) -> None:
        super().__init__(errno, strerror)
        self.host = host

    def __str__(self) -> str:
        return f"cannot resolve {self.host!r}: {self.strerror}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection attempt: its address, error (None: it won or was abandoned), seconds."""

    address: tuple[Any, ...] | str
    error: BaseException | None
    seconds: float

    def __str__(self) -> str:
        reason = "abandoned" if self.error is None else self.error
        return f"{format_address(self.address)}: {reason} ({self.seconds * 1e3:.0f} ms)"


class ConnectError(OSError):
    """No address of a host could be connected to; ``attempts`` lists every one that was tried.

    ``errno`` is that of the first attempt that failed, ``__cause__`` its error.
    """

    def __init__(self, message: str, attempts: Sequence[Attempt] = ()) -> None:
        self.attempts = tuple(attempts)
        first = next((a.error for a in self.attempts if a.error is not None), None)
        number = first.errno if isinstance(first, OSError) else None
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.strerror)


class PhaseTimeoutError(TimeoutError):
    """A time limit of a connect ran out.

    Attributes:
        phase: in which it was: "dns", "connect" or "tls".
        attempts: every address that was tried until then.
    """

    def __init__(self, message: str, phase: str, attempts: Sequence[Attempt] = ()) -> None:
        self.phase = phase
        self.attempts = tuple(attempts)
        if phase == "connect" and attempts:
            message = f"{message}: {', '.join(map(str, attempts))}"
        super().__init__(message)


def format_address(address: tuple[Any, ...] | str) -> str:
    """Write a socket address as people do: ``127.0.0.1:80``, ``[::1]:80``, ``/run/x.sock``."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    # Linux's abstract names, as its tools write them.
    return str(address).replace("\0", "@")


# --- HTTP ----------------------------------------------------------------------------------


class HTTPInputError(Exception):
    """Malformed HTTP was received; the text says what was seen and which rule it breaks."""


class HTTPError(Exception):
    """An HTTP request that did not succeed.

    Attributes:
        code: HTTP status, or 599 where no response was received.
        message: description of what happened. Default: the status's customary phrase.
        response: the ``HTTPResponse`` if there is one, else None.
    """

    # The customary phrases by status: a slot that coro.http.messages fills, for the table comes
    # with a module that few programs need.
    _phrases: ClassVar[Mapping[int, str]] = {}

    def __init__(self, code: int, message: str | None = None, response: Any = None) -> None:
        self.code = code
        self.message = message or self._phrases.get(code, "Unknown")
        self.response = response
        # Not by super(): an OSError, as some subclasses are too, would take the code for its errno.
        Exception.__init__(self, code, self.message, response)

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors of the subclasses take other arguments than ``args`` holds.
        return _restore, (type(self), self.args), vars(self)

    def __str__(self) -> str:
        return f"HTTP {self.code}: {self.message}"

    # A response refers to its error and the error to its response: a repr of both must end.
    __repr__ = __str__


def _restore(cls: type[HTTPError], args: tuple[Any, ...]) -> HTTPError:
    """Make an error that is copied, or unpickled; its attributes follow."""
    error = cls.__new__(cls)
    error.args = args
    return error


class TooManyRedirectsError(HTTPError):
    """More redirects than are to be followed; ``code`` and ``response`` are those of the last one.

    Attributes:
        urls: where the fetch came, from its own URL to that of the response.
    """

    def __init__(self, code: int, message: str, response: Any, urls: Sequence[str]) -> None:
        super().__init__(code, message, response)
        self.urls = tuple(urls)


class RequestError(HTTPError):
    """A request that got no response: ``code`` is 599.

    Attributes:
        phase: where it ended: "queue", "dns", "connect", "proxy", "tls", "send", "wait", "body" or
            "total".
        attempts: how many times the request was begun on a connection.
        bytes_sent: bytes of the request handed to the operating system in the last attempt.
        safe_to_retry: the server cannot have acted on the request, or the method is idempotent.
    """

    phase: str = "unknown"

    def __init__(
        self,
        message: str,
        *,
        phase: str | None = None,
        attempts: int = 0,
        bytes_sent: int = 0,
        safe_to_retry: bool = False,
    ) -> None:
        super().__init__(599, message)
        if phase is not None:
            self.phase = phase
        self.attempts = attempts
        self.bytes_sent = bytes_sent
        self.safe_to_retry = safe_to_retry


class _ConnectionError(RequestError, OSError):
    """A connection could not be made: an ``OSError`` too, as its cause is."""

    @property
    def errno(self) -> int | None:  # type: ignore[override]
        """The number of the error that is the cause, or None."""
        return getattr(self.__cause__, "errno", None)


class HTTPResolveError(_ConnectionError, gaierror):
    """The host's name has no address; a ``socket.gaierror`` too."""

    phase = "dns"


class HTTPConnectError(_ConnectionError):
    """No connection to the host could be made; ``__cause__`` lists the attempts."""

    phase = "connect"


class HTTPTLSError(_ConnectionError, SSLError):
    """The TLS handshake failed, or the host's certificate is not trusted; an ``SSLError`` too."""

    phase = "tls"


class ProxyError(RequestError):
    """The proxy failed, or refused: nothing is known of the server behind it.

    Attributes:
        status: of the proxy's HTTP response, as in 407, or None if there was none.
        headers: the fields of that response, or None.
    """

    phase = "proxy"

    def __init__(
        self, message: str, *, status: int | None = None, headers: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(message, **kwargs)
        self.status = status
        self.headers = headers


class HTTPTimeoutError(RequestError, TimeoutError):
    """A time limit ran out; the subclass says which."""

    def __str__(self) -> str:
        return self.message


class QueueTimeoutError(HTTPTimeoutError):
    """No connection slot became free in time."""

    phase = "queue"


class ConnectTimeoutError(HTTPTimeoutError):
    """Resolving, connecting and the TLS handshake did not end in time."""

    phase = "connect"


class WriteTimeoutError(HTTPTimeoutError):
    """The server took nothing of the request's body for too long."""

    phase = "send"


class ReadTimeoutError(HTTPTimeoutError):
    """The server sent nothing for too long."""

    phase = "body"


class TotalTimeoutError(HTTPTimeoutError):
    """The whole request did not end in time."""

    phase = "total"


class HTTPClosedError(RequestError):
    """The connection was closed or reset before a complete response."""


class IncompleteBodyError(HTTPClosedError):
    """The response ended before its body did.

    Attributes:
        partial: the bytes that were received.
        expected: how many were announced, or None where the length was not announced.
    """

    phase = "body"

    def __init__(
        self, message: str, *, partial: bytes = b"", expected: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(message, **kwargs)
        self.partial = partial
        self.expected = expected


class HTTPProtocolError(RequestError):
    """The server sent something that is not HTTP/1.1; ``__cause__`` says what."""


class BodyTooLargeError(RequestError):
    """The response is larger than a limit allows."""

    phase = "body"


# --- WebSocket -----------------------------------------------------------------------------


class WebSocketError(Exception):
    """Something went wrong with a WebSocket."""


class WebSocketClosedError(WebSocketError, StreamClosedError):
    """The WebSocket is closed, or closing.

    Attributes:
        code: as the connection's ``close_code``; None: this side has begun to close.
        reason: the text that came with it.
    """

    def __init__(self, code: int | None = None, reason: str | None = None) -> None:
        super().__init__()
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        if self.code is None:
            return "this side is closing the WebSocket"
        return f"the WebSocket is closed: {self.code} {self.reason or ''}".rstrip()
