"""``fetch``: one request, its redirects, its time limits; and the clients that keep connections.

``AsyncHTTPClient.fetch`` is a coroutine, and the whole fetch is that one task: the steps below it
(a slot, a connection, the exchange) are generators that it runs by ``yield from``. A task of its
own has only what must go on beside it, the race of the connector.

Time limits. One ``Timeout`` surrounds the fetch; its deadline is moved as the fetch passes from
phase to phase, and when it expires, the phase that ``Progress`` tells decides which error is
raised.

Errors. Every failure without a response is a ``RequestError``, translated here, once, from what the
rooms below raise; that remains its ``__cause__``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import ssl
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from typing import Any, ClassVar, Literal, Self, overload
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
    IncompleteBodyError,
    QueueTimeoutError,
    ReadTimeoutError,
    RequestError,
    ResolveError,
    StreamClosedError,
    TimeoutError,
    TotalTimeoutError,
    WriteTimeoutError,
    WrongLoopError,
    format_address,
)
from coro.future import slot
from coro.gen import Task, Timeout, coroutine, current_task
from coro.http.auth import DigestMemory
from coro.http.codec import MAX_HEADER_BYTES, MAX_HEADERS, ResponseDecoder, ResponseHead
from coro.http.compression import decoder_for
from coro.http.connection import HTTPConnection, Progress, Sink
from coro.http.headers import HTTPHeaders
from coro.http.hop import Hop, hop_for
from coro.http.messages import HTTPRequest, HTTPResponse, check_options
from coro.http.outgoing import (
    AUTH_OPTIONS,
    CONNECT_OPTIONS,
    Outgoing,
    connection_key,
    encode,
    encode_usual,
    redirected,
    tls_context,
)
from coro.http.pool import ConnectionPool
from coro.http.proxy import Proxy
from coro.http.receiver import CallbackError, Receiver, blame
from coro.http.streaming import Pieces, StreamedResponse
from coro.http.tunnel import Passage
from coro.http.urls import LONGEST_KEPT, Target, join, parse, without_credentials
from coro.loop import IOLoop
from coro.net import AF_INET
from coro.resolver import Overrides, Resolver
from coro.scopes import ACTIVE
from coro.stream import IOStream
from coro.tcp import connect, timeout_message
from coro.tls import explain

__all__ = ["AsyncHTTPClient", "HTTPClient", "fetch"]

USER_AGENT = "coro/0.1"
DEFAULT_MAX_BODY = 100 * 1024 * 1024

_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 20.0,
    "request_timeout": 20.0,
    "inactivity_timeout": None,
    "write_timeout": None,
    "follow_redirects": True,
    "max_redirects": 5,
    "decompress_response": True,
    "proxy_password": "",
    "allow_nonstandard_methods": False,
    "validate_cert": True,
    "user_agent": USER_AGENT,
}

# What is asked of the request alone.
_OF_ONE_REQUEST = frozenset(
    {
        "body_producer",
        "expect_100_continue",
        "header_callback",
        "on_informational",
        "stream",
        "streaming_callback",
        "trailers",
    }
)

# Whoever has as many options as that has none that a hop is needed for.
_PLAIN_OPTIONS = len(_DEFAULTS)

# Bytes of a body that are received for the sake of the connection alone.
MAX_DISCARDED = 64 * 1024

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class AsyncHTTPClient:
    """An HTTP client: ``response = yield AsyncHTTPClient().fetch(url)``.

    There is one client per loop, which every ``AsyncHTTPClient()`` returns, so that connections are
    shared; ``force_instance=True`` makes one of its own. The loop closes its clients when it
    closes.

    Arguments:
        force_instance: make a client of its own.
        max_clients: how many requests may be under way at once; further ones wait: origins take
            turns, requests to the same one keep their order.
        max_clients_per_origin: how many of them to one origin; None: no limit but that.
        max_connection_idle: seconds for which a connection is kept without a request; less than the
            servers do it, if they are known.
        max_connection_age: seconds after which a connection serves no further request; None: no
            limit.
        max_buffer_size: bytes that a response may occupy (default 100 MB).
        max_body_size: limit for a response's body, after decompression (default
            ``max_buffer_size``; with a ``streaming_callback``: no limit).
        max_header_size: limit for a response's head, and for its trailers, in bytes.
        max_headers: limit for the number of their fields.
        resolver: turns names into addresses; by default the system's.
        hostname_mapping: where hosts are to be found instead: the default of ``overrides``.
        defaults: request options by name, for requests that do not give them; not ``stream``, nor
            what concerns one body: callbacks, ``body_producer``, ``trailers``,
            ``expect_100_continue``.
    """

    _instances: ClassVar[WeakKeyDictionary[IOLoop, AsyncHTTPClient]] = WeakKeyDictionary()
    _settings: ClassVar[dict[str, Any]] = {}

    def __new__(cls, force_instance: bool = False, **settings: Any) -> Self:
        """Return the loop's client, or make one."""
        loop = IOLoop.current()
        if force_instance and force_instance is not True:
            raise TypeError(f"force_instance is True or False, not {force_instance!r}")
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
        max_clients_per_origin: int | None = None,
        max_connection_idle: float = 60.0,
        max_connection_age: float | None = None,
        max_buffer_size: int = DEFAULT_MAX_BODY,
        max_body_size: int | None = None,
        max_header_size: int = MAX_HEADER_BYTES,
        max_headers: int = MAX_HEADERS,
        resolver: Resolver | None = None,
        hostname_mapping: Overrides | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if max_clients < 1:
            raise ValueError(f"max_clients must be at least 1, not {max_clients}")
        if max_clients_per_origin is not None and max_clients_per_origin < 1:
            raise ValueError(
                f"max_clients_per_origin must be at least 1, not {max_clients_per_origin}"
            )
        if not max_connection_idle > 0:
            raise ValueError(f"max_connection_idle is some seconds, not {max_connection_idle!r}")
        self.io_loop = loop
        self.max_clients = max_clients
        self.max_buffer_size = max_buffer_size
        self.max_body_size = max_body_size
        self.max_header_size = max_header_size
        self.max_headers = max_headers
        defaults = defaults or {}
        check_options(defaults)
        for name in sorted(_OF_ONE_REQUEST & defaults.keys()):
            if defaults[name]:
                raise ValueError(f"{name} is no default of a client: give it to each request")
        self.defaults: dict[str, Any] = {**_DEFAULTS, **defaults}
        if hostname_mapping is not None:
            self.defaults["overrides"] = hostname_mapping
        self._resolver = resolver
        self._pool = ConnectionPool(
            loop,
            max_clients,
            max_connection_idle,
            max_per_origin=max_clients_per_origin,
            lifetime=max_connection_age,
        )
        self._digests = DigestMemory()
        self._closed = False
        loop._call_on_close(self, self.close)

    @classmethod
    def configure(cls, impl: type[AsyncHTTPClient] | None = None, **settings: Any) -> None:
        """Set what clients made from now on are given, unless they are told otherwise.

        Arguments:
            impl: None, or this class; there is one implementation.
            settings: arguments of ``AsyncHTTPClient``.
        """
        if impl is not None and impl is not AsyncHTTPClient:
            raise ValueError(f"coro has one HTTP client; configure(None, ...) instead of {impl!r}")
        AsyncHTTPClient._settings = settings

    def __repr__(self) -> str:
        return f"<AsyncHTTPClient {'closed ' if self._closed else ''}{self._pool!r}>"

    def _check_loop(self) -> None:
        here = IOLoop.current()
        if here is not self.io_loop:
            raise WrongLoopError(
                f"a client of {self.io_loop!r} was used on {here!r}: make one there"
            )

    def statistics(self) -> dict[str, int]:
        """Count requests under way and waiting, idle connections, and connections opened so far."""
        return {**self._pool.statistics(), "opened": self._pool.opened_count}

    def statistics_by_origin(self) -> dict[str, dict[str, int]]:
        """Count what belongs to each origin, as in "http://example.com:80".

        Returns:
            By origin: connections ``open`` now, and of these ``idle`` and ``busy``; requests that
            are ``waiting``; and so far, connections ``opened``, and requests for which one was
            ``reused``. Of many origins, those to which nothing was opened for long are forgotten.
        """
        return self._pool.statistics_by_origin()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; requests under way go on, new ones are refused."""
        if self._closed:
            return
        self._closed = True
        self._pool.close()
        self.io_loop._forget_on_close(self)
        if AsyncHTTPClient._instances.get(self.io_loop) is self:
            del AsyncHTTPClient._instances[self.io_loop]

    @overload
    def fetch(
        self,
        request: str,
        callback: Callable[[HTTPResponse], Any] | None = None,
        raise_error: Literal[True] = True,
        *,
        stream: Literal[True],
        **kwargs: Any,
    ) -> Task[StreamedResponse]: ...
    @overload
    def fetch(
        self,
        request: str | HTTPRequest,
        callback: Callable[[HTTPResponse], Any] | None = None,
        raise_error: bool = True,
        **kwargs: Any,
    ) -> Task[HTTPResponse]: ...
    @coroutine
    def fetch(
        self,
        request: str | HTTPRequest,
        callback: Callable[[HTTPResponse], Any] | None = None,
        raise_error: bool = True,
        **kwargs: Any,
    ) -> Generator[Any, Any, Any]:
        """Send a request; return the response.

        Arguments:
            request: a URL, or an ``HTTPRequest``.
            callback: called with the response too, also with one that tells of an error.
            raise_error: raise ``HTTPError`` for a status outside 200-299 and for failures without a
                response (status 599); otherwise both are told by ``response.error``.
            kwargs: options of ``HTTPRequest``, if ``request`` is a URL.
        Raises:
            HTTPError: see ``raise_error``. ``RequestError`` and its subclasses tell of failures,
                ``TooManyRedirectsError`` of the last redirect that was followed in vain.
            ValueError: the URL or an option makes no sense.
            RuntimeError: the client is closed.
        """
        if self._closed:
            # Closed with its loop, most likely, if it is used on another one.
            self._check_loop()
            raise RuntimeError("fetch() called on closed AsyncHTTPClient")
        fresh = plain = True
        if type(request) is str and not kwargs and len(request) <= LONGEST_KEPT:
            request = HTTPRequest.usual(request)
        elif isinstance(request, HTTPRequest):
            if kwargs:
                raise ValueError("kwargs can't be used if request is an HTTPRequest object")
            fresh, plain = False, request.plain and len(str(request.url)) <= LONGEST_KEPT
        else:
            plain = False
            request = HTTPRequest(request, **kwargs)
        way = _Fetch(self, request, fresh, plain)
        if callback is not None:
            task = current_task()
            assert task is not None
            task.add_done_callback(functools.partial(_call_back, callback, way))
            del task  # It will hold its error, and so the traceback, and so this frame.
        if not plain and request.stream:
            return (yield from self._open_stream(way, raise_error))
        try:
            response = yield from way.run()
        except RequestError as error:
            if raise_error:
                raise
            return way.failure(error)
        if raise_error and not 200 <= response.code < 300:
            response.rethrow()
        return response

    def switch_protocols(
        self, request: HTTPRequest, url: str, fields: HTTPHeaders
    ) -> Generator[Any, Any, tuple[HTTPResponse, IOStream | None]]:
        """Send a request that asks for another protocol (RFC 9110 section 7.8).

        Arguments:
            request: the request.
            url: where to send it, instead of its own URL.
            fields: what asks for the protocol; added to the request's own.
        Returns:
            The response; and the stream, which is the caller's from now on, if the server has
            switched.
        Raises:
            RequestError: there was no response.
        """
        request = copy.copy(request)
        request.url = url
        request.headers = headers = request.headers.copy()
        headers.update(fields)
        way = _Fetch(self, request, True, False)
        way.switches = True
        response = yield from way.run()
        return response, way.switched

    def _open_stream(self, way: _Fetch, raise_error: bool) -> Generator[Any, Any, HTTPResponse]:
        """Fetch in a task of its own; return the response as soon as its head has come."""
        pieces = way.pieces = Pieces()
        way.raises = raise_error
        opened = pieces.opened
        pieces.task = task = way.run_for_reader()
        task.add_done_callback(pieces.end)
        try:
            response: HTTPResponse = yield opened
        except RequestError as error:
            if raise_error:
                raise
            return way.failure(error)
        except BaseException:
            pieces.close()
            raise
        finally:
            # They hold the error, and so the traceback, and so this frame.
            del task, pieces, opened
        if raise_error and not 200 <= response.code < 300:
            response.rethrow()
        return response


class _EnoughError(Exception):
    """No more is to be received of a body that nobody asked for."""


class _Fetch(Timeout):
    """One fetch on its way, from its first request to its last response, and the limit of it all.

    Who moves the limit's deadline: ``_limit_to``, then the connection.
    """

    __slots__ = (
        "client",
        "deadline",
        "declined",
        "details",
        "hop",
        "location",
        "max_body",
        "may_redirect",
        "options",
        "out",
        "pieces",
        "plain",
        "progress",
        "raises",
        "receiver",
        "request",
        "started",
        "switched",
        "switches",
        "target",
        "until",
        "url",
    )

    # Where the present request goes.
    url: str
    target: Target
    # Of the present response: where it redirects to, if that is to be followed, and what takes its
    # body, if not simply the decoder.
    may_redirect: bool
    location: str | None
    receiver: Receiver | None
    # Of a response whose body is pulled: to whom it is handed, and whether its status may be an
    # error, whose body is collected. Not set if the request is plain.
    pieces: Pieces | None
    raises: bool
    # Whether another protocol is asked for, and the stream that speaks it; likewise.
    switches: bool
    switched: IOStream | None
    # The present request as it is sent, and whether its server will not be asked beforehand;
    # likewise.
    out: Outgoing
    declined: bool
    # When the time of the present phase before the exchange is over, if that has a limit.
    until: float | None
    # What errors tell of the exchange that failed; set when it does.
    details: dict[str, Any]

    def __init__(
        self, client: AsyncHTTPClient, request: HTTPRequest, fresh: bool, plain: bool
    ) -> None:
        # ``run`` sets what it inherits.
        self.client = client
        self.request = request
        self.started = request.start_time if fresh else time.time()
        self.progress = progress = Progress(client.io_loop.time())
        # Bytes that a body may have; one that is streamed has no limit unless one was set.
        limit = client.max_body_size
        # Whether the request is a URL and a method: there is nothing else to be asked of it then.
        self.plain = plain
        if plain:
            self.options: Mapping[str, Any] = client.defaults
            total = self.options["request_timeout"]
            if limit is None:
                limit = client.max_buffer_size
        else:
            self.options = request.with_defaults(client.defaults)
            total = self.options["request_timeout"]
            if request.stream and "request_timeout" not in request.__dict__:
                total = None
            if limit is None and request.streaming_callback is None and not request.stream:
                limit = client.max_buffer_size
            self.pieces = self.switched = None
            self.raises = True
            self.declined = self.switches = False
        self.deadline = progress.started + total if total else None
        self.max_body = limit
        self.hop: Hop | None = None

    def run(self) -> Generator[Any, Any, HTTPResponse]:
        """Fetch, and follow redirects."""
        request = self.request
        url = request.url
        redirects = self.options["max_redirects"] if self.options["follow_redirects"] else 0
        urls: list[str] | None = None
        # ``__enter__`` spelt out: the task is at hand, for a fetch is a coroutine of coro's, and
        # has no deadline before it knows what it waits for.
        self._loop = loop = self.client.io_loop
        if slot.running is not loop:
            self.client._check_loop()
        self._task = loop._current_task
        self._cancelling = self._task._cancel_requests
        self._deadline = self._timer = None
        self._state = ACTIVE
        try:
            try:
                while True:
                    self.may_redirect = redirects > 0
                    response = yield from self._attempt(request, url)
                    hop = self.hop
                    if hop is not None:
                        hop.check({"attempts": self.progress.attempts, "safe_to_retry": True})
                        if hop.again:
                            hop.again = False
                            self.progress.begin_again(self.client.io_loop.time())
                            continue
                    if not self.plain and self.declined:
                        self.declined = False
                        request = copy.copy(request)
                        request.expect_100_continue = False
                        self.progress.begin_again(self.client.io_loop.time())
                        continue
                    if self.location is None:
                        if urls is not None and not redirects:
                            if response.code in _REDIRECTS and "Location" in response.headers:
                                response._urls = [*urls, url]
                        if self._timer is not None or self._state != ACTIVE:
                            self.__exit__(None, None, None)
                        else:
                            # It may come to hold an error that leads to this object.
                            del self._task
                        return response
                    self.hop = None
                    redirects -= 1
                    urls = [url] if urls is None else [*urls, url]
                    origin = self.target.origin
                    url, target = self._redirect(url, self.location)
                    same_origin = target.origin == origin
                    if not same_origin:
                        url = without_credentials(url)
                        self.options = {
                            name: value
                            for name, value in self.options.items()
                            if name not in AUTH_OPTIONS
                        }
                    request = redirected(request, response.code, url, same_origin)
                    self.progress.begin_again(self.client.io_loop.time())
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        except TimeoutError as error:
            if not self.expired():
                raise
            raise self._timed_out() from error

    @coroutine
    def run_for_reader(self) -> Generator[Any, Any, None]:
        """Fetch for somebody who pulls the body."""
        try:
            response = yield from self.run()
            if self.pieces is not None:
                self.pieces.trailers = response._trailers
                # It is told already, unless its body was collected, for its error to tell of.
                self.pieces.open(response)
        finally:
            self.pieces = None

    def _redirect(self, url: str, location: str) -> tuple[str, Target]:
        """Return where a redirect leads."""
        with contextlib.suppress(UnicodeError):
            location = location.encode("latin-1").decode()  # What is not ASCII is UTF-8, in fact.
        try:
            url = join(url, location)
            return url, parse(url)
        except ValueError as error:
            raise HTTPProtocolError(
                f"cannot follow the redirect: {error}",
                phase=self.progress.phase,
                attempts=self.progress.attempts,
            ) from error

    def _attempt(self, request: HTTPRequest, url: str) -> Generator[Any, Any, HTTPResponse]:
        """Send one request, again if a kept connection was closed; return the response."""
        client = self.client
        pool = client._pool
        progress = self.progress
        options = self.options
        hop = self.hop
        self.url = url
        usual = None
        if self.plain and request is self.request and len(options) == _PLAIN_OPTIONS:
            usual = encode_usual(
                request.method,
                url,
                options["user_agent"],
                options["decompress_response"],
                options["validate_cert"],
            )
        if usual is not None:
            target, key, out = usual
            self.target = target
        else:
            self.target = target = parse(url)
            if hop is None and (len(options) > _PLAIN_OPTIONS or target.username):
                hop = self.hop = hop_for(
                    target, options, client._digests, request.body_producer is None
                )
            out = self.out = encode(request, target, options, hop)
            key = connection_key(target, options, hop)
        origin = target.origin
        if not pool.try_acquire(origin):
            self._limit_to(
                "queue_timeout" if "queue_timeout" in options else "connect_timeout",
                client.io_loop.time(),
            )
            yield from pool.acquire(origin)
            progress.acquired = client.io_loop.time()
        try:
            connection = pool.take(key, progress.acquired)
            while True:
                kept = connection is not None
                if connection is None:
                    connection = yield from self._open(target, key)
                self.location = self.receiver = None
                progress.attempts += 1
                if self._deadline is not None:
                    self.reschedule(None)
                if hop is not None:
                    hop.send(connection.stream, kept, out.head)
                try:
                    decoder = yield from connection.exchange(
                        out,
                        progress,
                        self._begin_body,
                        self.max_body,
                        options["inactivity_timeout"],
                        options["write_timeout"] if out.uploads else None,
                        None if self.plain else request.on_informational,
                        self,
                        self.deadline,
                    )
                    response = self._response(decoder)
                    if decoder.upgraded and not self.plain and self.switches:
                        self.switched = connection.detach()
                    elif client._closed or out.close or not connection.reusable():
                        connection.close()
                    else:
                        pool.put(connection, progress.ended)
                    return response
                except _EnoughError:
                    # Its head is all that counts.
                    connection.close()
                    return self._response(connection.decoder)
                except HTTPInputError as error:
                    self._give_up(connection, out)
                    raise HTTPProtocolError(str(error), **self.details) from error
                except CallbackError as error:
                    self._give_up(connection, out)
                    raise HTTPClosedError(f"connection closed: {error}", **self.details) from (
                        error.__cause__
                    )
                except BaseException as error:
                    self._give_up(connection, out)
                    if isinstance(error, BodyTooLargeError) and not error.attempts:
                        vars(error).update(self.details)
                    elif isinstance(error, IncompleteBodyError):
                        if self.receiver is not None and not error.partial:
                            error.partial = self.receiver.body()
                    elif (
                        isinstance(error, HTTPClosedError)
                        and kept
                        and out.replayable
                        and options.get("retry", True)
                        and not connection.decoder.bytes_received
                    ):
                        # The server closed a kept connection, perhaps just now: once more.
                        connection = None
                        continue
                    raise
        finally:
            pool.release(origin)

    def _give_up(self, connection: HTTPConnection, out: Outgoing) -> None:
        """End an exchange that failed."""
        connection.close()
        self.details = connection.details(out, self.progress)

    def _response(self, decoder: ResponseDecoder) -> HTTPResponse:
        head = decoder.head
        assert head is not None
        receiver = self.receiver
        if receiver is not None:
            receiver.finish()
        progress = self.progress
        progress.ended = self._loop.time()
        trailers = decoder.trailers if head.chunked else None
        response = HTTPResponse.received(
            self.request, head, self.url, self.started, progress, decoder.forget(), trailers
        )
        response.request_time = progress.ended - progress.acquired
        if receiver is not None:
            response._body = receiver.body()
        if receiver is not None and receiver.decompresses:
            response.headers["X-Consumed-Content-Encoding"] = response.headers.pop(
                "Content-Encoding"
            )
        return response

    def failure(self, error: BaseException) -> HTTPResponse:
        """Return the response that tells of an error, in place of one that came."""
        progress = self.progress
        progress.ended = self.client.io_loop.time()
        return HTTPResponse(
            self.request,
            599,
            error=error,
            request_time=progress.ended - progress.acquired,
            reason=error.message if isinstance(error, RequestError) else None,
            start_time=self.started,
            progress=progress,
        )

    # --- receiving -------------------------------------------------------------------------

    def _begin_body(self, head: ResponseHead) -> Sink | None:
        """Look at the head; return what takes the body, or None to let the decoder collect it."""
        length = head.content_length
        limit = self.max_body
        if head.usual and self.plain and self.hop is None:
            if length is None or limit is None or length <= limit:
                return None
        request = self.request
        if self.hop is not None and self.hop.take_head(head):
            return _discarder(head)
        if head.status == 417 and not self.plain and self.out.can_do_without_leave:
            # Expectation Failed (RFC 9110 section 10.1.1): once more, without the expectation.
            self.declined = True
            return _discarder(head)
        if head.status in _REDIRECTS and self.may_redirect:
            self.location = head.headers.get("Location")
            if self.location is not None:
                # Neither its head nor its body is the caller's business.
                return _discarder(head)
        if length is not None and limit is not None and length > limit:
            if request.method != "HEAD" and head.status != 204 and head.status != 304:
                raise BodyTooLargeError(f"the body of {length} bytes is larger than {limit} bytes")
        coding = None
        if head.content_encoding is not None and self.options["decompress_response"]:
            coding = decoder_for(head.content_encoding)
        if self.plain:
            if coding is None:
                return None
            self.receiver = Receiver(None, coding, limit)
            return self.receiver.take
        if request.header_callback is not None:
            # Not by splitlines(), which knows of more line ends than HTTP.
            for line in head.raw.decode("latin-1").split("\r\n")[:-1]:
                try:
                    request.header_callback(f"{line}\r\n")
                except Exception as error:
                    raise blame("header_callback", error) from error
        if self.pieces is not None and (200 <= head.status < 300 or not self.raises):
            self.receiver = Receiver(None, coding, limit, self.pieces.take)
            self._hand_over(self.pieces, head)
            return self.receiver.take
        if coding is None and request.streaming_callback is None:
            return None
        self.receiver = Receiver(request.streaming_callback, coding, limit)
        return self.receiver.take

    def _hand_over(self, pieces: Pieces, head: ResponseHead) -> None:
        """The head has come of a response whose body is pulled."""
        progress = self.progress
        progress.ended = self.client.io_loop.time()
        response = StreamedResponse.received(
            self.request, head, self.url, self.started, progress, b""
        )
        assert isinstance(response, StreamedResponse)
        response.request_time = progress.ended - progress.acquired
        response._pieces = pieces
        if self.receiver is not None and self.receiver.decompresses:
            response.headers["X-Consumed-Content-Encoding"] = response.headers.pop(
                "Content-Encoding"
            )
        pieces.open(response)

    # --- connecting ------------------------------------------------------------------------

    def _limit_to(self, name: str, begun: float) -> None:
        """Bound what has begun by a limit, or by that of the whole if it is nearer."""
        seconds = self.options[name]
        self.until = begun + seconds if seconds else None
        self.reschedule(
            min((d for d in (self.deadline, self.until) if d is not None), default=None)
        )

    def _open(self, target: Target, key: Hashable) -> Generator[Any, Any, HTTPConnection]:
        """Open a connection to the request's server."""
        client = self.client
        progress = self.progress
        # From when it got its slot, unless a kept connection has failed meanwhile: so of two equal
        # limits, as the defaults are, it is this one that runs out here.
        first = progress.phase == "queue"
        self._limit_to("connect_timeout", progress.acquired if first else client.io_loop.time())
        client._pool.make_room()
        options = self.options
        context = tls_context(options) if target.scheme == "https" else None
        place = format_address((target.host, target.port))
        details: dict[str, Any] = {"attempts": progress.attempts, "safe_to_retry": True}
        if self.hop is not None and self.hop.proxy is not None:
            stream = yield from self._pass(self.hop, self.hop.proxy, target, context, details)
            return self._connection(stream, key, target)
        try:
            stream = yield connect(
                target.host,
                None if "unix_socket" in options else target.port,
                ssl_options=context,
                server_hostname=target.host.partition("%")[0] if context is not None else None,
                source_ip=options.get("network_interface"),
                progress=progress,
                **self._connect_options(),
            )
        except ResolveError as error:
            raise HTTPResolveError(str(error), **details) from error
        except ssl.SSLError as error:
            raise HTTPTLSError(explain(error, place), **details) from error
        except (ConnectError, StreamClosedError) as error:
            if progress.phase == "tls":
                raise HTTPTLSError(explain(error, place), **details) from error
            raise HTTPConnectError(str(error), **details) from error
        return self._connection(stream, key, target)

    def _connection(self, stream: IOStream, key: Hashable, target: Target) -> HTTPConnection:
        client = self.client
        return client._pool.opened(
            HTTPConnection(stream, key, client.max_header_size, target.origin, client.max_headers)
        )

    def _connect_options(self) -> dict[str, Any]:
        """Return what was asked for of the connection itself, by ``connect``'s names."""
        given = {name: self.options[name] for name in CONNECT_OPTIONS if name in self.options}
        if given.pop("allow_ipv6", True) is False:
            given.setdefault("af", AF_INET)
        return {"resolver": self.client._resolver, **given}

    def _pass(
        self,
        hop: Hop,
        proxy: Proxy,
        target: Target,
        context: ssl.SSLContext | None,
        details: dict[str, Any],
    ) -> Generator[Any, Any, IOStream]:
        """Open a connection through a proxy."""
        options = self.options
        connecting = self._connect_options()
        passage = Passage(
            proxy,
            target,
            proxy_context=hop.proxy_context(),
            context=context,
            progress=self.progress,
            memory=self.client._digests,
            max_header_bytes=self.client.max_header_size,
            user_agent=options["user_agent"],
            authorization=hop.connect_authorization,
            trace=hop.trace,
            details=details,
            resolver=connecting.pop("resolver"),
            options={"source_ip": options.get("network_interface"), **connecting},
        )
        stream: IOStream = yield from passage.open()
        return stream

    def _timed_out(self) -> HTTPTimeoutError:
        """Say which limit it was, by the phase in which it came."""
        phase = self.progress.phase
        target = self.target
        place = format_address((target.host, target.port))
        if phase in ("queue", "dns", "connect", "proxy", "tls"):
            details: dict[str, Any] = {
                "phase": phase,
                "attempts": self.progress.attempts,
                "safe_to_retry": True,
            }
            until = self.until
            kind: type[HTTPTimeoutError] = (
                QueueTimeoutError if phase == "queue" else ConnectTimeoutError
            )
            # Where the queue has no limit of its own, it has the smaller of the two others.
            if (phase != "queue" or "queue_timeout" in self.options) and (
                until is None or (self.deadline is not None and self.deadline < until)
            ):
                kind = TotalTimeoutError
            reason = timeout_message(phase, target.host, target.port)
            if phase == "queue":
                reason = "Timeout in request queue"
            elif phase == "proxy" and self.hop is not None:
                reason = f"Timeout while connecting to {place} by the proxy {self.hop.proxy}"
            return kind(reason, **details)
        details = self.details
        slow = self.options["write_timeout"]
        if phase == "send" and slow is not None and not self._is_over():
            return WriteTimeoutError(f"Timeout: {place} took nothing for {slow:g} s", **details)
        idle = self.options["inactivity_timeout"]
        if idle is not None and not self._is_over():
            return ReadTimeoutError(f"Timeout: {place} sent nothing for {idle:g} s", **details)
        return TotalTimeoutError("Timeout during request", **details)

    def _is_over(self) -> bool:
        """Whether the time of the whole fetch is over."""
        return self.deadline is not None and self.client.io_loop.time() >= self.deadline


def _discarder(head: ResponseHead) -> Sink:
    """Return what takes a body that nobody asked for, while that is cheaper than a new connection.

    Raises:
        _EnoughError: it is not; here at once, or when too much of it has come.
    """
    left = MAX_DISCARDED

    def discard(piece: bytes) -> Generator[Any, Any, None]:
        nonlocal left
        left -= len(piece)
        if left < 0:
            raise _EnoughError
        yield from ()

    if head.content_length is not None and head.content_length > left:
        raise _EnoughError
    return discard


def _call_back(
    callback: Callable[[HTTPResponse], Any], way: _Fetch, task: Task[HTTPResponse]
) -> Any:
    """Tell the caller's callback how a fetch ended."""
    if task.cancelled():
        return None
    error = task.exception()
    if error is None:
        return callback(task.result())
    response = getattr(error, "response", None)
    return callback(way.failure(error) if response is None else response)


@overload
def fetch(
    request: str, raise_error: Literal[True] = True, *, stream: Literal[True], **kwargs: Any
) -> Task[StreamedResponse]: ...
@overload
def fetch(
    request: str | HTTPRequest, raise_error: bool = True, **kwargs: Any
) -> Task[HTTPResponse]: ...
@coroutine
def fetch(
    request: str | HTTPRequest, raise_error: bool = True, **kwargs: Any
) -> Generator[Any, Any, Any]:
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
        try:
            self._client = self._loop.run_sync(lambda: _make_client(settings))
        except BaseException:
            self._loop.close()
            raise
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
