"""``connect``: resolver, connector, stream and TLS together; ``TCPClient``: its older name.

A connect is one task, whatever it goes through; beside it there are only the look-ups. What the
caller gets is not that task but a ``Handover``, a future that follows it: if the caller is
cancelled when the stream stands but has not reached him, nobody else knows of the stream, and the
future closes it.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar

from coro.connector import ATTEMPT_DELAY, Address, connect_first
from coro.errors import (
    Attempt,
    ConnectError,
    PhaseTimeoutError,
    StreamClosedError,
    TimeoutError,
    format_address,
)
from coro.future import CANCELLED, DONE, Future
from coro.gen import Task, Timeout, convert_yielded, coroutine, sleep
from coro.loop import IOLoop
from coro.net import AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC
from coro.resolver import (
    Addresses,
    OverrideResolver,
    Overrides,
    Resolver,
    ThreadedResolver,
    ascii_host,
    resolve_literal,
)
from coro.stream import IOStream
from coro.task import cancel_with_inputs
from coro.tcpserver import TCPServer
from coro.tls import TLSOptions, context_for

__all__ = [
    "ConnectProgress",
    "Handover",
    "Seconds",
    "TCPClient",
    "TCPServer",
    "connect",
    "secure",
    "timeout_message",
]

Seconds = float | timedelta | None

# ``(level, name, value)``, as ``socket.setsockopt`` takes them.
SocketOption = tuple[int, int, int | bytes]

# Seconds between tries where a unix socket's queue is full: the first, and the longest.
_UNIX_RETRY = 0.001
_UNIX_LONGEST_RETRY = 0.1


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


def connect(
    host: str | None = None,
    port: int | None = None,
    *,
    af: int = AF_UNSPEC,
    unix_socket: str | bytes | os.PathLike[str] | None = None,
    ssl_options: TLSOptions | bool = None,
    server_hostname: str | None = None,
    tls_half_close: bool = False,
    timeout: Seconds = None,
    resolve_timeout: Seconds = None,
    connect_timeout: Seconds = None,
    tls_timeout: Seconds = None,
    resolver: Resolver | None = None,
    overrides: Overrides | None = None,
    source_ip: str | None = None,
    source_port: int | None = None,
    socket_options: Sequence[SocketOption] = (),
    nodelay: bool = True,
    attempt_delay: float = ATTEMPT_DELAY,
    first_family_count: int = 1,
    max_buffer_size: int | None = None,
    half_open: bool = False,
    progress: ConnectProgress | None = None,
) -> Future[IOStream]:
    """Connect to a host, or to a unix socket; return a future of the stream.

    Cancelled at any point, it leaves no socket, timer or look-up behind. Of a host's addresses the
    first that answers serves (RFC 8305); the stream's ``attempts`` tell of all that were tried, the
    one that serves being the last.

    Arguments:
        host: a name or a literal address. For a unix socket: the name for TLS.
        port: the port's number.
        af: ``socket.AF_INET`` or ``socket.AF_INET6`` for addresses of that family only.
        unix_socket: a path to connect to instead; ``"\\0name"`` in Linux's abstract namespace.
        ssl_options: begin TLS: True for the safe defaults, an ``ssl.SSLContext``, or a dict of
            options.
        server_hostname: the name that the peer's certificate must have; by default the host.
        tls_half_close: let TLS end in one direction at a time (``send_eof``), at some cost.
        timeout: seconds for all of it.
        resolve_timeout: seconds until the first address is known.
        connect_timeout: seconds from there until one of the addresses has answered.
        tls_timeout: seconds for the handshake.
        resolver: turns names into addresses; by default the system's.
        overrides: where hosts are to be found instead, see ``coro.resolver.OverrideResolver``.
        source_ip: local address to connect from.
        source_port: local port to connect from.
        socket_options: ``(level, name, value)`` each, set before the socket is connected.
        nodelay: send small writes at once (TCP_NODELAY).
        attempt_delay: seconds until the next address is tried beside those that are silent, 0.01
            to 2.
        first_family_count: how many addresses of the preferred family are tried before one of the
            other.
        max_buffer_size: the stream's limit, in bytes.
        half_open: let the stream stay open for writing when the peer has ended its direction.
        progress: is told how far it has come.
    Raises:
        ResolveError: (in the future, as all of these) the host has no address.
        ConnectError: no address could be connected to; its ``attempts`` tell why.
        ssl.SSLError: the handshake failed, or the certificate is not trusted.
        StreamClosedError: the peer left in the handshake.
        PhaseTimeoutError: a time was over: a ``TimeoutError`` that tells in which phase, and what
            was tried.
        ValueError: arguments that do not go together or are out of their bounds.
    """
    plan = _Plan(
        host=host,
        port=port,
        af=af,
        unix_socket=None if unix_socket is None else os.fspath(unix_socket),
        tls=ssl_options is not None and ssl_options is not False,
        ssl_options=None if isinstance(ssl_options, bool) else ssl_options,
        server_hostname=server_hostname,
        tls_half_close=tls_half_close,
        timeout=timeout,
        phase_timeouts={"dns": resolve_timeout, "connect": connect_timeout, "tls": tls_timeout},
        resolver=resolver,
        overrides=overrides,
        source=(source_ip, source_port or 0),
        socket_options=socket_options,
        nodelay=nodelay,
        attempt_delay=attempt_delay,
        first_family_count=first_family_count,
        max_buffer_size=max_buffer_size,
        half_open=half_open,
        progress=_Progress() if progress is None else progress,
    )
    return Handover(lambda handover: _connect(plan, handover))


def timeout_message(phase: str, host: str, port: int) -> str:
    """Say in which phase of a connect the time was over."""
    return _timeout_message(phase, host, format_address((host, port)))


def _timeout_message(phase: str, host: str | None, place: str) -> str:
    if phase == "dns":
        return f"Timeout while resolving {host}"
    if phase == "tls":
        return f"Timeout during TLS handshake with {place}"
    return f"Timeout while connecting to {place}"


_T = TypeVar("_T")


class Handover(Future[_T]):
    """What ``connect`` returns: ends as its task does, and closes a stream that nobody takes.

    Arguments:
        begin: starts the task, which calls ``arrive`` with the stream, or whatever else is opened
            and has a ``close``.
    """

    __slots__ = ("_claims", "_task")

    _passes_cancel = True

    # How many wait for what arrives and have not turned out to be cancelled.
    _claims: int
    # Until it has ended.
    _task: Task[None] | None

    def __init__(self, begin: Callable[[Self], Task[None]]) -> None:
        super().__init__(loop=IOLoop.current())
        self._claims = 0
        task = self._task = begin(self)
        task.set_name("connect")
        if task.done():
            self._give_up(task)
        else:
            task._call_when_done(self._give_up)

    def arrive(self, stream: _T) -> None:
        """Take the stream; in the task's last step, so that who waits goes on in the next turn."""
        self._task = None
        self._claims = (self._waiter is not None) + len(self._others or ())
        self._settle(stream)

    def _give_up(self, task: Task[None]) -> None:
        """The task has ended; unless the stream has arrived, it failed."""
        if not self.done():
            self._task = None
            self._settle_as(task)

    def cancel(self, msg: Any = None) -> bool:
        """Give up; what it has opened is closed."""
        if self.done():
            return False
        self._check_thread()
        cancel_with_inputs(self, msg)
        return True

    def _pass_cancel(self, msg: Any) -> Sequence[Future[Any]] | None:
        task = self._task
        if task is not None and not task.done():
            return (task,)
        # It failed in this very turn, of which who waits will not be told any more.
        if task is not None and not task.cancelled():
            task.exception()
        self._task = None
        super().cancel(msg)
        return None

    def _unclaimed(self) -> None:
        self._claims -= 1
        if self._claims <= 0 and self._state == DONE:
            stream: Any = self._value
            self._value = None
            self._state = CANCELLED
            stream.close()

    def _inputs(self) -> Sequence[tuple[str, Any]]:
        return () if self._task is None else (("", self._task),)


@coroutine
def _connect(plan: _Plan, handover: Handover[IOStream]) -> Generator[Any, Any, None]:
    try:
        stream = yield from plan.run()
        handover.arrive(stream)
    finally:
        # This frame stands in the traceback of an error that the future holds.
        del handover


@dataclass
class _Plan:
    """One connect: what was asked for, and the steps that lead there."""

    host: str | None
    port: int | None
    af: int
    unix_socket: str | bytes | None
    tls: bool
    ssl_options: TLSOptions
    server_hostname: str | None
    tls_half_close: bool
    timeout: Seconds
    phase_timeouts: dict[str, Seconds]
    resolver: Resolver | None
    overrides: Overrides | None
    source: tuple[str | None, int]
    socket_options: Sequence[SocketOption]
    nodelay: bool
    attempt_delay: float
    first_family_count: int
    max_buffer_size: int | None
    half_open: bool
    progress: ConnectProgress

    def run(self) -> Generator[Any, Any, IOStream]:
        """Connect, and shake hands if that is asked for."""
        self._loop: IOLoop = IOLoop.current()
        self._attempts: list[Attempt] = []
        self._place = self._check()
        if self.tls:
            # First of all: options that make no sense need no connection.
            self._context = context_for(self.ssl_options, server_side=False)
            self._server_name = _server_name(self.server_hostname or self.host)
            if self._server_name is None and self._context.check_hostname:
                raise ValueError("TLS checks the peer's name: give a host or a server_hostname")
        self._deadline = self._after(self.timeout)
        self._limit = Timeout(self._deadline)
        try:
            with self._limit:
                if self.unix_socket is not None:
                    stream = yield from self._connect_unix(self.unix_socket)
                else:
                    stream = yield from self._connect_host()
                self.progress.connected = self._loop.time()
                stream.half_open = self.half_open
                if self.tls:
                    stream = yield from self._secure(stream)
                return stream
        except TimeoutError as error:
            if not self._limit.expired():
                raise
            phase = self.progress.phase
            message = _timeout_message(phase, self.host, self._place)
            raise PhaseTimeoutError(message, phase, self._attempts) from error

    def _check(self) -> str:
        """Refuse what makes no sense; return where it goes, for people."""
        if self.unix_socket is not None:
            if self.port is not None:
                raise ValueError("connect to a port or to a unix_socket, not to both")
            if self.source != (None, 0):
                raise ValueError("a unix_socket is connected to from no source_ip or source_port")
            return format_address(os.fsdecode(self.unix_socket))
        if self.host is None or self.port is None:
            raise ValueError("connect needs a host and a port, or a unix_socket")
        return format_address((self.host, self.port))

    def _after(self, seconds: Seconds) -> float | None:
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        return None if seconds is None else self._loop.time() + seconds

    def _enter(self, phase: str) -> None:
        """Begin a phase, and with it its time limit."""
        self.progress.phase = phase
        ends = (self._deadline, self._after(self.phase_timeouts[phase]))
        deadline = min((end for end in ends if end is not None), default=None)
        if deadline != self._limit.when():
            self._limit.reschedule(deadline)

    # --- TCP -------------------------------------------------------------------------------

    def _connect_host(self) -> Generator[Any, Any, IOStream]:
        """Look the host up, and run the race."""
        self._enter("dns")
        stream = yield from connect_first(
            self._place,
            self._look_up(),
            self._begin,
            self._on_resolved,
            self._attempts,
            self.attempt_delay,
            self.first_family_count,
        )
        stream.set_nodelay(self.nodelay)
        return stream

    def _look_up(self) -> dict[int, Future[Addresses]]:
        """Begin the look-ups: by family, side by side; none for a literal address."""
        host, port, af, resolver = self.host, self.port, self.af, self.resolver
        assert host is not None
        assert port is not None
        source = self.source[0]
        if source is not None:
            # Not left to bind(), which would look a name up, and block the loop meanwhile.
            local = resolve_literal(self._loop.network, source, 0, AF_UNSPEC)
            if local is None:
                raise ValueError(f"source_ip has to be an address of this host, not {source!r}")
            if af == AF_UNSPEC:
                af = local[0][0]
        if resolver is None and not self.overrides:
            literal = resolve_literal(self._loop.network, ascii_host(host), port, af)
            if literal is not None:
                known: Future[Addresses] = Future(loop=self._loop)
                known.set_result(literal)
                return {af: known}
        if resolver is None:
            resolver = _system_resolver
        if self.overrides:
            resolver = OverrideResolver(resolver, self.overrides)
        families = (AF_INET6, AF_INET) if af == AF_UNSPEC else (af,)
        return {each: convert_yielded(resolver.resolve(host, port, each)) for each in families}

    def _on_resolved(self) -> None:
        self.progress.resolved = self._loop.time()
        self._enter("connect")

    def _begin(self, address: Address) -> Future[IOStream]:
        """Begin to connect to one of the addresses."""
        family, where = address
        stream = self._new_stream(family)
        try:
            if self.source != (None, 0):
                if self.source[1]:
                    # Several attempts at once may come from one port.
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                stream.socket.bind((self.source[0] or "", self.source[1]))
            return stream.connect(where)
        except BaseException:
            stream.close()
            raise

    def _new_stream(self, family: int) -> IOStream:
        sock = self._loop.network.socket(family)
        try:
            for option in self.socket_options:
                sock.setsockopt(*option)
        except BaseException:
            sock.close()
            raise
        return IOStream(sock, max_buffer_size=self.max_buffer_size)

    # --- unix sockets ----------------------------------------------------------------------

    def _connect_unix(self, path: str | bytes) -> Generator[Any, Any, IOStream]:
        """Connect to a unix socket.

        That takes no time; only where the listener's queue is full, the system says that it should
        be tried again, and gives no sign when.
        """
        self._enter("connect")
        began = self._loop.time()
        stream = self._new_stream(AF_UNIX)
        error: BaseException | None = None
        wait = _UNIX_RETRY
        try:
            while True:
                try:
                    stream.socket.connect(path)
                    break
                except (BlockingIOError, InterruptedError):
                    yield sleep(wait)
                    wait = min(2 * wait, _UNIX_LONGEST_RETRY)
        except BaseException as caught:
            stream.close()
            if not isinstance(caught, OSError):
                raise
            error = caught.with_traceback(None)
        finally:
            where = os.fsdecode(path)
            self._attempts.append(Attempt(where, error, self._loop.time() - began))
        if error is not None:
            message = f"cannot connect to {self._attempts[0]}"
            raise ConnectError(message, self._attempts) from error
        stream.attempts = self._attempts
        return stream

    # --- TLS -------------------------------------------------------------------------------

    def _secure(self, stream: IOStream) -> Generator[Any, Any, IOStream]:
        """Begin TLS on a stream that was just connected."""
        self._enter("tls")
        secured = yield from secure(
            stream, self._context, self._server_name, self._place, self.tls_half_close
        )
        self.progress.secured = self._loop.time()
        return secured


def secure(
    stream: IOStream,
    context: ssl.SSLContext,
    server_name: str | None,
    place: str,
    half_close: bool = False,
) -> Generator[Any, Any, IOStream]:
    """Begin TLS as a client; the stream is closed if that fails or is cancelled.

    Arguments:
        stream: an idle one.
        context: what is asked of the peer.
        server_name: the name or address that it must prove.
        place: who it is, for people.
        half_close: as for ``connect``.
    Returns:
        The stream that takes the place of the other.
    """
    handshake: Any = None
    more = {"half_close": True} if half_close else {}
    try:
        handshake = stream.start_tls(False, context, server_name, **more)
        secured: IOStream = yield handshake
    except BaseException as error:
        # Also where it succeeded in the very turn in which this was cancelled.
        (stream if handshake is None else handshake.stream).close()
        if isinstance(error, ssl.SSLError | StreamClosedError):
            error.add_note(f"in the TLS handshake with {place}")
        raise
    finally:
        # The future may hold an error, whose traceback leads to this frame.
        del handshake
    return secured


def _server_name(host: str | None) -> str | None:
    """Return a host as TLS names and checks it (RFC 6066 section 3): without dot or zone."""
    if host is None:
        return None
    name = ascii_host(host)
    return name.partition("%")[0] if ":" in name else name.removesuffix(".")


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
        timeout: Seconds = None,
    ) -> Future[IOStream]:
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
