"""The only room that touches ``select`` and ``socket``: poller, waker, sockets, ``getaddrinfo``.

A loop is handed a ``Network`` and reaches the outside world through it alone, so that a simulation
takes its place whole. Streams and connectors then work with the socket objects that it gave them.

Events are bit masks with epoll's numbers (``READ``, ``WRITE``, ``ERROR``). ``EpollPoller`` passes
them through; ``SelectorPoller`` translates for systems without epoll.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

__all__ = [
    "AF_INET",
    "AF_INET6",
    "AF_UNSPEC",
    "ERROR",
    "READ",
    "WRITE",
    "EpollPoller",
    "GAIError",
    "Network",
    "Poller",
    "SelectorPoller",
    "SocketAddress",
    "Waker",
]

READ = 0x001
WRITE = 0x004
ERROR = 0x008 | 0x010

AF_INET = socket.AF_INET
AF_INET6 = socket.AF_INET6
AF_UNIX = socket.AF_UNIX
AF_UNSPEC = socket.AF_UNSPEC

GAIError = socket.gaierror

SocketAddress: TypeAlias = tuple[Any, ...] | str


class Poller(Protocol):
    """Waits for events on descriptors; level-triggered."""

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor; OSError if it is watched already or cannot be."""

    def modify(self, fd: int, events: int) -> None:
        """Change what a watched descriptor is watched for."""

    def unregister(self, fd: int) -> None:
        """Watch it no longer; OSError or KeyError if it is not watched (it may be closed)."""

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait until something happens or ``timeout`` seconds (None: for ever) are over."""

    def close(self) -> None:
        """Give back the poller's own descriptor."""


class EpollPoller:
    """Linux's epoll. The methods that the loop calls every turn are epoll's own, bound once."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.poll = self._epoll.poll

    def close(self) -> None:
        """Give back epoll's descriptor."""
        self._epoll.close()


class SelectorPoller:
    """kqueue, poll or select through the standard library's ``selectors``.

    Arguments:
        selector: the selector to stand on; by default the best the system has.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        self._selector = selector if selector is not None else selectors.DefaultSelector()
        # Descriptors watched for nothing: selectors refuse an empty mask.
        self._idle: set[int] = set()

    @staticmethod
    def _to_selector(events: int) -> int:
        return (selectors.EVENT_READ if events & READ else 0) | (
            selectors.EVENT_WRITE if events & WRITE else 0
        )

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor."""
        if fd in self._idle or fd in self._selector.get_map():
            raise FileExistsError(errno.EEXIST, f"descriptor {fd} is registered already")
        if wanted := self._to_selector(events):
            self._selector.register(fd, wanted)
        else:
            self._idle.add(fd)

    def modify(self, fd: int, events: int) -> None:
        """Change what a descriptor is watched for."""
        wanted = self._to_selector(events)
        if wanted and fd not in self._idle:
            self._selector.modify(fd, wanted)
        else:
            self.unregister(fd)
            self.register(fd, events)

    def unregister(self, fd: int) -> None:
        """Watch it no longer."""
        if fd in self._idle:
            self._idle.remove(fd)
        else:
            self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for events."""
        if timeout is not None and timeout < 0:
            timeout = 0
        found: list[tuple[int, int]] = []
        for key, mask in self._selector.select(timeout):
            events = (READ if mask & selectors.EVENT_READ else 0) | (
                WRITE if mask & selectors.EVENT_WRITE else 0
            )
            found.append((key.fd, events))
        return found

    def close(self) -> None:
        """Give back the selector's descriptor."""
        self._selector.close()


class Waker:
    """A pair of sockets by which other threads and signals interrupt a poll.

    A socket pair rather than an eventfd: the interpreter writes single bytes to it on a signal
    (``signal.set_wakeup_fd``), which an eventfd refuses.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._reader.fileno()

    def write_fileno(self) -> int:
        """The descriptor that a byte may be written to."""
        return self._writer.fileno()

    def wake(self) -> None:
        """Make it readable, from any thread. A full pipe wakes as well as one more byte."""
        try:
            self._writer.send(b"\0")
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # Closed meanwhile by the loop's own thread: there is nobody to wake.
            pass

    def drain(self) -> None:
        """Make it unreadable again."""
        try:
            while len(self._reader.recv(4096)) == 4096:
                pass
        except (BlockingIOError, InterruptedError):
            pass

    def close(self) -> None:
        """Give back both descriptors."""
        self._reader.close()
        self._writer.close()


class Network:
    """The operating system's network. A simulation implements the same methods."""

    def poller(self) -> Poller:
        """Make a poller: epoll where there is epoll."""
        if hasattr(select, "epoll"):
            return EpollPoller()
        return SelectorPoller()

    def waker(self) -> Waker:
        """Make a waker."""
        return Waker()

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a non-blocking socket."""
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock

    def close_fd(self, fd: int) -> None:
        """Close a bare descriptor."""
        os.close(fd)

    def getaddrinfo(
        self, host: str, port: int, family: int, *, numeric: bool
    ) -> list[tuple[int, SocketAddress]]:
        """Look a host up; blocks, unless ``numeric``.

        Arguments:
            host: a name or a literal address.
            port: put into each address.
            family: ``AF_INET``, ``AF_INET6`` or ``AF_UNSPEC`` for both.
            numeric: take literal addresses only.
        Returns:
            ``(family, address)`` pairs in the system's order of preference (RFC 6724).
        Raises:
            socket.gaierror: there is no such host, or the look-up failed.
        """
        # Without AI_ADDRCONFIG: on a machine that has only its loopback it denies "localhost", and
        # an address that cannot be reached costs the race one failed attempt.
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV if numeric else 0
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags)
        return list(dict.fromkeys((entry[0], entry[4]) for entry in found))


def listening_sockets(
    addresses: Sequence[tuple[int, SocketAddress]], backlog: int = 128
) -> list[socket.socket]:
    """Bind and listen on each ``(family, address)``; non-blocking, closed again if one fails."""
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(backlog)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def set_nodelay(sock: socket.socket, value: bool) -> None:
    """Set TCP_NODELAY on a TCP socket; leave others alone."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)


def socket_error(sock: socket.socket) -> int:
    """Return and clear the pending error of a socket (SO_ERROR); 0 if there is none."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
