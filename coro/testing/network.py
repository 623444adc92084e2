"""A network in memory: hosts, links, names, TCP, and the poller that moves time.

One delay is drawn for each write and none for its length, so lengths of ciphertext shift nothing.
Each direction of a connection draws from a sequence of its own. Nothing overtakes within it.
"""

from __future__ import annotations

import errno
import heapq
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address
from random import Random
from typing import Any

from coro.errors import DeadlockError
from coro.net import AF_INET, AF_INET6, AF_UNSPEC, READ, WRITE, GAIError, Network, Waker
from coro.stuck import format_dump
from coro.testing.clock import SimClock
from coro.testing.trace import Trace

__all__ = ["Host", "SimNetwork", "SimSocket"]

_FIRST_FD = 1 << 20
_CONNECT_SECONDS = 127.0
_BUFFER = 65536
# struct linger: on, no seconds. Whoever sets this resets the connection when he closes it.
_CUT = (1).to_bytes(4, "little") + bytes(4)
_HUP = 0x010
_ERR = 0x008


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Host:
    """A machine: a name and its addresses; ``refused`` ports take no connections."""

    def __init__(self, name: str, addresses: tuple[str, ...]) -> None:
        self.name = name
        self.addresses = addresses
        self.listeners: dict[tuple[int, int], SimSocket] = {}
        self.refused: set[int] = set()
        self.next_port = 32768

    def refuse(self, port: int) -> None:
        """Refuse connections to a port from now on."""
        self.refused.add(port)


class _SimWaker(Waker):
    """A real pair, for signals, and a flag that the simulated poller looks at."""

    woken = False

    def wake(self) -> None:
        self.woken = True

    def drain(self) -> None:
        self.woken = False
        super().drain()


class _SimPoller:
    def __init__(self, network: SimNetwork) -> None:
        self._network = network
        self._watched: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        if fd in self._watched:
            raise _error(errno.EEXIST)
        self._watched[fd] = events

    def modify(self, fd: int, events: int) -> None:
        if fd not in self._watched:
            raise _error(errno.ENOENT)
        self._watched[fd] = events

    def unregister(self, fd: int) -> None:
        if self._watched.pop(fd, None) is None:
            raise _error(errno.ENOENT)

    def _ready(self) -> list[tuple[int, int]]:
        found = []
        for fd, wanted in self._watched.items():
            thing = self._network.descriptors.get(fd)
            mask = (
                thing.mask() & (wanted | _HUP | _ERR)
                if isinstance(thing, SimSocket)
                else READ * self._network.is_woken(fd)
            )
            if mask:
                found.append((fd, mask))
        return found

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        network, clock = self._network, self._network.clock
        network.run_due()
        end = None if timeout is None else clock.now + max(0.0, timeout)
        while not (found := self._ready()):
            coming = network.next_event()
            if coming is None and end is None:
                raise DeadlockError(
                    "everything waits, and no event is left that could end it: look for what "
                    f"was never settled or sent\n{format_dump()}"
                )
            if end is not None and (coming is None or coming > end):
                clock.advance_to(end)
                return []
            assert coming is not None
            clock.advance_to(coming)
            network.run_due()
        return found

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._watched.clear()


class SimSocket:
    """A simulated stream socket, shaped as a non-blocking ``socket.socket``."""

    def __init__(self, network: SimNetwork, family: int, host: Host) -> None:
        self.family, self.type, self.proto = family, socket.SOCK_STREAM, 0
        self._network = network
        self._host = host
        self._local: tuple[Any, ...] | None = None
        self._remote: tuple[Any, ...] | None = None
        self._peer: SimSocket | None = None
        self._state = "new"
        self._received = bytearray()
        self._flying = 0
        self._last_arrival = 0.0
        self._ended = self._shut = False
        self._error = 0
        self._waiting: deque[SimSocket] = deque()
        self._backlog = 0
        self._random = Random(0)
        self._options: dict[tuple[int, int], Any] = {}
        self._fd = network.new_fd(self)

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError("a simulated socket does not block")

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        self._options[level, name] = value

    def getsockopt(self, level: int, name: int, size: int = 0) -> Any:
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR):
            number, self._error = self._error, 0
            return number
        return self._options.get((level, name), 0)

    def mask(self) -> int:
        """Return epoll's events, all that stand."""
        if self._state == "listening":
            return READ if self._waiting else 0
        if self._state in ("new", "dead"):
            return READ | WRITE | _HUP | (_ERR if self._error else 0)
        if self._state == "connecting":
            return 0
        found = READ if self._received or self._ended else 0
        if self._shut or self._room():
            found |= WRITE
        return found | (_HUP if self._ended and self._shut else 0)

    def _room(self) -> int:
        peer = self._peer
        return 0 if peer is None else max(0, _BUFFER - len(peer._received) - self._flying)

    def bind(self, address: tuple[Any, ...]) -> None:
        name = address[0]
        if name and not ip_address(name).is_unspecified:
            host = self._network.host_at(name)
            if not ip_address(name).is_loopback:
                if host is None:
                    raise _error(errno.EADDRNOTAVAIL)
                self._host = host
        port = address[1] or self._network.new_port(self._host)
        if (self.family, port) in self._host.listeners:
            raise _error(errno.EADDRINUSE)
        any_address = "::" if self.family == AF_INET6 else "0.0.0.0"
        self._local = self._network.address(self.family, name or any_address, port)

    def listen(self, backlog: int = 128) -> None:
        if self._local is None:
            self.bind(("", 0))
        assert self._local is not None
        self._state, self._backlog = "listening", backlog
        self._host.listeners[self.family, self._local[1]] = self

    def accept(self) -> tuple[SimSocket, tuple[Any, ...]]:
        if not self._waiting:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        sock = self._waiting.popleft()
        sock._fd = self._network.new_fd(sock)
        return sock, sock.getpeername()

    def connect(self, address: tuple[Any, ...]) -> None:
        if self._state == "connected":
            raise _error(errno.EISCONN)
        if self._state == "connecting":
            raise _error(errno.EALREADY)
        self._network.begin_connect(self, address)
        raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))

    def connect_ex(self, address: tuple[Any, ...]) -> int:
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or 0
        return 0

    def _check(self) -> None:
        if self._fd < 0:
            raise _error(errno.EBADF)
        if self._error:
            number, self._error = self._error, 0
            raise _error(number)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._received or self._fd < 0:
            self._check()
            if self._ended or self._state == "dead":
                return b""
            if self._state == "new":
                raise _error(errno.ENOTCONN)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        data = bytes(self._received[:size])
        if not flags & socket.MSG_PEEK:
            del self._received[:size]
        return data

    def recv_into(self, target: Any, size: int = 0) -> int:
        data = self.recv(size or len(target))
        target[: len(data)] = data
        return len(data)

    def send(self, data: Any) -> int:
        self._check()
        if self._shut or self._state == "dead":
            raise _error(errno.EPIPE)
        if self._state == "new":
            raise _error(errno.ENOTCONN)
        data = bytes(data)
        taken = min(len(data), self._room())
        if data and not taken:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        peer = self._peer
        assert peer is not None
        self._flying += taken
        self._network.carry(self, peer, lambda: self._arrive(peer, data[:taken]))
        return taken

    def sendmsg(self, pieces: Any) -> int:
        return self.send(b"".join(pieces))

    def _arrive(self, peer: SimSocket, data: bytes) -> None:
        self._flying -= len(data)
        if peer._state == "connected":
            peer._received += data
        elif peer._state == "closed":
            self.fail(errno.ECONNRESET)

    def shutdown(self, how: int) -> None:
        if self._state != "connected" or self._peer is None:
            raise _error(errno.ENOTCONN)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not self._shut:
            self._shut = True
            self._network.carry(self, self._peer, self._peer.end)

    def end(self) -> None:
        """The other side sends no more."""
        self._ended = True

    def fail(self, number: int) -> None:
        """Be reset, or refused."""
        if self._state in ("connected", "connecting"):
            self._state, self._error = "dead", number

    def close(self) -> None:
        if self._fd < 0:
            return
        self._network.descriptors.pop(self._fd, None)
        self._fd = -1
        state, self._state = self._state, "closed"
        peer = self._peer
        if state == "listening" and self._local is not None:
            self._host.listeners.pop((self.family, self._local[1]), None)
            for sock in self._waiting:
                if sock._peer is not None:
                    self._network.carry(sock, sock._peer, _Failing(sock._peer))
            self._waiting.clear()
        elif state == "connected" and peer is not None:
            if self._received or self._options.get((socket.SOL_SOCKET, socket.SO_LINGER)) == _CUT:
                self._network.carry(self, peer, _Failing(peer))
            elif not self._shut:
                self._network.carry(self, peer, peer.end)

    def getsockname(self) -> tuple[Any, ...]:
        return self._local or self._network.address(
            self.family, "::" if self.family == AF_INET6 else "0.0.0.0", 0
        )

    def getpeername(self) -> tuple[Any, ...]:
        if self._state != "connected" or self._remote is None:
            raise _error(errno.ENOTCONN)
        return self._remote


class _Failing:
    def __init__(self, sock: SimSocket) -> None:
        self._sock = sock

    def __call__(self) -> None:
        self._sock.fail(errno.ECONNRESET)


class SimNetwork(Network):
    """A network in memory, for ``IOLoop(network=...)``.

    Arguments:
        clock: whose time its events move.
        random: what delays are drawn from.
        trace: where events are noted.
    """

    def __init__(self, clock: SimClock, random: Random, trace: Trace | None = None) -> None:
        self.clock = clock
        self.trace = trace if trace is not None else Trace()
        self.trace.clock = clock
        self.delay: tuple[float, float] = (0.0005, 0.002)
        self.hosts: dict[str, Host] = {}
        self.dns: dict[str, tuple[str, ...]] = {}
        self.descriptors: dict[int, SimSocket] = {}
        self._wakers: list[_SimWaker] = []
        self._seed = random.random()
        self._connections = self._sequence = 0
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._cut: dict[tuple[str, str], list[Callable[[], Any]]] = {}
        self._here: ContextVar[Host] = ContextVar("host")
        self._default = self.host("localhost", "127.0.0.1", "::1")

    def host(self, name: str, *addresses: str) -> Host:
        """Return the host of that name; make it if there is none."""
        if name not in self.hosts:
            number = len(self.hosts)
            made = addresses or (f"10.0.{number >> 8}.{number & 255}", f"fd00::{number:x}")
            self.hosts[name] = Host(name, made)
            self.dns[name] = made
        return self.hosts[name]

    @contextmanager
    def on(self, host: Host) -> Iterator[Host]:
        """Let sockets made in the block belong to a host."""
        token = self._here.set(host)
        try:
            yield host
        finally:
            self._here.reset(token)

    def host_at(self, address: str) -> Host | None:
        """Return who has an address; the current host has the loopback's."""
        if ip_address(address).is_loopback:
            return self._here.get(self._default)
        return next((each for each in self.hosts.values() if address in each.addresses), None)

    def partition(self, a: str, b: str) -> None:
        """Let nothing pass between two hosts."""
        self._cut.setdefault((min(a, b), max(a, b)), [])
        self.trace.add("partition", a=a, b=b)

    def heal(self, a: str, b: str) -> None:
        """Let pass again, and what was held back first."""
        for call in self._cut.pop((min(a, b), max(a, b)), ()):
            self.at(self.clock.now, call)
        self.trace.add("heal", a=a, b=b)

    def poller(self) -> _SimPoller:
        return _SimPoller(self)

    def waker(self) -> Waker:
        self._wakers.append(_SimWaker())
        return self._wakers[-1]

    def is_woken(self, fd: int) -> bool:
        """Whether it is a waker's descriptor, and that one was woken."""
        return any(each.woken and each.fileno() == fd for each in self._wakers)

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> Any:
        return SimSocket(self, family, self._here.get(self._default))

    def bind_sockets(
        self,
        port: int,
        address: str | None = None,
        family: int = AF_UNSPEC,
        backlog: int | None = 128,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> Any:
        wanted = [
            each
            for each in ((AF_INET, "0.0.0.0"), (AF_INET6, "::"))
            if family in (AF_UNSPEC, each[0])
        ]
        if address:
            wanted = [
                (each, at[0]) for each, at in self.getaddrinfo(address, 0, family, numeric=False)
            ]
        made: list[SimSocket] = []
        try:
            for each, name in wanted:
                sock = self.socket(each)
                made.append(sock)
                sock.bind((name, port))
                port = sock.getsockname()[1]
                if backlog is not None:
                    sock.listen(backlog)
        except BaseException:
            for sock in made:
                sock.close()
            raise
        return made

    def answer_later(self, ask: Callable[[], Any]) -> bool:
        self.at(self.clock.now + self.delay[1], ask)
        return True

    def getaddrinfo(self, host: str, port: int, family: int, *, numeric: bool) -> Any:
        try:
            names: tuple[str, ...] = (str(ip_address(host)),)
        except ValueError:
            names = () if numeric else self.dns.get(host, ())
        found = [
            (kind, self.address(kind, name, port))
            for name in names
            for kind in [AF_INET6 if ":" in name else AF_INET]
            if family in (AF_UNSPEC, kind)
        ]
        if not found:
            raise GAIError(socket.EAI_NONAME, "Name or service not known")
        return found

    def address(self, family: int, name: str, port: int) -> tuple[Any, ...]:
        """Write an address as the family's sockets do."""
        return (name, port, 0, 0) if family == AF_INET6 else (name, port)

    def new_fd(self, sock: SimSocket) -> int:
        """Give out the lowest free number."""
        fd = _FIRST_FD
        while fd in self.descriptors:
            fd += 1
        self.descriptors[fd] = sock
        return fd

    def new_port(self, host: Host) -> int:
        """Give out a port that was not given out before."""
        host.next_port += 1
        return host.next_port

    def at(self, when: float, call: Callable[[], Any]) -> None:
        """Let something happen."""
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, call))

    def next_event(self) -> float | None:
        """Return when the next thing happens."""
        return self._events[0][0] if self._events else None

    def run_due(self) -> None:
        """Let happen what is due."""
        while self._events and self._events[0][0] <= self.clock.now:
            heapq.heappop(self._events)[2]()

    def _pass(self, a: Host, b: Host, call: Callable[[], Any]) -> None:
        held = self._cut.get((min(a.name, b.name), max(a.name, b.name)))
        if held is None:
            call()
        else:
            held.append(call)

    def carry(self, source: SimSocket, target: SimSocket, call: Callable[[], Any]) -> None:
        """Let something happen at the other end, after all that was sent there before."""
        when = max(source._last_arrival, self.clock.now + source._random.uniform(*self.delay))
        source._last_arrival = when
        self.at(when, lambda: self._pass(source._host, target._host, call))

    def begin_connect(self, sock: SimSocket, address: tuple[Any, ...]) -> None:
        """Send the first segment of a handshake."""
        name, port = address[:2]
        loopback = ip_address(name).is_loopback
        host = sock._host if loopback else self.host_at(name)
        if host is None:
            raise _error(errno.EHOSTUNREACH)
        self._connections += 1
        number = self._connections
        sock._random = Random(f"{self._seed} {number} out")
        own = [each for each in sock._host.addresses if (":" in each) == (":" in name)]
        if sock._local is None:
            local = name if loopback or not own else own[0]
            sock._local = self.address(sock.family, local, self.new_port(sock._host))
        sock._state = "connecting"
        sock._remote = self.address(sock.family, name, port)
        self.trace.add("connect", number=number, source=sock._host.name, to=host.name, port=port)
        when = self.clock.now + sock._random.uniform(*self.delay)

        def knock() -> None:
            listener = host.listeners.get((sock.family, port))
            if listener is None or port in host.refused:
                sock.fail(errno.ECONNREFUSED)
            elif sock._state == "connecting" and len(listener._waiting) > listener._backlog:
                self.at(self.clock.now + 1.0, knock)
            elif sock._state == "connecting":
                other = SimSocket(self, sock.family, host)
                self.descriptors.pop(other._fd)
                other._random = Random(f"{self._seed} {number} back")
                other._local, other._remote = sock._remote, sock._local
                other._peer, sock._peer = sock, other
                other._state = sock._state = "connected"
                listener._waiting.append(other)

        def give_up() -> None:
            if sock._state == "connecting":
                sock.fail(errno.ETIMEDOUT)

        self.at(when, lambda: self._pass(sock._host, host, knock))
        if self._cut:
            self.at(self.clock.now + _CONNECT_SECONDS, give_up)
