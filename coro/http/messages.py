"""The request that a caller hands to ``fetch`` and the response that comes back.

Both are plain records under the lineage's field names. Two things about them are not plain:

*A request tells "not given" from every value.* Options that were not given live on the class, as
None, and the client's defaults fill them (``HTTPRequest.with_defaults``). An option given as None
counts as not given, as it always has in the lineage, with one exception: a time limit given as
None is switched off.

*A response makes its extras on demand.* Most callers read ``code`` and ``body``. The ``buffer``,
and the error of a status outside 200-299, are made when somebody looks: the error refers to the
response, so that keeping it from the start would make a cycle of every 404.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from http.client import responses
from io import BytesIO
from numbers import Real
from os import PathLike
from ssl import SSLContext
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias, TypedDict
from weakref import ref

from typing_extensions import Unpack

from coro.errors import HTTPError, TooManyRedirectsError
from coro.http.auth import Auth
from coro.http.bodies import FORM, JSON, encode_form, encode_json, producer_for
from coro.http.headers import HeaderSource, HTTPHeaders, format_timestamp
from coro.http.multipart import encode_multipart
from coro.http.proxy import Proxy
from coro.http.urls import Target
from coro.resolver import Overrides, Resolver
from coro.stream import IOStream
from coro.tcp import SocketOption

__all__ = ["HTTPRequest", "HTTPResponse", "RequestOptions", "Trace", "check_options"]

HTTPError._phrases = responses

_new = object.__new__


class RequestOptions(TypedDict, total=False):
    """The keywords of ``HTTPRequest`` and of ``fetch``, besides url, method, headers and body."""

    auth_username: str | None
    auth_password: str | None
    auth_mode: str | None
    connect_timeout: float | None
    request_timeout: float | None
    inactivity_timeout: float | None
    queue_timeout: float | None
    write_timeout: float | None
    if_modified_since: float | datetime | None
    follow_redirects: bool | None
    max_redirects: int | None
    user_agent: str | None
    network_interface: str | None
    stream: bool | None
    af: int | None
    allow_ipv6: bool | None
    unix_socket: str | bytes | PathLike[str] | None
    resolver: Resolver | None
    overrides: Overrides | None
    socket_options: Sequence[SocketOption] | None
    retry: bool | None
    streaming_callback: Callable[[bytes], Any] | None
    header_callback: Callable[[str], Any] | None
    on_informational: Callable[[ReceivedHead], object] | None
    auth: Auth | tuple[str, str] | None
    netrc: str | PathLike[str] | bool | None
    cookie_jar: CookieStore | None
    proxy: str | Proxy | Literal[False] | None
    proxy_ssl_options: dict[str, Any] | SSLContext | None
    trust_env: bool | None
    trace: Trace | None
    proxy_host: str | None
    proxy_port: int | None
    proxy_username: str | None
    proxy_password: str | None
    proxy_auth_mode: str | None
    allow_nonstandard_methods: bool | None
    validate_cert: bool | None
    ca_certs: str | None
    client_key: str | None
    client_cert: str | None
    body_producer: Callable[[Callable[[bytes], Any]], Any] | None
    trailers: Mapping[str, str | Callable[[], str]] | None
    expect_100_continue: bool
    decompress_response: bool | None
    ssl_options: dict[str, Any] | SSLContext | None


_NAMES = frozenset(RequestOptions.__annotations__)
# Attributes of a request that was given no options.
_PLAIN_ATTRIBUTES = 5
# The lineage's take 0 for no limit, as they always have.
_LIMITS_WITHOUT_ZERO = frozenset({"inactivity_timeout", "queue_timeout", "write_timeout"})
_NONE_IS_A_VALUE = _LIMITS_WITHOUT_ZERO.union(("connect_timeout", "request_timeout"))


# What a request can have as its body.
Body: TypeAlias = "bytes | str | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]"


class CookieStore(Protocol):
    """What keeps cookies."""

    def take(self, url: Target, lines: list[str]) -> None:
        """Take in what a response from a URL set: the values of its ``Set-Cookie`` fields."""

    def header(self, url: Target) -> str | None:
        """Return the value of a request's ``Cookie`` field, or None."""


class Trace(Protocol):
    """Is told how a fetch goes."""

    def connected(self, stream: IOStream, reused: bool) -> None:
        """A request is about to go over this connection, the first one or a further one.

        Also for the connection to a proxy through which a tunnel is to be made.
        """

    def sent(self, head: bytes) -> None:
        """These are the bytes of its head, and perhaps of its body."""

    def received(self, head: bytes) -> None:
        """This is the head of a final response, also where the caller does not see it."""


class ReceivedHead(Protocol):
    """A received head."""

    status: int
    reason: str

    @property
    def headers(self) -> HTTPHeaders:
        """Its fields."""


class HasTimeInfo(Protocol):
    """A record of how a fetch went and when it passed its phases."""

    attempts: int

    def time_info(self) -> dict[str, float]:
        """The seconds by phase."""


class HTTPRequest:
    """A request for ``fetch``; everything but the URL is optional.

    Arguments:
        url: what to fetch.
        method: "GET", "POST", ...
        headers: an ``HTTPHeaders``, a mapping, or pairs.
        body: bytes, text that is sent as UTF-8, or what is sent piece by piece: a file opened for
            reading bytes, an iterable of bytes, or an async one.
        data: a form instead: a mapping or pairs, sent as a browser does.
        json: a value that is sent as JSON instead.
        files: files of a form, with the fields of ``data`` before them, if it is given
            (``multipart/form-data``): a mapping or pairs. A file is bytes, text, or whatever a body
            can be, or (filename, content) or (filename, content, content type); or a list of files.
        auth_username, auth_password, auth_mode: credentials for the server; the mode is "basic" or
            "digest".
        connect_timeout: seconds for resolving, connecting and the TLS handshake. None: no limit.
        request_timeout: seconds for the whole request. None: no limit.
        queue_timeout: seconds that it may wait for one of the client's slots; if it is not given,
            the smaller of the two above. None: no limit.
        write_timeout: seconds in which the server takes no byte of a body. None: no limit.
        inactivity_timeout: seconds without a byte received (nor, of a body that is on its way,
            sent). None: no limit.
        if_modified_since: seconds since the epoch or a datetime, sent as ``If-Modified-Since``.
        follow_redirects: follow redirects instead of returning the 3xx response.
        max_redirects: how many of them at most.
        user_agent: the ``User-Agent`` field.
        network_interface: local address to send from.
        stream: return as soon as the head has come; the body is the caller's to read, with
            ``yield response.read()`` or ``async for``. Without a ``request_timeout`` of its own it
            has none. Where the status is an error that is raised, its body is collected.
        af: ``socket.AF_INET`` or ``socket.AF_INET6``: use addresses of that family only.
        allow_ipv6: False: another way to say ``af=socket.AF_INET``.
        unix_socket: a path to connect to instead of the URL's host.
        resolver: turns names into addresses for this request.
        overrides: where hosts are to be found instead, see ``coro.resolver.OverrideResolver``.
        socket_options: triples for ``setsockopt``, set before connecting.
        retry: send an idempotent request once more if the connection, kept from an earlier one,
            turns out to have been closed meanwhile.
        streaming_callback: called with each piece of the body; ``response.body`` stays empty.
        header_callback: called with each header line, the status line and the empty line included.
        on_informational: called with the head (``status``, ``reason``, ``headers``) of each interim
            response, as in 103 Early Hints; more than 16 of them are an error.
        auth: credentials for the server: ``Basic``, ``Digest`` or ``Bearer`` of ``coro.http.auth``,
            or a pair of username and password, which is "basic".
        netrc: take them from this file, or, if True, from ``~/.netrc``.
        cookie_jar: a ``coro.http.cookies.CookieJar``, whose cookies are sent, and which takes in
            those that servers set.
        proxy: the proxy's URL, ``http://user:password@host:port``, with the scheme "http", "https",
            "socks4", "socks4a", "socks5" or "socks5h", or a ``coro.http.proxy.Proxy``; False: none.
        proxy_ssl_options: ``SSLContext`` or keywords for one, for TLS with an "https" proxy.
        trust_env: use the proxy that the environment names, if no other is given.
        trace: its methods ``connected(stream, reused)``, ``sent(head)`` and ``received(head)`` are
            called on the way, for each request of the fetch.
        proxy_host, proxy_port, proxy_username, proxy_password, proxy_auth_mode: a proxy's parts.
        allow_nonstandard_methods: allow any method, and a body with any method.
        validate_cert: check the certificate of an HTTPS server.
        ca_certs: file of CA certificates in PEM format.
        client_key, client_cert: files that hold the client's key and certificate.
        body_producer: called with a ``write`` function, writes the body piece by piece, and
            returns an awaitable. Excludes ``body``.
        trailers: fields to be sent after the body, which goes out in chunks then; a value may be a
            function, which is asked when the body was sent (RFC 9110 section 6.5).
        expect_100_continue: ask the server whether it wants the body before sending it; if it says
            nothing for a second, the body is sent (RFC 9110 section 10.1.1).
        decompress_response: ask for a compressed response, and decompress it.
        ssl_options: ``SSLContext`` or keywords for one; overrides the four TLS options above.

    Raises:
        TypeError: an unknown keyword, or a body that is neither text nor bytes.
        InvalidHeaderError: a header that may not be sent.
    """

    auth_username: str | None = None
    auth_password: str | None = None
    auth_mode: str | None = None
    connect_timeout: float | None = None
    request_timeout: float | None = None
    inactivity_timeout: float | None = None
    queue_timeout: float | None = None
    write_timeout: float | None = None
    follow_redirects: bool | None = None
    max_redirects: int | None = None
    user_agent: str | None = None
    network_interface: str | None = None
    stream: bool | None = None
    af: int | None = None
    allow_ipv6: bool | None = None
    unix_socket: str | bytes | PathLike[str] | None = None
    resolver: Resolver | None = None
    overrides: Overrides | None = None
    socket_options: Sequence[SocketOption] | None = None
    retry: bool | None = None
    streaming_callback: Callable[[bytes], Any] | None = None
    header_callback: Callable[[str], Any] | None = None
    on_informational: Callable[[ReceivedHead], object] | None = None
    auth: Auth | tuple[str, str] | None = None
    netrc: str | PathLike[str] | bool | None = None
    cookie_jar: CookieStore | None = None
    proxy: str | Proxy | Literal[False] | None = None
    proxy_ssl_options: dict[str, Any] | SSLContext | None = None
    trust_env: bool | None = None
    trace: Trace | None = None
    proxy_host: str | None = None
    proxy_port: int | None = None
    proxy_username: str | None = None
    proxy_password: str | None = None
    proxy_auth_mode: str | None = None
    allow_nonstandard_methods: bool | None = None
    validate_cert: bool | None = None
    ca_certs: str | None = None
    client_key: str | None = None
    client_cert: str | None = None
    body_producer: Callable[[Callable[[bytes], Any]], Any] | None = None
    trailers: Mapping[str, str | Callable[[], str]] | None = None
    expect_100_continue: bool = False
    decompress_response: bool | None = None
    ssl_options: dict[str, Any] | SSLContext | None = None

    def __init__(
        self,
        url: str,
        method: str = "GET",
        headers: HeaderSource | None = None,
        body: Body | None = None,
        *,
        data: Any = None,
        json: Any = None,
        files: Any = None,
        **options: Unpack[RequestOptions],
    ) -> None:
        self.url = url
        self.method = method
        self.start_time = time.time()
        self._headers = None if headers is None else _as_headers(headers)
        self._body = body if body is None or isinstance(body, bytes) else None
        if options:
            self._set_options(dict(options))
        if body is not self._body:
            self._set_body(body)
        if data is not None or json is not None or files is not None:
            if (
                body is not None
                or self.body_producer is not None
                or (json is not None and (data is not None or files is not None))
            ):
                raise ValueError("give one of body, data (and files), json and body_producer")
            self._headers = HTTPHeaders(self.headers)
            if files is not None:
                self._set_files(data, files)
                return
            kind, self._body = (
                (FORM, encode_form(data)) if json is None else (JSON, encode_json(json))
            )
            self._headers.setdefault("Content-Type", kind)

    @classmethod
    def usual(cls, url: str) -> HTTPRequest:
        """Make a request of a URL alone: the constructor without its questions, for a hot path."""
        self = _new(cls)
        self.url = url
        self.method = "GET"
        self.start_time = time.time()
        self._headers = self._body = None
        return self

    def _set_files(self, data: Any, files: Any) -> None:
        """Take a form with files."""
        if "Content-Type" in self.headers:
            raise ValueError("a form with files says itself what it is: leave out Content-Type")
        kind, body, length = encode_multipart(data, files)
        self.headers["Content-Type"] = kind
        if isinstance(body, bytes):
            self._body = body
            return
        self.body_producer = body
        if length is not None and not self.trailers:
            self.headers["Content-Length"] = str(length)

    def _set_body(self, body: Any) -> None:
        """Take a body that is not bytes."""
        found = producer_for(body)
        if found is None:
            self._body = _as_bytes(body)
            return
        if self.body_producer is not None:
            raise ValueError("give a body or a body_producer, not both")
        self.body_producer, length = found
        if length is not None and not self.trailers:
            self._headers = HTTPHeaders(self.headers)
            self._headers["Content-Length"] = str(length)

    def _set_options(self, options: dict[str, Any]) -> None:
        """Store the options that were given, each under its own name."""
        check_options(options)
        modified = options.pop("if_modified_since", None)
        if modified is not None:
            headers = HTTPHeaders() if self._headers is None else self._headers.copy()
            headers["If-Modified-Since"] = format_timestamp(modified)
            self._headers = headers
        for name, value in options.items():
            if value is not None or name in _NONE_IS_A_VALUE:
                setattr(self, name, value)

    @property
    def headers(self) -> HTTPHeaders:
        """The header fields; assigning accepts whatever the constructor does."""
        if self._headers is None:
            self._headers = HTTPHeaders()
        return self._headers

    @headers.setter
    def headers(self, value: HeaderSource | None) -> None:
        self._headers = None if value is None else _as_headers(value)

    @property
    def has_headers(self) -> bool:
        """Whether any header field was given; asking makes no ``HTTPHeaders``."""
        return bool(self._headers)

    @property
    def plain(self) -> bool:
        """Whether nothing was given but a URL and a method."""
        return (
            len(self.__dict__) == _PLAIN_ATTRIBUTES and self._headers is None and self._body is None
        )

    @property
    def body(self) -> bytes | None:
        """The body as bytes; assigning text encodes it as UTF-8."""
        return self._body

    @body.setter
    def body(self, value: bytes | str | None) -> None:
        self._body = None if value is None else _as_bytes(value)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options: those given here, and the defaults for the rest.

        Arguments:
            defaults: the client's, by the names of ``RequestOptions``; returned as they are if
                this request overrides none, so that an ordinary request costs no copy.
        """
        own = self.__dict__
        if len(own) == _PLAIN_ATTRIBUTES:
            return defaults
        given = {
            name: value
            for name, value in own.items()
            if name in _NAMES and (value is not None or name in _NONE_IS_A_VALUE)
        }
        return {**defaults, **given} if given else defaults

    def __repr__(self) -> str:
        return f"<HTTPRequest {self.method} {_without_credentials(self.url)}>"


class HTTPResponse:
    """What came back.

    Arguments:
        request: the request that the caller made.
        code: status, as in 200; 599 where no response was received.
        headers: the header fields.
        buffer: the body as a file; made from ``body`` on demand if that is given instead.
        effective_url: where the response came from, after redirects. Default: the request's URL.
        error: the exception to raise in ``rethrow``. Default: an ``HTTPError`` if the code is
            outside 200-299.
        request_time: seconds from the start of the request to the last byte, queueing excluded.
        time_info: seconds by phase: queue, dns, connect, tls, sent, first_byte, total.
        progress: whose ``time_info()`` tells the seconds by phase, when somebody asks.
        reason: the text after the code. Default: the customary one.
        start_time: when the request began, as in ``time.time()``.
        body: the body as bytes.
        trailers: the fields that came after a chunked body (RFC 9110 section 6.5).
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_buffer",
        "_error",
        "_head",
        "_headers",
        "_progress",
        "_time_info",
        "_trailers",
        "_urls",
        "code",
        "effective_url",
        "reason",
        "request",
        "request_time",
        "start_time",
    )

    _error: BaseException | ref[BaseException] | None
    # Where redirects have led that were too many; not set otherwise.
    _urls: Sequence[str]

    def __init__(
        self,
        request: HTTPRequest,
        code: int,
        headers: HTTPHeaders | None = None,
        buffer: BytesIO | None = None,
        effective_url: str | None = None,
        error: BaseException | None = None,
        request_time: float | None = None,
        time_info: dict[str, float] | None = None,
        reason: str | None = None,
        start_time: float | None = None,
        *,
        body: bytes | None = None,
        trailers: HTTPHeaders | None = None,
        progress: HasTimeInfo | None = None,
    ) -> None:
        self.request = request
        self.code = code
        self._headers = headers
        self._head: ReceivedHead | None = None
        self._buffer = buffer
        self.effective_url = request.url if effective_url is None else effective_url
        self._error = error
        self.request_time = request_time
        self._time_info = time_info
        self._progress = progress
        self.reason = reason or responses.get(code, "Unknown")
        self.start_time = start_time
        self._body = body
        self._trailers = trailers

    @classmethod
    def received(
        cls,
        request: HTTPRequest,
        head: ReceivedHead,
        url: str,
        start_time: float,
        progress: HasTimeInfo,
        body: bytes,
        trailers: HTTPHeaders | None = None,
    ) -> HTTPResponse:
        """Make the response of a fetch: the constructor without its questions, for a hot path."""
        self = _new(cls)
        self.request = request
        self.code = head.status
        self.reason = head.reason or responses.get(head.status, "Unknown")
        self.effective_url = url
        self.start_time = start_time
        self._head = head
        self._progress = progress
        self._body = body
        self._trailers = trailers
        self._headers = self._buffer = self._error = self._time_info = None
        return self

    @property
    def headers(self) -> HTTPHeaders:
        """The header fields."""
        headers = self._headers
        if headers is None:
            headers = HTTPHeaders() if self._head is None else self._head.headers
            self._headers = headers
        return headers

    @headers.setter
    def headers(self, value: HTTPHeaders) -> None:
        self._headers = value

    @property
    def time_info(self) -> dict[str, float]:
        """Seconds by phase: queue, dns, connect, tls, sent, first_byte; and total."""
        if self._time_info is None:
            self._time_info = {} if self._progress is None else self._progress.time_info()
        return self._time_info

    @property
    def attempts(self) -> int:
        """How many times a request was sent for it: redirects and repetitions count too."""
        return 0 if self._progress is None else self._progress.attempts

    @property
    def body(self) -> bytes:
        """The body; empty if there is none, or if a ``streaming_callback`` took it."""
        if self._body is None and self._buffer is not None:
            self._body = self._buffer.getvalue()
        return self._body or b""

    @property
    def buffer(self) -> BytesIO | None:
        """The body as a file at its beginning; None if no body was kept."""
        if self._buffer is None and self._body is not None:
            self._buffer = BytesIO(self._body)
        return self._buffer

    @property
    def trailers(self) -> HTTPHeaders:
        """The fields that came after the body; never mixed with ``headers``."""
        if self._trailers is None:
            self._trailers = HTTPHeaders()
        return self._trailers

    @property
    def error(self) -> BaseException | None:
        """What ``rethrow`` raises, or None: the same object for as long as somebody holds it."""
        error = self._error
        if isinstance(error, ref):
            error = error()
        if error is None and not 200 <= self.code < 300:
            urls = getattr(self, "_urls", None)
            error = (
                HTTPError(self.code, self.reason, self)
                if urls is None
                else TooManyRedirectsError(self.code, _describe_redirects(urls), self, urls)
            )
            # Held weakly: the error holds the response, and the two must not keep each other.
            self._error = ref(error)
        return error

    @error.setter
    def error(self, value: BaseException | None) -> None:
        self._error = value

    def rethrow(self) -> None:
        """Raise the error, if there is one."""
        error = self.error
        if error is not None:
            try:
                raise error
            finally:
                # The traceback refers to this frame, and the frame would refer to the error.
                del error

    def __repr__(self) -> str:
        took = "" if self.request_time is None else f" in {self.request_time * 1e3:.1f} ms"
        url = _without_credentials(self.effective_url)
        return f"HTTPResponse(code={self.code} {self.reason}, {len(self.body)} bytes{took}, {url})"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that make no sense: a request's, or a client's defaults for them.

    Raises:
        TypeError: there is no such option, or a time limit is not a number.
        ValueError: a time limit is negative, or 0 where that does not mean: none.
    """
    unknown = options.keys() - _NAMES
    if unknown:
        raise TypeError(_describe_unknown(unknown))
    for name in options.keys() & _NONE_IS_A_VALUE:
        limit = options[name]
        if limit is not None:
            text = f"{name} is a number of seconds, or None, not {limit!r}"
            if not isinstance(limit, Real):
                raise TypeError(text)
            if not float(limit) > 0 and (limit != 0 or name in _LIMITS_WITHOUT_ZERO):
                raise ValueError(text)


def _as_headers(source: HeaderSource) -> HTTPHeaders:
    return source if isinstance(source, HTTPHeaders) else HTTPHeaders(source)


def _as_bytes(body: bytes | str) -> bytes:
    """Return a body as bytes; bytes() alone would turn a number into that many zeros."""
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytearray, memoryview)):
        return bytes(body)
    raise TypeError(f"body must be bytes or str, not {type(body).__name__}: {body!r:.100}")


def _describe_unknown(unknown: Collection[str]) -> str:
    """Name the keyword that does not exist, and the one that may have been meant."""
    name = min(unknown)
    close = get_close_matches(name, _NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"HTTPRequest() got an unexpected keyword argument {name!r}{hint}"


def _describe_redirects(urls: Sequence[str]) -> str:
    """Say how many they were, and whether they lead in a circle."""
    text = f"more than {len(urls) - 1} redirects"
    last = urls[-1]
    before = [at for at, url in enumerate(urls[:-1]) if url == last]
    if not before:
        return f"{text}, the last one at {_without_credentials(last)}"
    circle = " -> ".join(map(_without_credentials, urls[before[-1] :]))
    return f"{text}, which lead in a circle: {circle}"


def _without_credentials(url: str) -> str:
    """Return a URL fit for a log: user and password, if it has them, are masked."""
    return re.sub(r"(?<=//)[^/?#]*@", "***@", str(url), count=1)
