"""Simulated TCP sockets, which behave like those of Linux (RFC 9293).

``tests/testing/test_conformance.py`` plays the same scenes on both kinds.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self

from coro.net import AF_INET6, READ, WRITE
from coro.testing.links import Way

if TYPE_CHECKING:
    from coro.testing.network import Host, SimNetwork

__all__ = ["SimSocket", "os_error"]

# Bytes that are under way or wait to be read, in one direction.
BUFFER = 65536

HUP = 0x010
ERR = 0x008

# struct linger: on, no seconds. Whoever sets this resets the connection when he closes it.
_CUT = (1).to_bytes(4, "little") + bytes(4)

# The first bytes of a TLS handshake (RFC 8446 section 5.1).
_TLS_RECORD = b"\x16\x03"


def os_error(number: int) -> OSError:
    """Return the error of a number, as the system would raise it."""
    return OSError(number, os.strerror(number))


class SimSocket:
    """A simulated stream socket, shaped as a non-blocking ``socket.socket``.

    Arguments:
        network: what it is part of.
        family: ``AF_INET`` or ``AF_INET6``.
        host: whose it is.
    """

    def __init__(self, network: SimNetwork, family: int, host: Host) -> None:
        self.family, self.type, self.proto = family, socket.SOCK_STREAM, 0
        self._network = network
        self.host = host
        self._local: tuple[Any, ...] | None = None
        self._remote: tuple[Any, ...] | None = None
        self._peer: SimSocket | None = None
        # "new", "listening", "connecting", "connected", "dead" (reset or refused), "closed".
        self.state = "new"
        self._received = bytearray()
        # Bytes that are on their way to the peer, and whether the sender waits for room.
        self._flying = 0
        self._blocked = False
        # The peer sends no more; this side sends no more.
        self._ended = self._shut = False
        self._error = 0
        # Whether a second ``connect`` has heard that the first one was successful.
        self._told = False
        # Of a listening socket: who waits to be accepted, and how many may.
        self.waiting: deque[SimSocket] = deque()
        self.backlog = 0
        # For the log: the connection's number and this side's arrow, and whether it speaks TLS.
        self.name = ""
        self._secret = False
        self.way: Way | None = None
        self._options: dict[tuple[int, int], Any] = {}
        self._fd = -1

    def __repr__(self) -> str:
        return f"<SimSocket fd={self._fd} {self.state} {self._local} {self._remote}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def open(self) -> None:
        """Take a descriptor.

        Raises:
            OSError: EMFILE: the host has as many open as it may.
        """
        self._fd = self._network.new_fd(self)

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError("a simulated socket does not block")

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        self._check_open()
        self._options[level, name] = value

    def getsockopt(self, level: int, name: int, size: int = 0) -> Any:
        self._check_open()
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR):
            number, self._error = self._error, 0
            return number
        return self._options.get((level, name), 0)

    # --- readiness -------------------------------------------------------------------------

    def mask(self) -> int:
        """Return epoll's events, all that stand."""
        state = self.state
        if state == "listening":
            return READ if self.waiting else 0
        if state == "connecting":
            return 0
        if state == "new":
            return WRITE | HUP
        if state != "connected":
            return READ | WRITE | HUP | (ERR if self._error else 0)
        found = READ if self._received or self._ended else 0
        if self._shut or self._room():
            found |= WRITE
        return found | (HUP if self._ended and self._shut else 0)

    def _room(self) -> int:
        peer = self._peer
        return 0 if peer is None else max(0, BUFFER - len(peer._received) - self._flying)

    def _touch(self) -> None:
        """Something changed that a poller may wait for."""
        self._network.touched[self._fd] = None

    def _check_open(self) -> None:
        if self._fd < 0:
            raise os_error(errno.EBADF)

    def _check(self) -> None:
        self._check_open()
        if self._error:
            number, self._error = self._error, 0
            raise os_error(number)

    # --- listening -------------------------------------------------------------------------

    def bind(self, address: tuple[Any, ...]) -> None:
        self._check_open()
        if self._local is not None:
            raise os_error(errno.EINVAL)
        network, name = self._network, address[0]
        if name and not ip_address(name).is_unspecified and not ip_address(name).is_loopback:
            if network.host_at(name) is not self.host:
                raise os_error(errno.EADDRNOTAVAIL)
        port = address[1] or network.new_port(self.host)
        if (self.family, port) in self.host.listeners:
            raise os_error(errno.EADDRINUSE)
        anywhere = "::" if self.family == AF_INET6 else "0.0.0.0"
        self._local = network.address(self.family, name or anywhere, port)

    def listen(self, backlog: int = 128) -> None:
        self._check_open()
        if self._local is None:
            self.bind(("", 0))
        assert self._local is not None
        key = (self.family, self._local[1])
        if self.host.listeners.get(key, self) is not self:
            raise os_error(errno.EADDRINUSE)
        self.state, self.backlog = "listening", backlog
        self.host.listeners[key] = self

    def accept(self) -> tuple[SimSocket, tuple[Any, ...]]:
        self._check_open()
        if self.state != "listening":
            raise os_error(errno.EINVAL)
        if not self.waiting:
            raise os_error(errno.EAGAIN)
        self.waiting[0].open()
        accepted = self.waiting.popleft()
        assert accepted._remote is not None
        return accepted, accepted._remote

    # --- connecting ------------------------------------------------------------------------

    def connect(self, address: tuple[Any, ...]) -> None:
        self._check_open()
        if self.state == "connecting":
            raise os_error(errno.EALREADY)
        if self.state == "connected":
            if self._told:
                raise os_error(errno.EISCONN)
            self._told = True
            return
        if self.state == "dead":
            self._check()
            raise os_error(errno.ECONNABORTED)
        self._network.begin_connect(self, address)
        raise os_error(errno.EINPROGRESS)

    def connect_ex(self, address: tuple[Any, ...]) -> int:
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or 0
        return 0

    def begin(self, number: int, address: tuple[Any, ...], local: str) -> None:
        """The handshake begins."""
        network = self._network
        if self._local is None:
            self._local = network.address(self.family, local, network.new_port(self.host))
        self._remote = network.address(self.family, *address[:2])
        self.state = "connecting"
        self.name = f"#{number} >"

    def meet(self, listener: SimSocket, seed: str) -> None:
        """The handshake is done: make the other end, and let it wait to be accepted."""
        other = SimSocket(self._network, self.family, listener.host)
        other.way = Way(f"{seed} back")
        other.name = self.name.replace(">", "<")
        other._local, other._remote = self._remote, self._local
        other._peer, self._peer = self, other
        other._told = True
        other.state = self.state = "connected"
        listener.waiting.append(other)
        self._touch()
        listener._touch()

    # --- bytes -----------------------------------------------------------------------------

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._check_open()
        received = self._received
        if not received:
            if self._ended:
                return b""
            self._check()
            if self.state in ("dead", "closed"):
                return b""
            raise os_error(errno.ENOTCONN if self.state == "new" else errno.EAGAIN)
        data = bytes(received[:size])
        if not flags & socket.MSG_PEEK:
            del received[:size]
            peer = self._peer
            if peer is not None and peer._blocked:
                peer._blocked = False
                self._network.carry(self, peer, peer._touch)
        return data

    def recv_into(self, target: Any, size: int = 0) -> int:
        data = self.recv(size or len(target))
        target[: len(data)] = data
        return len(data)

    def send(self, data: Any) -> int:
        self._check()
        if self._shut or self.state == "dead":
            raise os_error(errno.EPIPE)
        if self.state != "connected":
            raise os_error(errno.EAGAIN if self.state == "connecting" else errno.EPIPE)
        data = bytes(data)
        taken = min(len(data), self._room())
        if taken < len(data):
            self._blocked = True
            if not taken:
                raise os_error(errno.EAGAIN)
            data = data[:taken]
        peer, way = self._peer, self.way
        assert peer is not None
        assert way is not None
        if data.startswith(_TLS_RECORD):
            self._secret = peer._secret = True
        self._network.trace.add(self.name, "TLS" if self._secret else f"{taken} bytes")
        self._flying += taken
        cut = way.cut()
        first, rest = (data, b"") if cut is None else (data[:cut], data[cut:])
        self._network.carry(self, peer, lambda: self._arrive(peer, first), len(first))
        # There is always a second part, for the numbers that it draws.
        later = None if not rest else lambda: self._arrive(peer, rest)
        self._network.carry(self, peer, later, len(rest))
        return taken

    def sendmsg(self, pieces: Any) -> int:
        return self.send(b"".join(pieces))

    def _arrive(self, peer: SimSocket, data: bytes) -> None:
        """Bytes have come to the other end."""
        self._flying -= len(data)
        if peer.state == "connected":
            peer._received += data
            peer._touch()
        elif peer.state == "closed":
            self._network.carry(
                peer, self, lambda: self.fail(errno.EPIPE if self._ended else errno.ECONNRESET)
            )

    def shutdown(self, how: int) -> None:
        self._check_open()
        if self.state != "connected" or self._peer is None:
            raise os_error(errno.ENOTCONN)
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._ended = True
            self._touch()
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not self._shut:
            self._shut = True
            self._touch()
            self._network.trace.add(self.name, "end")
            self._network.carry(self, self._peer, self._peer.end)

    # --- the end ---------------------------------------------------------------------------

    def end(self) -> None:
        """The other side sends no more."""
        if self.state == "connected":
            self._ended = True
            self._touch()

    def fail(self, number: int) -> None:
        """Be reset, or refused."""
        if self.state in ("connected", "connecting"):
            self.state, self._error = "dead", number
            self._touch()

    def drop(self) -> None:
        """Reset both sides."""
        self.fail(errno.ECONNRESET)
        if self._peer is not None:
            self._peer.fail(errno.ECONNRESET)

    def lose(self) -> None:
        """The host was gone: nothing is known of the connection any longer."""
        self.fail(errno.ECONNRESET)
        self.state = "closed"

    def is_between(self, a: str, b: str) -> bool:
        """Whether it goes from one host to the other."""
        return self.host.name == a and self._peer is not None and self._peer.host.name == b

    def close(self) -> None:
        if self._fd < 0:
            return
        self._network.forget_fd(self)
        self._fd = -1
        state, self.state = self.state, "closed"
        if state == "listening":
            assert self._local is not None
            del self.host.listeners[self.family, self._local[1]]
            for sock in self.waiting:
                sock.state = "closed"
                sock._reset_peer()
            self.waiting.clear()
        elif state == "connected":
            peer = self._peer
            assert peer is not None
            cut = self._options.get((socket.SOL_SOCKET, socket.SO_LINGER)) == _CUT
            if self._received or cut:
                self._received.clear()
                self._reset_peer()
            elif not self._shut:
                self._network.trace.add(self.name, "end")
                self._network.carry(self, peer, peer.end)
        if self._peer is None or self._peer.state == "closed":
            self._part()

    def _part(self) -> None:
        """Both sides are closed: they need not refer to each other any longer."""
        peer, self._peer = self._peer, None
        if peer is not None:
            peer._peer = None

    def _reset_peer(self) -> None:
        peer = self._peer
        assert peer is not None
        self._network.trace.add(self.name, "reset")
        self._network.carry(self, peer, lambda: peer.fail(errno.ECONNRESET))

    def detach(self) -> int:
        raise OSError(errno.EOPNOTSUPP, "a simulated socket has no descriptor of the system")

    def getsockname(self) -> tuple[Any, ...]:
        self._check_open()
        anywhere = "::" if self.family == AF_INET6 else "0.0.0.0"
        return self._local or self._network.address(self.family, anywhere, 0)

    def getpeername(self) -> tuple[Any, ...]:
        self._check_open()
        if self.state != "connected" or self._remote is None:
            raise os_error(errno.ENOTCONN)
        return self._remote
