"""A request as a server's handler sees it: ``HTTPServerRequest``."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol

from coro.future import Future
from coro.http.forms import Arguments, Files, parse_arguments, parse_multipart
from coro.http.headers import HTTPHeaders
from coro.http.incoming import RequestHead

__all__ = ["HTTPServerRequest"]


class _Connection(Protocol):
    """As much of a server's connection as a request needs to know."""

    stream: Any

    @property
    def remote_port(self) -> int | None: ...
    @property
    def local_address(self) -> tuple[str, int | None]: ...
    @property
    def body_complete(self) -> bool: ...
    def begin(self, request: Any, response: Any, length: int | None) -> Any: ...
    def read(self, request: Any, max_bytes: int) -> Future[bytes]: ...
    def respond(self, request: Any, status: int, headers: Any, **options: Any) -> Any: ...
    def disconnected(self, request: Any) -> Future[None]: ...
    def take_over(self, request: Any, status: int, headers: Any) -> Any: ...
    def client_of(self, request: Any) -> tuple[str, str]: ...
    def call_on_stop(self, callback: Any) -> None: ...
    def trailers(self) -> HTTPHeaders: ...


class HTTPServerRequest:
    """One request.

    Attributes:
        method: as in "GET".
        uri: the target as received, with its query.
        version: "HTTP/1.1" or "HTTP/1.0".
        host: value of ``Host``, as in "example.com:8080".
        body: the body, b"" if there is none; of a request whose body is streamed, see ``read``.
        connection: the server's connection that it came on.
        head: the request line and what the server read of the fields.
    """

    __slots__ = (
        "_client",
        "_form",
        "_headers",
        "body",
        "connection",
        "ended",
        "head",
        "started",
        "unread",
    )

    # The bytes of the body, as far as they were collected.
    body: bytes
    _form: tuple[Arguments, Files]  # once somebody has asked for it

    def __init__(self, connection: _Connection, head: RequestHead, started: float) -> None:
        self.connection = connection
        self.body = b""
        # In the loop's time; the second is None while the request is under way.
        self.started = started
        self.ended: float | None = None
        # What was received of a streamed body and not read yet.
        self.unread = b""
        self.head = head
        self._headers: HTTPHeaders | None = None
        self._client: tuple[str, str] | None = None

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def uri(self) -> str:
        return self.head.target

    @property
    def version(self) -> str:
        return f"HTTP/{self.head.http_version}"

    @property
    def path(self) -> str:
        """The target without its query, percent-encoded as received."""
        return self.head.path

    @property
    def query(self) -> str:
        """The query without its question mark; "" if there is none."""
        return self.head.query

    @property
    def headers(self) -> HTTPHeaders:
        """The header fields."""
        headers = self._headers
        if headers is None:
            headers = self._headers = self.head.headers
        return headers

    @property
    def trailers(self) -> HTTPHeaders:
        """The fields that came after a chunked body (RFC 9110 section 6.5)."""
        return self.connection.trailers()

    @property
    def host(self) -> str:
        """Value of ``Host``, as in "example.com:8080"; the server's address if there is none."""
        return self.head.host or "127.0.0.1"

    @property
    def host_name(self) -> str:
        """The host without its port, in lower case."""
        host = self.host.lower()
        if host.startswith("["):
            return host.partition("]")[0] + "]"
        return host.partition(":")[0]

    @property
    def remote_ip(self) -> str:
        """The client's address; "" on a unix socket. See ``HTTPServer(xheaders=...)``."""
        return self._who()[0]

    @property
    def protocol(self) -> str:
        """ "http" or "https", as the client sees it. See ``HTTPServer(xheaders=...)``."""
        return self._who()[1]

    def _who(self) -> tuple[str, str]:
        if self._client is None:
            self._client = self.connection.client_of(self)
        return self._client

    def full_url(self) -> str:
        """Return the URL that the client asked for."""
        uri = self.uri
        return uri if "://" in uri else f"{self.protocol}://{self.host}{uri}"

    def request_time(self) -> float:
        """Return the seconds from the request's head to its response, or to now."""
        now = self.connection.stream.io_loop.time() if self.ended is None else self.ended
        return float(now - self.started)

    # --- what clients put into requests ----------------------------------------------------

    @property
    def query_arguments(self) -> Arguments:
        """The arguments of the query, percent-decoded; each name with its values.

        Raises:
            HTTPInputError: there are too many.
        """
        return parse_arguments(self.query)

    @property
    def body_arguments(self) -> Arguments:
        """The arguments of a body that is a form, with or without files; see ``files``.

        Raises:
            HTTPInputError: there are too many, or the form is malformed.
        """
        if self._kind() == "application/x-www-form-urlencoded":
            return parse_arguments(self.body.decode("latin-1"))
        return self._multipart()[0]

    @property
    def files(self) -> Files:
        """The files of a form (``multipart/form-data``), each name with its ``HTTPFile`` objects.

        Raises:
            HTTPInputError: the form is malformed, or has too many parts.
        """
        return self._multipart()[1]

    def _kind(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def _multipart(self) -> tuple[Arguments, Files]:
        try:
            return self._form
        except AttributeError:
            is_one = self.body and self._kind() == "multipart/form-data"
        self._form = (
            parse_multipart(self.headers["Content-Type"], self.body) if is_one else ({}, {})
        )
        return self._form

    @property
    def arguments(self) -> Arguments:
        """The arguments of query and form together.

        Raises:
            HTTPInputError: there are too many.
        """
        found = self.query_arguments
        for name, values in self.body_arguments.items():
            found.setdefault(name, []).extend(values)
        return found

    @property
    def cookies(self) -> SimpleCookie:
        """The cookies; none if their field makes no sense."""
        try:
            return SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return SimpleCookie()

    def get_ssl_certificate(self, binary_form: bool = False) -> Any:
        """Return the client's certificate, if it had to show one; see ``ssl.SSLSocket``."""
        try:
            return self.connection.stream.socket.getpeercert(binary_form)
        except (AttributeError, ssl.SSLError, ValueError):
            return None

    # --- streaming -------------------------------------------------------------------------

    def read(self, max_bytes: int = 65536) -> Future[bytes]:
        """Read some of a streamed body (``HTTPServer(stream_body=True)``): b"" at its end.

        Arguments:
            max_bytes: at most so many; at least one.
        Raises:
            HTTPInputError: the body is malformed, or larger than the server allows.
            StreamClosedError: the client has gone.
        """
        return self.connection.read(self, max_bytes)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.connection.read(self, 65536):
            yield piece

    def respond(self, status: int = 200, headers: Any = None, **options: Any) -> Any:
        """Begin a response whose body the handler writes; it then returns None.

            writer = request.respond(200, {"Content-Type": "text/plain"})
            yield writer.write(b"...")

        Arguments:
            status, headers: as for ``Response``.
            options: further arguments of ``Response``.
        Returns:
            A ``ResponseWriter``.
        Raises:
            RuntimeError: the response was begun already.
        """
        return self.connection.respond(self, status, headers, **options)

    def disconnected(self) -> Future[None]:
        """Return a future that is done when the client has gone, or will send nothing more.

        A client that only closes its sending side still gets its response.
        """
        return self.connection.disconnected(self)

    def call_on_stop(self, callback: Callable[[], Any] | None) -> None:
        """Have ``callback()`` called when the server begins to stop, or at once if it has.

        For what would otherwise go on for ever, and hold up the stop. None: nothing any more.
        """
        self.connection.call_on_stop(callback)

    def upgrade(self, status: int = 101, headers: Any = None) -> Any:
        """Answer, and leave HTTP: return the stream, which is the handler's from now on.

        Arguments:
            status: 101, or 200 to CONNECT.
            headers: header fields of the response.
        """
        return self.connection.take_over(self, status, headers)

    def __repr__(self) -> str:
        return f"<HTTPServerRequest {self.method} {self.uri} from {self.remote_ip}>"
