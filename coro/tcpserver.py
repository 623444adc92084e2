"""``TCPServer``: listening sockets, and what becomes of the connections that they accept.

A connection is held from ``accept`` until its stream is closed (or forgotten by everybody) and the
handler has ended, whichever comes last. So much counts against ``max_connections``, and so much
``shutdown`` waits for. The server refers to a stream weakly: whoever serves it holds it.

A listener is watched, or it rests. It rests while the server has as many connections as it may, and
for a while after ``accept`` failed for want of descriptors or memory: otherwise a level-triggered
poller would tell in every turn of a connection that nobody can take. The pause doubles from try to
try, and the log tells of the first, until all who waited have been accepted.

Processes. After ``bind(port)`` and ``start(n)`` the workers share the parent's listening sockets:
no connection is lost when a worker dies, but the kernel wakes whom it likes. With ``bind(port,
reuse_port=True)`` each worker listens on a socket of its own, and the kernel spreads connections
evenly; those that a worker has not accepted when it ends are reset. The parent then only holds the
port, without listening. Unix sockets are always shared.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import weakref
from collections.abc import Callable, Generator, Iterable
from contextvars import copy_context
from datetime import timedelta
from typing import Any

from coro.errors import TimeoutError, format_address
from coro.future import Future, slot
from coro.gen import convert_yielded, coroutine, current_task, timeout
from coro.loop import IOLoop
from coro.net import AF_UNSPEC, DEFAULT_BACKLOG, READ, Network, bind_socket
from coro.process import fork_processes
from coro.stream import IOStream
from coro.timers import Timer
from coro.tls import TLSOptions, context_for

__all__ = ["TCPServer"]

_log = logging.getLogger("coro.general")
_app_log = logging.getLogger("coro.application")

Seconds = float | timedelta | None

# How many connections one wake-up of a listener accepts.
ACCEPT_BATCH = 64

# How many that wait are accepted before a server shuts down; Linux lets no more wait.
LARGEST_BACKLOG = 4096

# Seconds for which a listener rests when descriptors or memory are used up: at first, at most.
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0

HANDSHAKE_TIMEOUT = 60.0

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# The listening socket itself is no longer one.
_BROKEN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})


class TCPServer:
    """Accepts connections and hands each to ``handle_stream``; subclasses define that.

    ``listen(port)`` is all that a server in one process needs. Several processes share a port by
    ``bind(port)`` and ``start(n)``, before any loop runs. For other sockets, as those of
    ``coro.net.bind_sockets`` and ``coro.net.bind_unix_socket``, there is ``add_sockets``.

    Arguments:
        ssl_options: serve TLS: an ``ssl.SSLContext``, or a dict of options (``certfile``, ...).
        max_buffer_size: of each stream, see ``coro.stream.IOStream``.
        read_chunk_size: of each stream.
        half_open: of each stream: stay open for writing when the client has ended its direction.
        max_connections: stop accepting while there are so many; None: no limit.
        handshake_timeout: seconds that a client has for the TLS handshake.
    Raises:
        ValueError: the options make no sense.
        OSError: a certificate cannot be loaded.
    """

    def __init__(
        self,
        ssl_options: TLSOptions = None,
        max_buffer_size: int | None = None,
        read_chunk_size: int | None = None,
        *,
        half_open: bool = False,
        max_connections: int | None = None,
        handshake_timeout: Seconds = HANDSHAKE_TIMEOUT,
    ) -> None:
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections is at least 1, not {max_connections!r}")
        self.ssl_options = ssl_options
        self.max_buffer_size = max_buffer_size
        self.read_chunk_size = read_chunk_size
        self.half_open = half_open
        self.max_connections = max_connections
        self.handshake_timeout = handshake_timeout
        # One for all connections: so TLS sessions can be resumed, and mistakes show at once.
        self._context = None if ssl_options is None else context_for(ssl_options, server_side=True)
        self._listeners: list[_Listener] = []
        # A dict for its order: they are closed in the order in which they came.
        self._connections: dict[_Connection, None] = {}
        # Sockets of ``bind`` until ``start``, each with the backlog that it has yet to listen with.
        self._bound: list[tuple[socket.socket, int | None]] = []
        # Who waits in ``shutdown`` for the last connection.
        self._waiting: list[Future[None]] = []
        self._accepted = self._failed_handshakes = self._failed_accepts = 0

    def __repr__(self) -> str:
        places = ", ".join(each.place for each in self._listeners)
        parts = [f"listening on {places}" if places else "not listening"]
        limit = "" if self.max_connections is None else f"/{self.max_connections}"
        parts.append(f"connections={len(self._connections)}{limit}")
        if any(each.pause is not None for each in self._listeners):
            parts.append("out of descriptors or memory")
        elif self._full():
            parts.append("full")
        return f"<{type(self).__name__} {' '.join(parts)}>"

    # --- listening -------------------------------------------------------------------------

    def listen(
        self,
        port: int,
        address: str | None = None,
        family: int = AF_UNSPEC,
        backlog: int = DEFAULT_BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Accept connections on a port, on the current loop; see ``coro.net.bind_sockets``.

        May be called more than once, for several ports.

        Raises:
            OSError: the port is in use, or may not be bound.
        """
        network: Network = _loop().network
        self.add_sockets(network.bind_sockets(port, address, family, backlog, flags, reuse_port))

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on listening sockets, on the current loop; ``stop`` closes them."""
        for sock in sockets:
            self.add_socket(sock)

    def add_socket(self, socket: socket.socket) -> None:
        """Accept connections on one listening socket; see ``add_sockets``."""
        loop = _loop()
        listener = _Listener(self, socket, loop)
        socket.setblocking(False)
        self._listeners.append(listener)
        loop._call_on_close(self, self.stop)
        if not self._full():
            listener.watch()

    def bind(
        self,
        port: int,
        address: str | None = None,
        family: int = AF_UNSPEC,
        backlog: int = DEFAULT_BACKLOG,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Bind a port for ``start``; the arguments are those of ``listen``.

        Arguments:
            reuse_port: let each process listen on a socket of its own.
        """
        at_once = None if reuse_port else backlog
        found = Network().bind_sockets(port, address, family, at_once, flags, reuse_port)
        self._bound += [(sock, backlog if reuse_port else None) for sock in found]

    def start(self, num_processes: int | None = 1, max_restarts: int | None = None) -> None:
        """Accept connections on what was bound, in so many processes.

        With more than one, the parent stays in this call as supervisor and leaves it by
        ``SystemExit``; each worker returns from it. See ``coro.process.fork_processes``.

        Arguments:
            num_processes: None or 0: one for each processor.
            max_restarts: how many workers that died are replaced.
        Raises:
            RuntimeError: a loop is running: it cannot be taken along into other processes.
        """
        several = num_processes != 1
        if several:
            try:
                fork_processes(num_processes, max_restarts, on_stop=self._close_bound)
            except BaseException:
                # The parent, when all is over.
                self._close_bound()
                raise
        bound, self._bound = self._bound, []
        for sock, backlog in bound:
            if backlog is not None and several:
                address = sock.getsockname()
                with sock:
                    sock = bind_socket(sock.family, address, backlog, reuse_port=True)
            elif backlog is not None:
                sock.listen(backlog)
            self.add_socket(sock)

    def stop(self) -> None:
        """Stop accepting, and close the listening sockets. Connections go on."""
        self._close_bound()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.loop._forget_on_close(self)
            listener.close()

    def _close_bound(self) -> None:
        bound, self._bound = self._bound, []
        for sock, _ in bound:
            sock.close()

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets: ``server.sockets[0].getsockname()`` is an address."""
        return [each.socket for each in self._listeners]

    # --- connections -----------------------------------------------------------------------

    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        """Serve one connection; to be overridden, as a rule by a coroutine.

        It is called after the TLS handshake. The stream is the handler's to close. If the handler
        fails, the error is logged and the stream closed.

        Arguments:
            stream: the connection.
            address: the client's, as ``socket.accept`` gives it.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no handle_stream")

    def streams(self) -> list[IOStream]:
        """The streams of the connections that are open, those in the TLS handshake left out."""
        found = (each.stream() for each in self._connections if each.handed_over)
        return [stream for stream in found if stream is not None]

    @coroutine
    def shutdown(self, grace: Seconds = None) -> Generator[Any, Any, None]:
        """Stop, after what waits to be accepted; wait until all connections have ended.

        Where there are as many connections as may be, what waits is accepted as these end.

        What has not ended when the time is over is cut: handlers are cancelled and streams closed.
        Then the handlers are waited for again, whatever they do.

        Arguments:
            grace: seconds that handlers have to finish; None: no limit.
        """
        for listener in list(self._listeners):
            listener.drain()
        limit = timeout(grace)
        try:
            with limit:
                yield self._all_ended()
        except TimeoutError:
            if not limit.expired():
                raise
            _log.warning("%r: cutting what did not end within %s s", self, grace)
            self.stop()
            for connection in list(self._connections):
                connection.cut()
            yield self._all_ended()

    def _all_ended(self) -> Future[None]:
        """Return a future that is done when there is no connection, and none waits for a place."""
        future: Future[None] = Future()
        self._waiting.append(future)
        self._tell_if_all_ended()
        return future

    def _tell_if_all_ended(self) -> None:
        if self._connections or any(each.left is not None for each in self._listeners):
            return
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def statistics(self) -> dict[str, int]:
        """Return figures of the server.

        ``connections`` now, and how many were ``accepted`` ever; ``failed_handshakes`` of TLS;
        ``failed_accepts`` for want of descriptors or memory; ``listeners``.
        """
        return {
            "connections": len(self._connections),
            "accepted": self._accepted,
            "failed_handshakes": self._failed_handshakes,
            "failed_accepts": self._failed_accepts,
            "listeners": len(self._listeners),
        }

    def _full(self) -> bool:
        limit = self.max_connections
        return limit is not None and len(self._connections) >= limit

    def _begin(self, accepted: socket.socket, address: Any) -> None:
        """Take charge of an accepted connection."""
        self._accepted += 1
        connection = _Connection(self)
        try:
            stream = IOStream(
                accepted,
                max_buffer_size=self.max_buffer_size,
                read_chunk_size=self.read_chunk_size,
                half_open=self.half_open,
            )
        except BaseException:
            accepted.close()
            raise
        # Else a TLS record may wait until the peer has acknowledged the one before.
        stream.set_nodelay(True)
        connection.take(stream)
        self._connections[connection] = None
        if self._full():
            for listener in self._listeners:
                listener.rest()
        if self._context is None:
            connection.serve(stream, address)
        else:
            self._secure(connection, stream, address)

    @coroutine
    def _secure(
        self, connection: _Connection, stream: IOStream, address: Any
    ) -> Generator[Any, Any, None]:
        """Shake hands, and go on to the handler."""
        connection.follow(current_task())
        try:
            with timeout(self.handshake_timeout):
                secured = yield stream.start_tls(True, self._context)
        except OSError as error:
            self._failed_handshakes += 1
            _log.debug("TLS handshake with %s failed: %s", format_address(address), error)
        else:
            connection.serve(secured, address)

    def _release(self, connection: _Connection) -> None:
        """A connection has ended."""
        full = self._full()
        self._connections.pop(connection, None)
        if full:
            for listener in self._listeners:
                listener.watch()
        if self._waiting:
            self._tell_if_all_ended()

    def _drop(self, listener: _Listener) -> None:
        """A listener has drained its queue."""
        self._listeners.remove(listener)
        if not self._listeners:
            listener.loop._forget_on_close(self)
        listener.close()
        self._tell_if_all_ended()


class _Listener:
    """One listening socket of a server.

    Attributes:
        pause: while it rests because ``accept`` failed, the timer that ends this.
        left: how many connections are still accepted before it is closed; None: it goes on.
    """

    __slots__ = (
        "_run",
        "_seconds",
        "_told",
        "_watched",
        "left",
        "loop",
        "pause",
        "place",
        "server",
        "socket",
    )

    def __init__(self, server: TCPServer, sock: socket.socket, loop: IOLoop) -> None:
        self.server = server
        self.socket = sock
        self.loop = loop
        self.place = format_address(sock.getsockname())
        self.pause: Timer | None = None
        self.left: int | None = None
        # How long the last pause was, since one was accepted; whether it was told, since nobody had
        # to wait: at the limit, one may be accepted now and then.
        self._seconds = 0.0
        self._told = False
        self._watched = False
        # Handlers run in the context of who made the server listen.
        self._run: Callable[..., Any] = copy_context().run

    def watch(self) -> None:
        """Accept what comes, unless a pause has to end first."""
        if not self._watched and self.pause is None:
            self._watched = True
            callback = functools.partial(self._run, self._on_readable)
            self.loop._register(self.socket.fileno(), self.socket, callback, READ)
            if self.left is not None:
                # Its queue may be empty by now, which no event tells.
                self.loop.add_callback(callback, 0)

    def rest(self) -> None:
        """Accept nothing."""
        if self._watched:
            self._watched = False
            self.loop.remove_handler(self.socket)

    def close(self) -> None:
        """Rest for ever."""
        self.rest()
        if self.pause is not None:
            self.loop.remove_timeout(self.pause)
            self.pause = None
        self.socket.close()

    def drain(self) -> None:
        """Accept what waits, and then close; what there is no place for yet waits on."""
        if self.left is not None:
            return
        self.left = LARGEST_BACKLOG
        self._on_readable(0)
        if self not in self.server._listeners:
            return
        # Those who come later need not be waited for.
        queued = self.loop.network.queued(self.socket)
        if queued == 0:
            self.server._drop(self)
        elif queued is not None:
            self.left = queued

    def _on_readable(self, _events: int) -> None:
        # A bounded number: others have to get their turn.
        count = ACCEPT_BATCH if self.left is None else self.left
        for _ in range(count):
            # A handler may have stopped the server, or its connection have been the last one free.
            if not self._watched:
                return
            if not self._accept():
                break
        if self.left is not None and self._watched:
            self.server._drop(self)

    def _accept(self) -> bool:
        """Accept one connection; return whether there may be more."""
        try:
            accepted, address = self.socket.accept()
        except (BlockingIOError, InterruptedError):
            if self._told:
                self._told = False
                _log.info("accepting on %s goes on", self.place)
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause(error)
                return False
            if error.errno in _BROKEN:
                _log.error("%s does not listen any longer: %s", self.place, error)
                if self.left is None:
                    self.rest()
                else:
                    self.server._drop(self)
                return False
            # An error of the connection that was about to be accepted.
            return True
        self._seconds = 0.0
        if self.left is not None:
            self.left -= 1
        self.server._begin(accepted, address)
        return True

    def _pause(self, error: OSError) -> None:
        self.server._failed_accepts += 1
        if not self._told:
            self._told = True
            _log.warning("accepting on %s pauses: %s", self.place, error)
        self._seconds = min(2 * self._seconds or FIRST_PAUSE, LONGEST_PAUSE)
        self.rest()
        self.pause = self.loop.call_later(self._seconds, self._try_again)

    def _try_again(self) -> None:
        self.pause = None
        if not self.server._full():
            self.watch()


class _Connection:
    """One accepted connection of a server: its stream, and its handler if that takes time.

    Attributes:
        handed_over: whether the handler was called.
    """

    __slots__ = ("__weakref__", "_calling", "_handler", "_server", "_stream", "handed_over")

    def __init__(self, server: TCPServer) -> None:
        self._server = server
        self._stream: weakref.ref[IOStream] | None = None
        self._handler: Future[Any] | None = None
        # Whether the handler is being called, so that it is not known yet what it will return.
        self._calling = False
        self.handed_over = False

    def stream(self) -> IOStream | None:
        """Return the stream, if it is not closed or forgotten."""
        return None if self._stream is None else self._stream()

    def take(self, stream: IOStream) -> None:
        """Follow a stream, or the one that it became by TLS."""
        stream._owner = self
        self._stream = weakref.ref(stream, self._forgotten)

    def _forgotten(self, reference: weakref.ref[IOStream]) -> None:
        if reference is self._stream:
            self.stream_closed()

    def stream_closed(self) -> None:
        """The stream is no more."""
        self._stream = None
        self._check()

    def _check(self) -> None:
        if self._stream is None and self._handler is None and not self._calling:
            self._server._release(self)

    def serve(self, stream: IOStream, address: Any) -> None:
        """Call the handler."""
        self.handed_over = self._calling = True
        try:
            result = self._server.handle_stream(stream, address)
            if result is not None:
                self.follow(convert_yielded(result))
        except Exception as error:
            self._fail("Error in connection callback", error)
        finally:
            # This frame stands in the traceback of the handler's error.
            result = None
            self._calling = False
            self._check()

    def follow(self, task: Any) -> None:
        """Hold the task that serves the connection until it is done."""
        self._handler = task
        task.add_done_callback(self._ended)

    def _ended(self, task: Future[Any]) -> None:
        if task is self._handler:
            self._handler = None
        if task.cancelled():
            self._close()
        elif (error := task.exception()) is not None:
            # In the words of the loop, as for each coroutine that is a callback.
            self._fail(f"Exception in callback {self._server.handle_stream!r}", error)
        self._check()

    def _fail(self, what: str, error: BaseException) -> None:
        _app_log.error("%s", what, exc_info=error)
        self._close()

    def _close(self) -> None:
        stream = self.stream()
        if stream is not None:
            stream.close()

    def cut(self) -> None:
        """End it now."""
        if self._handler is not None:
            self._handler.cancel()
        self._close()


def _loop() -> IOLoop:
    loop: IOLoop = slot.running or slot.loop()
    return loop
