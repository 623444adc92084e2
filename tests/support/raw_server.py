"""A TCP server that plays a script, byte by byte, in threads of its own.

A script is a function of one connected, blocking socket; each connection gets a fresh run of it, in
a thread. What a script asserts counts: its error is raised in the test, when the server closes. A
peer that hangs up on a script is no error, for peers that give up are much of what is tested: see
``hangups``. Everything is bounded: a script that waits longer than ``PATIENCE`` for one operation
gets ``TimeoutError``.
"""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeAlias

PATIENCE = 10.0
"""Seconds that a script waits in one socket operation, and that ``close`` waits for a thread."""

Script: TypeAlias = Callable[[socket.socket], object]


class RawServer:
    """Listens on a free loopback port and runs ``script(conn)`` for each connection.

    Arguments:
        script: what to do with a connection; the socket is closed when it returns.
        tls: a server-side context: the script then speaks through TLS.
        host: the loopback address to listen on ("::1" for IPv6).

    Attributes:
        port: where it listens.
        connections: how many connections were accepted.
        hangups: the ``ConnectionError`` or ``ssl.SSLError`` of each peer that left in mid-script.
    """

    def __init__(
        self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.host = host
        self.connections = 0
        self.hangups: list[OSError] = []
        self._script = script
        self._tls = tls
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._closing = False
        self._open: set[socket.socket] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True, name="raw server")
        self._acceptor.start()

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open"
        return f"<RawServer {self.host}:{self.port} {state} connections={self.connections}>"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return (self.host, self.port)

    def url(self, path: str = "/") -> str:
        """Return the URL of a path on this server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self._tls else ''}://{host}:{self.port}{path}"

    def close(self) -> None:
        """End every script, wait for its thread, and raise the first error that a script raised."""
        with self._lock:
            self._closing = True
            still_open = list(self._open)
        for sock in (self._listener, *still_open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        self._acceptor.join(PATIENCE)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        stuck = [t.name for t in (self._acceptor, *self._threads) if t.is_alive()]
        if self._errors:
            raise self._errors[0]
        if stuck:
            raise TimeoutError(f"threads of {self!r} did not end: {stuck}")

    def settle(self) -> None:
        """Wait until the script of each connection so far has ended, and its socket is closed."""
        for thread in list(self._threads):
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closing:
                    conn.close()
                    return
                self._open.add(conn)
                self.connections += 1
            name = f"raw server script {self.connections}"
            thread = threading.Thread(target=self._play, args=(conn,), daemon=True, name=name)
            self._threads.append(thread)
            thread.start()

    def _play(self, conn: socket.socket) -> None:
        raw = conn
        try:
            conn.settimeout(PATIENCE)
            if self._tls is not None:
                conn = self._secure(conn, self._tls)
            self._script(conn)
        except (ConnectionError, ssl.SSLError) as error:
            self.hangups.append(error)
        except BaseException as error:
            if not (self._closing and isinstance(error, OSError)):
                self._errors.append(error)
        finally:
            with self._lock:
                self._open -= {raw, conn}
            conn.close()

    def _secure(self, conn: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        wrapped = tls.wrap_socket(conn, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open.discard(conn)
            self._open.add(wrapped)
            closing = self._closing
        try:
            if not closing:
                wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


def read_until(conn: socket.socket, end: bytes) -> bytes:
    """Return what arrives up to ``end``, read singly so that nothing behind it is taken.

    Raises:
        ConnectionResetError: the peer stopped sending before it.
    """
    received = bytearray()
    while not received.endswith(end):
        byte = conn.recv(1)
        if not byte:
            raise ConnectionResetError(f"the peer stopped after {bytes(received)!r}")
        received += byte
    return bytes(received)


def read_exactly(conn: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes.

    Raises:
        ConnectionResetError: the peer stopped sending before that.
    """
    received = bytearray()
    while len(received) < size:
        piece = conn.recv(size - len(received))
        if not piece:
            raise ConnectionResetError(f"the peer stopped after {len(received)} bytes of {size}")
        received += piece
    return bytes(received)


def read_request(conn: socket.socket) -> bytes:
    """Return one HTTP/1.1 request: the head, and the body if a ``Content-Length`` announces one."""
    head = read_until(conn, b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length:[ \t]*(\d+)", head)
    return head + read_exactly(conn, int(length[1]) if length else 0)


def stay_silent(conn: socket.socket) -> None:
    """Take everything and answer nothing, until the peer leaves (or the test ends)."""
    conn.settimeout(None)
    while conn.recv(65536):
        pass


def answer(*responses: bytes) -> Script:
    """Return a script that gives one response to each request, then closes the connection."""

    def script(conn: socket.socket) -> None:
        for response in responses:
            read_request(conn)
            conn.sendall(response)

    return script
