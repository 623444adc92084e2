"""``fetch``: one request, its redirects, its time limits; and the clients that keep connections.

``AsyncHTTPClient.fetch`` is a coroutine, and the whole fetch is that one task: the steps below it (a
slot, a connection, the exchange) are generators that it runs by ``yield from``. A task of its own has
only what must go on beside it, the race of the connector.

Time limits. One ``Timeout`` surrounds the fetch; its deadline is moved as the fetch passes from phase
to phase, and when it expires, the phase that ``Progress`` tells decides which error is raised.

Errors. Every failure without a response is a ``RequestError``, translated here, once, from what the
rooms below raise; that remains its ``__cause__``.
"""

from __future__ import annotations

import base64
import copy
import functools
import ssl
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

from coro.errors import (
    BodyTooLargeError,
    ConnectError,
    ConnectTimeoutError,
    HTTPClosedError,
    HTTPConnectError,
    HTTPInputError,
    HTTPProtocolError,
    HTTPResolveError,
    HTTPTimeoutError,
    HTTPTLSError,
    QueueTimeoutError,
    ReadTimeoutError,
    RequestError,
    ResolveError,
    StreamClosedError,
    TimeoutError,
    TotalTimeoutError,
)
from coro.gen import Task, Timeout, coroutine, current_task
from coro.http.codec import (
    MAX_HEADER_BYTES,
    ResponseDecoder,
    ResponseHead,
    encode_request,
    request_block,
)
from coro.http.compression import ContentDecoder, decoder_for, supported_codings
from coro.http.connection import HTTPConnection, Outgoing, Progress, Sink
from coro.http.headers import HTTPHeaders
from coro.http.messages import HTTPRequest, HTTPResponse
from coro.http.pool import ConnectionPool
from coro.http.urls import Target, join, parse
from coro.loop import IOLoop
from coro.resolver import Resolver
from coro.tcp import connect
from coro.tls import client_context, context_for

__all__ = ["AsyncHTTPClient", "HTTPClient", "fetch"]

USER_AGENT = "coro/0.1"
DEFAULT_MAX_BODY = 100 * 1024 * 1024
_DECODE_STEP = 64 * 1024
_ACCEPT_ENCODING = ", ".join(supported_codings())

_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 20.0,
    "request_timeout": 20.0,
    "inactivity_timeout": None,
    "follow_redirects": True,
    "max_redirects": 5,
    "decompress_response": True,
    "proxy_password": "",
    "allow_nonstandard_methods": False,
    "validate_cert": True,
    "user_agent": USER_AGENT,
}

_METHODS_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_METHODS_WITH_BODY = frozenset({"POST", "PATCH", "PUT"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What describes a body goes when a redirect turns the request into a GET (RFC 9110 section 15.4).
_BODY_FIELDS = ("Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding")
_CREDENTIAL_FIELDS = ("Authorization", "Cookie", "Proxy-Authorization")


class AsyncHTTPClient:
    """An HTTP client: ``response = yield AsyncHTTPClient().fetch(url)``.

    There is one client per loop, which every ``AsyncHTTPClient()`` returns, so that connections are
    shared; ``force_instance=True`` makes one of its own. The loop closes its clients when it closes.

    Arguments:
        force_instance: make a client of its own.
        max_clients: how many requests may be under way at once; further ones wait in order.
        max_buffer_size: bytes that a response may occupy (default 100 MB).
        max_body_size: limit for a response's body, after decompression (default ``max_buffer_size``;
            with a ``streaming_callback``: no limit).
        max_header_size: limit for a response's head in bytes.
        resolver: turns names into addresses; by default the system's.
        defaults: request options by name, for requests that do not give them.
    """

    _instances: ClassVar[WeakKeyDictionary[IOLoop, AsyncHTTPClient]] = WeakKeyDictionary()
    _settings: ClassVar[dict[str, Any]] = {}

    def __new__(cls, force_instance: bool = False, **settings: Any) -> Self:
        """Return the loop's client, or make one."""
        loop = IOLoop.current()
        if not force_instance:
            shared = AsyncHTTPClient._instances.get(loop)
            if shared is not None:
                return shared  # type: ignore[return-value]
        self = super().__new__(cls)
        self._initialize(loop, **{**AsyncHTTPClient._settings, **settings})
        if not force_instance:
            AsyncHTTPClient._instances[loop] = self
        return self

    def _initialize(
        self,
        loop: IOLoop,
        max_clients: int = 10,
        max_buffer_size: int = DEFAULT_MAX_BODY,
        max_body_size: int | None = None,
        max_header_size: int = MAX_HEADER_BYTES,
        resolver: Resolver | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if max_clients < 1:
            raise ValueError(f"max_clients must be at least 1, not {max_clients}")
        self.io_loop = loop
        self.max_clients = max_clients
        self.max_buffer_size = max_buffer_size
        self.max_body_size = max_body_size
        self.max_header_size = max_header_size
        self.defaults: dict[str, Any] = {**_DEFAULTS, **(defaults or {})}
        self._resolver = resolver
        self._pool = ConnectionPool(loop, max_clients)
        self._opened = 0
        self._closed = False
        loop._call_on_close(self, self.close)

    @classmethod
    def configure(cls, impl: None = None, **settings: Any) -> None:
        """Set what clients made from now on are given, unless they are told otherwise.

        Arguments:
            impl: None; there is one implementation.
            settings: arguments of ``AsyncHTTPClient``.
        """
        if impl is not None:
            raise ValueError(f"coro has one HTTP client; configure(None, ...) instead of {impl!r}")
        AsyncHTTPClient._settings = settings

    def __repr__(self) -> str:
        return f"<AsyncHTTPClient {'closed ' if self._closed else ''}{self._pool!r}>"

    def statistics(self) -> dict[str, int]:
        """Count requests under way and waiting, idle connections, and connections opened so far."""
        return {**self._pool.statistics(), "opened": self._opened}

    def close(self) -> None:
        """Close the idle connections; requests under way go on, new ones are refused."""
        if self._closed:
            return
        self._closed = True
        self._pool.close()
        self.io_loop._forget_on_close(self)
        if AsyncHTTPClient._instances.get(self.io_loop) is self:
            del AsyncHTTPClient._instances[self.io_loop]

    @coroutine
    def fetch(
        self,
        request: str | HTTPRequest,
        callback: Callable[[HTTPResponse], Any] | None = None,
        raise_error: bool = True,
        **kwargs: Any,
    ) -> Generator[Any, Any, HTTPResponse]:
        """Send a request; return the response.

        Arguments:
            request: a URL, or an ``HTTPRequest``.
            callback: called with the response too, also with one that tells of an error.
            raise_error: raise ``HTTPError`` for a status outside 200-299 and for failures without a
                response (status 599); otherwise both are told by ``response.error``.
            kwargs: options of ``HTTPRequest``, if ``request`` is a URL.
        Raises:
            HTTPError: see ``raise_error``. ``RequestError`` and its subclasses tell of failures.
            ValueError: the URL or an option makes no sense.
            RuntimeError: the client is closed.
        """
        if self._closed:
            raise RuntimeError("fetch() called on closed AsyncHTTPClient")
        if not isinstance(request, HTTPRequest):
            request = HTTPRequest(request, **kwargs)
        elif kwargs:
            raise ValueError("kwargs can't be used if request is an HTTPRequest object")
        if callback is not None:
            task = current_task()
            assert task is not None
            task.add_done_callback(functools.partial(_call_back, callback, request))
        way = _Fetch(self, request)
        try:
            response = yield from way.run()
        except RequestError as error:
            if raise_error:
                raise
            progress = way.progress
            progress.ended = self.io_loop.time()
            return HTTPResponse(
                request,
                599,
                error=error,
                request_time=progress.ended - progress.started,
                reason=error.message,
                start_time=way.started,
                progress=progress,
            )
        if raise_error and not 200 <= response.code < 300:
            response.rethrow()
        return response


class _Fetch:
    """One fetch on its way, from its first request to its last response."""

    __slots__ = (
        "client",
        "connect_deadline",
        "deadline",
        "limit",
        "location",
        "max_body",
        "may_redirect",
        "options",
        "progress",
        "receiver",
        "request",
        "started",
    )

    def __init__(self, client: AsyncHTTPClient, request: HTTPRequest) -> None:
        self.client = client
        self.request = request
        self.started = time.time()
        self.progress = progress = Progress(client.io_loop.time())
        self.options: Mapping[str, Any] = request.with_defaults(client.defaults)
        total = self.options["request_timeout"]
        connect_timeout = self.options["connect_timeout"]
        self.deadline = progress.started + total if total else None
        self.connect_deadline = progress.started + connect_timeout if connect_timeout else None
        # Bytes that a body may have; one that is streamed has no limit unless one was set.
        self.max_body = client.max_body_size
        if self.max_body is None and request.streaming_callback is None:
            self.max_body = client.max_buffer_size
        # Bounds the whole; who moves its deadline: _limit_to_connect, then the connection.
        self.limit = Timeout(None)
        # Of the present response: where it redirects to, if that is to be followed, and what takes
        # its body, if not simply the decoder.
        self.may_redirect = False
        self.location: str | None = None
        self.receiver: _Receiver | None = None

    def run(self) -> Generator[Any, Any, HTTPResponse]:
        """Fetch, and follow redirects."""
        request = self.request
        url = request.url
        target = parse(url)
        redirects = self.options["max_redirects"] if self.options["follow_redirects"] else 0
        try:
            with self.limit:
                while True:
                    self.may_redirect = redirects > 0
                    response = yield from self._attempt(request, target, url)
                    if self.location is None:
                        return response
                    redirects -= 1
                    url = join(url, self.location)
                    origin = target.origin
                    target = parse(url)
                    request = _redirected(request, response.code, url, target.origin == origin)
        except TimeoutError as error:
            if not self.limit.expired():
                raise
            raise self._timed_out(target) from error

    def _attempt(
        self, request: HTTPRequest, target: Target, url: str
    ) -> Generator[Any, Any, HTTPResponse]:
        """Send one request, over again if a kept connection turns out to be closed; return its response."""
        client = self.client
        pool = client._pool
        progress = self.progress
        out = _encode(request, target, self.options)
        key = _pool_key(target, self.options)
        if not pool.try_acquire():
            self._limit_to_connect()
            yield from pool.acquire()
            progress.acquired = client.io_loop.time()
        try:
            connection = pool.take(key, progress.acquired)
            while True:
                kept = connection is not None
                if connection is None:
                    connection = yield from self._open(target, key)
                try:
                    decoder = yield from self._exchange(connection, out)
                    response = self._response(decoder, url)
                    if client._closed or not connection.reusable():
                        connection.close()
                    else:
                        pool.put(connection, progress.ended)
                    return response
                except HTTPClosedError as error:
                    connection.close()
                    if not kept or not error.safe_to_retry:
                        raise
                    connection = None
                except HTTPInputError as error:
                    connection.close()
                    raise HTTPProtocolError(
                        str(error), phase=progress.phase, attempts=progress.attempts
                    ) from error
                except BaseException:
                    connection.close()
                    raise
        finally:
            pool.release()

    def _exchange(
        self, connection: HTTPConnection, out: Outgoing
    ) -> Generator[Any, Any, ResponseDecoder]:
        """Return the exchange of a request on a connection, with this fetch's limits."""
        self.location = self.receiver = None
        self.progress.attempts += 1
        if self.limit.deadline is not None:
            self.limit.reschedule(None)
        connection.bound(self.limit, self.deadline)
        return connection.exchange(
            out, self.progress, self._begin_body, self.max_body, self.options["inactivity_timeout"]
        )

    def _response(self, decoder: ResponseDecoder, url: str) -> HTTPResponse:
        head = decoder.head
        assert head is not None
        receiver = self.receiver
        if receiver is not None:
            receiver.finish()
        progress = self.progress
        progress.ended = self.client.io_loop.time()
        response = HTTPResponse(
            self.request,
            head.status,
            effective_url=url,
            reason=head.reason,
            start_time=self.started,
            request_time=progress.ended - progress.started,
            head=head,
            progress=progress,
            body=decoder.body if receiver is None else receiver.body(),
            trailers=decoder.trailers if head.chunked else None,
        )
        decoder.forget()
        if receiver is not None and receiver.decompresses:
            response.headers["X-Consumed-Content-Encoding"] = response.headers.pop(
                "Content-Encoding"
            )
        return response

    # --- receiving -------------------------------------------------------------------------

    def _begin_body(self, head: ResponseHead) -> Sink | None:
        """Look at the head; return what is to take the body, or None to let the decoder collect it."""
        request = self.request
        if head.status in _REDIRECTS and self.may_redirect:
            self.location = head.headers.get("Location")
            if self.location is not None:
                # Neither its head nor its body is the caller's business.
                return None
        limit = self.max_body
        if head.content_length is not None and limit is not None and head.content_length > limit:
            if request.method != "HEAD":
                raise BodyTooLargeError(
                    f"the body of {head.content_length} bytes is larger than {limit} bytes"
                )
        if request.header_callback is not None:
            for line in head.raw.decode("latin-1").splitlines(keepends=True):
                request.header_callback(line)
        coding = None
        if head.content_encoding is not None and self.options["decompress_response"]:
            coding = decoder_for(head.content_encoding)
        if coding is None and request.streaming_callback is None:
            return None
        self.receiver = _Receiver(request.streaming_callback, coding, limit)
        return self.receiver.take

    # --- connecting ------------------------------------------------------------------------

    def _limit_to_connect(self) -> None:
        """Bound what comes before the request is on its way by the connect limit, if that is nearer."""
        self.limit.reschedule(
            min((d for d in (self.deadline, self.connect_deadline) if d is not None), default=None)
        )

    def _open(self, target: Target, key: Hashable) -> Generator[Any, Any, HTTPConnection]:
        """Open a connection to the request's server."""
        self._limit_to_connect()
        options = self.options
        progress = self.progress
        client = self.client
        context = _tls_context(options) if target.scheme == "https" else None
        details: dict[str, Any] = {"attempts": progress.attempts, "safe_to_retry": True}
        try:
            stream = yield connect(
                target.host,
                target.port,
                ssl_options=context,
                server_hostname=target.host if context is not None else None,
                resolver=client._resolver,
                source_ip=options.get("network_interface"),
                progress=progress,
            )
        except ResolveError as error:
            raise HTTPResolveError(str(error), **details) from error
        except ssl.SSLError as error:
            raise HTTPTLSError(_explain(error, target), **details) from error
        except (ConnectError, StreamClosedError) as error:
            if progress.phase == "tls":
                raise HTTPTLSError(_explain(error, target), **details) from error
            raise HTTPConnectError(str(error), **details) from error
        client._opened += 1
        return HTTPConnection(stream, key, client.max_header_size)

    def _timed_out(self, target: Target) -> HTTPTimeoutError:
        """Say which limit it was, by the phase in which it came."""
        phase = self.progress.phase
        place = f"{target.host}:{target.port}"
        details: dict[str, Any] = {"phase": phase, "attempts": self.progress.attempts}
        if phase == "queue":
            return QueueTimeoutError("Timeout in request queue", safe_to_retry=True, **details)
        if phase == "dns":
            return ConnectTimeoutError(
                f"Timeout while resolving {target.host}", safe_to_retry=True, **details
            )
        if phase == "connect":
            return ConnectTimeoutError(
                f"Timeout while connecting to {place}", safe_to_retry=True, **details
            )
        if phase == "tls":
            return ConnectTimeoutError(
                f"Timeout during TLS handshake with {place}", safe_to_retry=True, **details
            )
        idle = self.options["inactivity_timeout"]
        if idle is not None and (
            self.deadline is None or self.client.io_loop.time() < self.deadline
        ):
            return ReadTimeoutError(f"Timeout: {place} sent nothing for {idle:g} s", **details)
        return TotalTimeoutError("Timeout during request", **details)


class _Receiver:
    """Takes a response's body: decompresses it, bounds it, hands it on or collects it.

    Arguments:
        callback: what to hand the pieces to; None: collect them.
        coding: undoes the compression, if there is one.
        limit: bytes after decompression; None: no limit.
    """

    __slots__ = ("_callback", "_coding", "_limit", "_pieces", "_size")

    def __init__(
        self,
        callback: Callable[[bytes], Any] | None,
        coding: ContentDecoder | None,
        limit: int | None,
    ) -> None:
        self._callback = callback
        self._coding = coding
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def decompresses(self) -> bool:
        """Whether the body arrives in another coding than it is handed on in."""
        return self._coding is not None

    def take(self, piece: bytes) -> Generator[Any, Any, None]:
        """Take a piece of the body as received; what the callback returns is waited for."""
        coding = self._coding
        if coding is None:
            yield from self._hand_on(piece)
            return
        decoded = coding.decompress(piece, _DECODE_STEP)
        while decoded:
            yield from self._hand_on(decoded)
            decoded = coding.decompress(b"", _DECODE_STEP) if coding.pending else b""

    def _hand_on(self, piece: bytes) -> Generator[Any, Any, None]:
        self._size += len(piece)
        if self._limit is not None and self._size > self._limit:
            raise BodyTooLargeError(f"the body is larger than {self._limit} bytes")
        if self._callback is None:
            self._pieces.append(piece)
            return
        waiting = self._callback(piece)
        if waiting is not None:
            yield waiting

    def finish(self) -> None:
        """The response is complete: so must be what was compressed in it."""
        if self._coding is not None:
            self._coding.finish()

    def body(self) -> bytes:
        """Return what was collected."""
        return b"".join(self._pieces)


def _encode(request: HTTPRequest, target: Target, options: Mapping[str, Any]) -> Outgoing:
    """Check a request and encode it.

    Raises:
        ValueError: the method and the body do not go together, or something may not be written out.
        KeyError: the method is unknown.
    """
    method = request.method
    coding = _ACCEPT_ENCODING if options["decompress_response"] else None
    if request.plain and not target.username and method in _METHODS_WITHOUT_BODY:
        return _encode_plain(method, target.path, target.authority, options["user_agent"], coding)
    body = request.body
    producer = request.body_producer
    if body is not None and producer is not None:
        raise ValueError("give a body or a body_producer, not both")
    if not options["allow_nonstandard_methods"]:
        expected = method in _METHODS_WITH_BODY
        if not expected and method not in _METHODS_WITHOUT_BODY:
            raise KeyError(f"unknown method {method}")
        if (body is not None or producer is not None) != expected:
            raise ValueError(
                f"Body must {'not ' if expected else ''}be None for method {method} "
                "(unless allow_nonstandard_methods is true)"
            )
    return _encode_with_fields(request, target, options, coding)


@lru_cache(4096)
def _encode_plain(
    method: str, path: str, authority: str, user_agent: str | None, coding: str | None
) -> Outgoing:
    """Encode a request that has nothing of its own; crawlers and gateways send the same ones again and again."""
    return Outgoing(
        method, encode_request(method, path, request_block(authority, user_agent, coding))
    )


def _encode_with_fields(
    request: HTTPRequest, target: Target, options: Mapping[str, Any], coding: str | None
) -> Outgoing:
    method = request.method
    fields = request.headers.copy()
    authority = fields.pop("Host", target.authority)
    block = request_block(
        authority,
        None if "User-Agent" in fields else options["user_agent"],
        None if "Accept-Encoding" in fields else coding,
    )
    credentials = _credentials(request, target, options)
    if credentials is not None:
        fields["Authorization"] = credentials
    body = request.body
    length = fields.pop("Content-Length", None)
    fields.pop("Transfer-Encoding", None)
    if method == "POST" and "Content-Type" not in fields:
        fields["Content-Type"] = "application/x-www-form-urlencoded"
    content_length = int(length) if length is not None else None
    if body is not None:
        content_length = len(body)
    elif request.body_producer is None and method in _METHODS_WITH_BODY:
        content_length = 0
    chunked = request.body_producer is not None and content_length is None
    head = encode_request(
        method,
        target.path,
        block,
        list(fields.get_all()),
        content_length=content_length,
        chunked=chunked,
    )
    return Outgoing(method, head + body if body else head, request.body_producer, chunked)


def _credentials(request: HTTPRequest, target: Target, options: Mapping[str, Any]) -> str | None:
    """Return the value of ``Authorization`` (RFC 7617), from the URL or the request; None if there is none."""
    if request.auth_mode not in (None, "basic"):
        raise ValueError(f"unsupported auth_mode {request.auth_mode}")
    if target.username:
        name, password = target.username, target.password
    elif request.auth_username is not None:
        name, password = request.auth_username, request.auth_password or ""
    else:
        return None
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode("ascii")


def _redirected(request: HTTPRequest, code: int, url: str, same_origin: bool) -> HTTPRequest:
    """Return the request that follows a redirect (RFC 9110 section 15.4)."""
    following = copy.copy(request)
    following.url = url
    following.headers = headers = request.headers.copy()
    headers.pop("Host", None)
    if (code == 303 and request.method != "HEAD") or (
        code in (301, 302) and request.method == "POST"
    ):
        following.method = "GET"
        following.body = None
        following.body_producer = None
        for name in _BODY_FIELDS:
            headers.pop(name, None)
    if not same_origin:
        following.auth_username = following.auth_password = None
        for name in _CREDENTIAL_FIELDS:
            headers.pop(name, None)
    return following


def _explain(error: Exception, target: Target) -> str:
    """Say in one line why TLS with a host failed."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    return f"TLS with {target.host}:{target.port} failed: {reason}"


_TLS_OPTIONS = ("ssl_options", "validate_cert", "ca_certs", "client_key", "client_cert")


def _pool_key(target: Target, options: Mapping[str, Any]) -> Hashable:
    """What must be equal for a connection to serve another request."""
    source = options.get("network_interface")
    if target.scheme == "http":
        return target.origin if source is None else (target.origin, source)
    tls = tuple(_identity(options.get(name)) for name in _TLS_OPTIONS)
    return (target.origin, source, tls)


def _identity(option: Any) -> Hashable:
    """A value itself if it can be compared by value, else the object (which is then kept alive)."""
    return tuple(sorted(option.items())) if isinstance(option, dict) else option


def _tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    given = options.get("ssl_options")
    if given is not None:
        return context_for(given, server_side=False)
    return client_context(
        ca_certs=options.get("ca_certs"),
        client_cert=options.get("client_cert"),
        client_key=options.get("client_key"),
        validate=options["validate_cert"],
    )


def _call_back(
    callback: Callable[[HTTPResponse], Any], request: HTTPRequest, task: Task[HTTPResponse]
) -> Any:
    """Tell the caller's callback how a fetch ended."""
    if task.cancelled():
        return None
    error = task.exception()
    if error is None:
        return callback(task.result())
    response = getattr(error, "response", None)
    return callback(HTTPResponse(request, 599, error=error) if response is None else response)


@coroutine
def fetch(
    request: str | HTTPRequest, raise_error: bool = True, **kwargs: Any
) -> Generator[Any, Any, HTTPResponse]:
    """Send a request by the current loop's client; see ``AsyncHTTPClient.fetch``."""
    return (yield AsyncHTTPClient().fetch(request, raise_error=raise_error, **kwargs))


class HTTPClient:
    """A blocking client for scripts: ``HTTPClient().fetch(url)``.

    Arguments:
        settings: as for ``AsyncHTTPClient``.
    """

    def __init__(self, **settings: Any) -> None:
        self._closed = True
        self._loop = IOLoop(make_current=False)
        self._client = self._loop.run_sync(lambda: _make_client(settings))
        self._closed = False

    def fetch(self, request: str | HTTPRequest, **kwargs: Any) -> HTTPResponse:
        """Send a request; return the response when it is there. See ``AsyncHTTPClient.fetch``."""
        response: HTTPResponse = self._loop.run_sync(
            functools.partial(self._client.fetch, request, **kwargs)
        )
        return response

    def close(self) -> None:
        """Close the client and its loop."""
        if not self._closed:
            self._closed = True
            self._client.close()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@coroutine
def _make_client(settings: dict[str, Any]) -> AsyncHTTPClient:
    return AsyncHTTPClient(force_instance=True, **settings)
