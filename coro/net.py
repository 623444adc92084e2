"""The only room that touches ``select`` and ``socket``: poller, waker, sockets, ``getaddrinfo``.

A loop is handed a ``Network`` and reaches the outside world through it alone, so that a simulation
takes its place whole. Streams and connectors then work with the socket objects that it gave them.

Events are bit masks with epoll's numbers (``READ``, ``WRITE``, ``ERROR``). ``EpollPoller`` passes
them through; ``SelectorPoller`` translates for systems without epoll.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import selectors
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from coro.errors import format_address

__all__ = [
    "AF_INET",
    "AF_INET6",
    "AF_UNSPEC",
    "ERROR",
    "READ",
    "SHUT_WR",
    "WRITE",
    "EpollPoller",
    "GAIError",
    "Network",
    "PipeSocket",
    "Poller",
    "SelectorPoller",
    "SocketAddress",
    "UnixListener",
    "Waker",
    "bind_sockets",
    "bind_unix_socket",
]

READ = 0x001
WRITE = 0x004
ERROR = 0x008 | 0x010

AF_INET = socket.AF_INET
AF_INET6 = socket.AF_INET6
AF_UNIX = socket.AF_UNIX
AF_UNSPEC = socket.AF_UNSPEC

SHUT_WR = socket.SHUT_WR

GAIError = socket.gaierror

SocketAddress: TypeAlias = tuple[Any, ...] | str
Sockets: TypeAlias = list[socket.socket]

# Connections that may wait to be accepted.
DEFAULT_BACKLOG = 128

# How many ports that are free for the first address are tried for the others.
_PORT_TRIES = 20

# IPv6 is switched off, or the machine does not have that address of it.
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


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

    def fileno(self) -> int:
        """The poller's own descriptor, which is readable when there are events."""

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
        self.fileno = self._epoll.fileno

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

    def fileno(self) -> int:
        """Return the selector's descriptor; OSError if its kind has none."""
        descriptor = getattr(self._selector, "fileno", None)
        if descriptor is None:
            raise OSError(errno.EOPNOTSUPP, f"{self._selector!r} has no descriptor to wait for")
        return int(descriptor())

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


class PipeSocket:
    """A pipe, FIFO, terminal or other character device, shaped as a socket.

    Arguments:
        fd: the descriptor, owned from now on; left to the caller if it is refused.
    Raises:
        ValueError: it is a file on a disk or a directory, which no poller can wait for.
    """

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
            raise ValueError(f"descriptor {fd} is neither a pipe, a socket nor a character device")
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        self.readable = access != os.O_WRONLY
        self.writable = access != os.O_RDONLY
        self._terminal = os.isatty(fd)
        self._fd = fd
        # What is forgotten is closed, with a ResourceWarning, as a socket is.
        self._owner = io.FileIO(fd)

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._fd

    def setblocking(self, flag: bool) -> None:
        """Set O_NONBLOCK; it belongs to all who share the open pipe, other processes included."""
        os.set_blocking(self._fd, flag)

    def recv(self, size: int) -> bytes:
        """Receive at most ``size`` bytes; none at the end."""
        self._check_readable()
        try:
            return os.read(self._fd, size)
        except OSError as error:
            if not self._is_end(error):
                raise
            return b""

    def recv_into(self, target: memoryview) -> int:
        """Receive into a buffer; return how many bytes, 0 at the end."""
        self._check_readable()
        try:
            return os.readv(self._fd, [target])
        except OSError as error:
            if not self._is_end(error):
                raise
            return 0

    def _check_readable(self) -> None:
        """Raise for a write end: it polls as readable when nobody reads any more, and only then."""
        if not self.readable:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _is_end(self, error: OSError) -> bool:
        """Whether a read failed because the last slave of a pseudo-terminal was closed (Linux)."""
        return self._terminal and error.errno == errno.EIO

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send bytes; return how many were taken."""
        return os.write(self._fd, data)

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Send several pieces with one call; return how many bytes were taken."""
        return os.writev(self._fd, pieces)

    def getpeername(self) -> SocketAddress:
        """Raise: a pipe's other end has no address."""
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))

    def close(self) -> None:
        """Give back the descriptor."""
        self._fd = -1
        self._owner.close()


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

    def bind_sockets(self, *args: Any, **kwargs: Any) -> Sockets:
        """Listen on a port; see the function of that name."""
        return bind_sockets(*args, **kwargs)

    def queued(self, listener: Any) -> int | None:
        """Return how many connections wait to be accepted; None if the system does not tell."""
        if sys.platform != "linux":
            return None
        try:
            told = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        except OSError:  # a unix socket
            return None
        # The field that counts a connection's segments under way (tcpi_unacked); of a listening
        # socket Linux puts this number there.
        return int.from_bytes(told[24:28], sys.byteorder)

    def close_fd(self, fd: int) -> None:
        """Close a bare descriptor."""
        os.close(fd)

    def answer_later(self, ask: Callable[[], Any], host: str) -> bool:
        """Call ``ask`` when a look-up would be over; False if it is to be asked in a thread."""
        return False

    def popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a process; see ``subprocess.Popen``."""
        return subprocess.Popen(*args, **kwargs)

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


class UnixListener(socket.socket):
    """A listening unix socket that made a file, and removes it when it is closed.

    Not in a forked child, and not if another socket has taken its place there.
    """

    _file: tuple[str | bytes, int, int, int] | None = None

    def own(self, path: str | bytes) -> None:
        """Take charge of the file that ``bind`` made."""
        status = os.lstat(path)
        self._file = (path, status.st_dev, status.st_ino, os.getpid())

    def close(self) -> None:
        """Remove the file, and give back the descriptor."""
        file, self._file = self._file, None
        if file is not None and file[3] == os.getpid():
            try:
                status = os.lstat(file[0])
                if (status.st_dev, status.st_ino) == file[1:3]:
                    os.unlink(file[0])
            except OSError:
                # Somebody else has removed it, or may not be robbed of it.
                pass
        super().close()


def bind_sockets(
    port: int,
    address: str | None = None,
    family: int = AF_UNSPEC,
    backlog: int | None = DEFAULT_BACKLOG,
    flags: int | None = None,
    reuse_port: bool = False,
) -> Sockets:
    """Return non-blocking sockets that listen on a port, one for each address.

    IPv6 sockets take no IPv4. Where the machine has no IPv6, or not that address of it, IPv4 has to
    do. A name is looked up, which blocks.

    Arguments:
        port: 0 for a free one, the same for all addresses.
        address: an address or a name with one or several; None or "" for all of the machine's.
        family: ``AF_INET`` or ``AF_INET6`` for that one only.
        backlog: connections that may wait to be accepted; None: do not listen yet.
        flags: of ``getaddrinfo``, by default ``AI_PASSIVE``.
        reuse_port: let other sockets with that option bind the port as well (SO_REUSEPORT); the
            kernel spreads the connections.
    Raises:
        OSError: an address is in use, or may not be bound; ``socket.gaierror``: the name has none.
        ValueError: the system has no SO_REUSEPORT.
    """
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("this system has no SO_REUSEPORT")
    flags = socket.AI_PASSIVE if flags is None else flags
    found = socket.getaddrinfo(address or None, port, family, socket.SOCK_STREAM, 0, flags)
    places = list(dict.fromkeys((entry[0], entry[4]) for entry in found))
    # A port that is free for one address may be taken for the next.
    for tries_left in reversed(range(1 if port else _PORT_TRIES)):
        try:
            return _bind_all(places, backlog, reuse_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("the last try raises")


def _bind_all(
    places: Sequence[tuple[int, SocketAddress]], backlog: int | None, reuse_port: bool
) -> Sockets:
    """Bind a socket to each ``(family, address)``; close them all if one fails."""
    sockets: Sockets = []
    missing: OSError | None = None
    port = 0
    try:
        for family, address in places:
            if port:
                address = (address[0], port, *address[2:])
            try:
                sock = bind_socket(family, address, backlog, reuse_port)
            except OSError as error:
                if family != AF_INET6 or error.errno not in _NO_IPV6:
                    raise
                missing = error
                continue
            sockets.append(sock)
            port = sock.getsockname()[1]
        if missing is not None and not sockets:
            raise missing
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    finally:
        # This frame stands in its traceback.
        del missing
    return sockets


def bind_socket(
    family: int, address: SocketAddress, backlog: int | None, reuse_port: bool
) -> socket.socket:
    """Return a non-blocking socket that is bound to one address; see ``bind_sockets``."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            if backlog is not None:
                sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _cannot_listen(address, error.errno or 0, error.strerror or str(error)) from error
    return sock


def listening_socket(fd: int) -> socket.socket:
    """Return the socket of a descriptor that listens already, as a supervisor hands it over.

    Raises:
        OSError: the descriptor is none of a socket that listens.
    """
    sock = socket.socket(fileno=fd)
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, "the socket does not listen")
        sock.setblocking(False)
    except OSError:
        sock.detach()
        raise
    return sock


def bind_unix_socket(
    file: str | bytes | os.PathLike[str], mode: int = 0o600, backlog: int = DEFAULT_BACKLOG
) -> UnixListener:
    """Return a non-blocking unix socket that listens at a path.

    A socket file that nobody listens at is replaced. The file goes when the socket is closed.

    Arguments:
        file: the path; ``"\\0name"`` in Linux's abstract namespace, which has no files.
        mode: the file's permissions; who may write to it, may connect.
        backlog: connections that may wait to be accepted.
    Raises:
        FileExistsError: something else than a socket is there.
        OSError: somebody listens there, or the path cannot be bound.
    """
    path = os.fspath(file)
    named = path[:1] not in ("\0", b"\0")
    sock = UnixListener(AF_UNIX, socket.SOCK_STREAM)
    try:
        if named:
            _remove_stale(path)
        try:
            sock.setblocking(False)
            sock.bind(path)
            if named:
                sock.own(path)
                # Before it listens: until then nobody can connect.
                os.chmod(path, mode)
            sock.listen(backlog)
        except OSError as error:
            reason = error.strerror or str(error)
            raise _cannot_listen(os.fsdecode(path), error.errno or 0, reason) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str | bytes) -> None:
    """Remove a socket file whose socket is gone; raise if there is anything else."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    place = os.fsdecode(path)
    if not stat.S_ISSOCK(kind):
        raise _cannot_listen(place, errno.EEXIST, "it exists and is not a socket")
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            # A full queue, no permission, another type of socket: alive, or not known to be dead.
            pass
    raise _cannot_listen(place, errno.EADDRINUSE, "somebody listens there already")


def _cannot_listen(address: SocketAddress, number: int, reason: str) -> OSError:
    return OSError(number, f"cannot listen on {format_address(address)}: {reason}")


def set_nodelay(sock: socket.socket, value: bool) -> None:
    """Set TCP_NODELAY on a TCP socket; leave others alone."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)


def reset_on_close(sock: socket.socket) -> None:
    """Let a TCP socket drop what it has not sent and reset the connection when it is closed."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def socket_error(sock: socket.socket) -> int:
    """Return and clear the pending error of a socket (SO_ERROR); 0 if there is none."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
