"""``connect``: resolver, connector, stream and TLS together; ``TCPClient``: its older name."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from datetime import timedelta
from typing import Any, Protocol

from coro.connector import Address, connect_first
from coro.errors import TimeoutError, format_address
from coro.future import Future
from coro.gen import Task, convert_yielded, coroutine
from coro.gen import timeout as time_limit
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6, AF_UNSPEC
from coro.resolver import Addresses, Resolver, ThreadedResolver, resolve_literal
from coro.stream import IOStream
from coro.tls import TLSOptions

__all__ = ["ConnectProgress", "TCPClient", "connect", "timeout_message"]


class ConnectProgress(Protocol):
    """A caller's record that ``connect`` keeps up to date.

    Attributes:
        phase: what is going on: "dns", "connect" or "tls".
        resolved, connected, secured: when each of these ended, in the loop's time.
    """

    phase: str
    resolved: float | None
    connected: float | None
    secured: float | None


class _Progress:
    """The record of a connect whose caller keeps none."""

    phase = "dns"
    resolved: float | None = None
    connected: float | None = None
    secured: float | None = None


# Shared by all loops and threads: its threads are few, and answer to whoever asked.
_system_resolver = ThreadedResolver()


@coroutine
def connect(
    host: str,
    port: int,
    *,
    af: int = AF_UNSPEC,
    ssl_options: TLSOptions | bool = None,
    server_hostname: str | None = None,
    timeout: float | timedelta | None = None,
    resolver: Resolver | None = None,
    source_ip: str | None = None,
    source_port: int | None = None,
    max_buffer_size: int | None = None,
    progress: ConnectProgress | None = None,
) -> Generator[Any, Any, IOStream]:
    """Connect to a host; return the stream.

    Cancelled at any point, it leaves no socket, timer or look-up behind.

    Arguments:
        host: a name or a literal address.
        port: the port's number.
        af: ``socket.AF_INET`` or ``socket.AF_INET6`` for addresses of that family only.
        ssl_options: begin TLS: True for the safe defaults, an ``ssl.SSLContext``, or a dict of
            options.
        server_hostname: the name that the peer's certificate must have; by default the host.
        timeout: seconds for all of it.
        resolver: turns names into addresses; by default the system's.
        source_ip: local address to connect from.
        source_port: local port to connect from.
        max_buffer_size: the stream's limit, in bytes.
        progress: is told how far it has come.
    Raises:
        ResolveError: the host has no address.
        ConnectError: no address could be connected to; its ``attempts`` tell why.
        ssl.SSLError: the handshake failed, or the certificate is not trusted.
        TimeoutError: the time was over; its text tells in which phase.
    """
    record: ConnectProgress = _Progress() if progress is None else progress
    limit = time_limit(timeout)
    try:
        with limit:
            stream = yield from _connect_plain(
                host, port, af, resolver, (source_ip, source_port or 0), max_buffer_size, record
            )
            if ssl_options is not None and ssl_options is not False:
                options = None if ssl_options is True else ssl_options
                stream = yield from _secure(stream, options, server_hostname or host, record)
            return stream
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(timeout_message(record.phase, host, port)) from error


def timeout_message(phase: str, host: str, port: int) -> str:
    """Say in which phase of a connect the time was over."""
    if phase == "dns":
        return f"Timeout while resolving {host}"
    if phase == "tls":
        return f"Timeout during TLS handshake with {format_address((host, port))}"
    return f"Timeout while connecting to {format_address((host, port))}"


def _connect_plain(
    host: str,
    port: int,
    af: int,
    resolver: Resolver | None,
    source: tuple[str | None, int],
    max_buffer_size: int | None,
    record: ConnectProgress,
) -> Generator[Any, Any, IOStream]:
    """Look the host up, and run the race."""
    loop = IOLoop.current()
    if source[0] is not None and af == AF_UNSPEC:
        af = AF_INET6 if ":" in source[0] else AF_INET

    @coroutine
    def begin(address: Address) -> Generator[Any, Any, IOStream]:
        family, where = address
        stream = IOStream(loop.network.socket(family), max_buffer_size=max_buffer_size)
        try:
            if source != (None, 0):
                stream.socket.bind((source[0] or "", source[1]))
            yield stream.connect(where)
        except BaseException:
            stream.close()
            raise
        return stream

    def on_resolved() -> None:
        record.resolved = loop.time()
        record.phase = "connect"

    record.phase = "dns"
    lookups = _look_up(loop, host, port, af, resolver)
    stream: IOStream = yield connect_first(
        format_address((host, port)), lookups, begin, on_resolved
    )
    record.connected = loop.time()
    stream.set_nodelay(True)
    return stream


def _look_up(
    loop: IOLoop, host: str, port: int, af: int, resolver: Resolver | None
) -> dict[int, Future[Addresses]]:
    """Begin the look-ups: by family, side by side; none for a literal address."""
    if resolver is None:
        literal = resolve_literal(loop.network, host, port, af)
        if literal is not None:
            known: Future[Addresses] = Future(loop=loop)
            known.set_result(literal)
            return {af: known}
        resolver = _system_resolver
    families = (AF_INET6, AF_INET) if af == AF_UNSPEC else (af,)
    return {family: convert_yielded(resolver.resolve(host, port, family)) for family in families}


def _secure(
    stream: IOStream, options: TLSOptions, hostname: str, record: ConnectProgress
) -> Generator[Any, Any, IOStream]:
    """Begin TLS on a stream that was just connected."""
    record.phase = "tls"
    try:
        handshake: Any = stream.start_tls(False, options, hostname)
    except BaseException:
        stream.close()
        raise
    try:
        secured: IOStream = yield handshake
    except BaseException:
        # Also when it succeeded in the very turn in which this was cancelled.
        handshake.stream.close()
        raise
    finally:
        # The future may hold an error, whose traceback leads to this frame.
        del handshake
    record.secured = secured.io_loop.time()
    return secured


class TCPClient:
    """Connects to hosts: ``stream = yield TCPClient().connect("example.com", 80)``.

    Arguments:
        resolver: turns names into addresses; by default the system's.
    """

    def __init__(self, resolver: Resolver | None = None) -> None:
        self.resolver = resolver

    def close(self) -> None:
        """Nothing is held; a resolver that was given belongs to its giver."""

    def connect(
        self,
        host: str,
        port: int,
        af: int = AF_UNSPEC,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        max_buffer_size: int | None = None,
        source_ip: str | None = None,
        source_port: int | None = None,
        timeout: float | timedelta | None = None,
    ) -> Task[IOStream]:
        """Connect to a host; see ``connect``."""
        return connect(
            host,
            port,
            af=af,
            ssl_options=ssl_options,
            max_buffer_size=max_buffer_size,
            source_ip=source_ip,
            source_port=source_port,
            timeout=timeout,
            resolver=self.resolver,
        )
