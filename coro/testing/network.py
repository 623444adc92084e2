"""A network in memory: hosts, names, the links between them, and the poller that moves time.

It stands where ``coro.net.Network`` stands, below the loop; streams, TLS, resolver, connector,
servers and clients run on it as they are. Events lie in a heap by time. When nothing can run, the
poller lets the next of them happen, and sets the clock to it.
"""

from __future__ import annotations

import errno
import functools
import heapq
import re
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import Any

from coro.errors import DeadlockError
from coro.net import AF_INET, AF_INET6, AF_UNSPEC, READ, GAIError, Network, Waker
from coro.stuck import format_dump
from coro.testing.clock import SimClock
from coro.testing.links import Link, Way
from coro.testing.sockets import ERR, HUP, SimSocket, os_error
from coro.testing.trace import Trace

__all__ = ["Host", "SimNetwork"]

# Far above those of the system, which wakers have.
_FIRST_FD = 1 << 20

# Seconds after which Linux gives up: a connect without any answer, bytes that nobody acknowledges.
CONNECT_SECONDS = 127.0
UNACKNOWLEDGED_SECONDS = 924.0

# Seconds after which a listener with a full queue is asked again.
_FULL_QUEUE_SECONDS = 1.0


class Host:
    """A machine; made by ``SimNetwork.host``.

    Attributes:
        name: in DNS as well.
        addresses: one or more, IPv4 or IPv6.
        max_descriptors: how many sockets may be open; beyond that there is EMFILE. None: no limit.
    """

    def __init__(self, network: SimNetwork, name: str, addresses: tuple[str, ...]) -> None:
        # Weakly: who has the network has its hosts.
        self._network: SimNetwork = weakref.proxy(network)
        self.name = name
        self.addresses = addresses
        self.max_descriptors: int | None = None
        self.descriptors = 0
        # By family and port.
        self.listeners: dict[tuple[int, int], SimSocket] = {}
        self._refused: set[int | None] = set()
        self._silent: set[int | None] = set()
        self.next_port = 32768

    def __repr__(self) -> str:
        return f"<Host {self.name} {' '.join(self.addresses)}>"

    def refuse(self, port: int | None = None, seconds: float | None = None) -> None:
        """Refuse connections from now on, as if nobody listened.

        Arguments:
            port: this port only; None: all.
            seconds: so long; None: for ever.
        """
        self._change("refuse", self._refused, port, seconds)

    def ignore(self, port: int | None = None, seconds: float | None = None) -> None:
        """Answer nothing, as behind a firewall that drops what comes; see ``refuse``.

        Connections that stand go on, unless ``port`` is None.
        """
        self._change("ignore", self._silent, port, seconds)

    def _change(
        self, what: str, ports: set[int | None], port: int | None, seconds: float | None
    ) -> None:
        where = self.name if port is None else f"{self.name}:{port}"
        self._network.trace.add(what, where)
        ports.add(port)
        if seconds is not None:
            self._network.after(seconds, lambda: self._end_change(what, where, ports, port))

    def _end_change(self, what: str, where: str, ports: set[int | None], port: int | None) -> None:
        if port in ports:
            ports.remove(port)
            self._network.trace.add(f"{what} no more", where)
            self._network.release()

    def refuses(self, port: int) -> bool:
        """Whether a connection to a port is refused."""
        return port in self._refused or None in self._refused

    def ignores(self, port: int | None) -> bool:
        """Whether what comes for a port is dropped; None: what comes for standing connections."""
        return None in self._silent or (port is not None and port in self._silent)


class _SimWaker(Waker):
    """A real pair, for signals, and a flag that the simulated poller looks at."""

    woken = False

    def wake(self) -> None:
        self.woken = True

    def drain(self) -> None:
        self.woken = False
        super().drain()


class _SimPoller:
    """Tells of simulated sockets; where it would sleep, time passes at once."""

    def __init__(self, network: SimNetwork) -> None:
        self._network = network
        self._watched: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        network = self._network
        if fd in self._watched:
            raise os_error(errno.EEXIST)
        if fd not in network.descriptors and fd not in network.wakers:
            raise RuntimeError(
                f"descriptor {fd} is one of the system: in a simulation there are only the "
                "sockets of its own network"
            )
        self._watched[fd] = events
        network.touched[fd] = None

    def modify(self, fd: int, events: int) -> None:
        if fd not in self._watched:
            raise os_error(errno.ENOENT)
        self._watched[fd] = events
        self._network.touched[fd] = None

    def unregister(self, fd: int) -> None:
        if self._watched.pop(fd, None) is None:
            raise os_error(errno.ENOENT)

    def _ready(self) -> list[tuple[int, int]]:
        """Return what is ready among those of which something changed; keep those in mind."""
        network = self._network
        found = []
        for fd, waker in network.wakers.items():
            if waker.woken and fd in self._watched:
                found.append((fd, READ))
        for fd in list(network.touched):
            wanted = self._watched.get(fd)
            sock = network.descriptors.get(fd)
            mask = 0 if wanted is None or sock is None else sock.mask() & (wanted | HUP | ERR)
            if mask:
                found.append((fd, mask))
            else:
                del network.touched[fd]
        return found

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        network, clock = self._network, self._network.clock
        network.run_due()
        end = None if timeout is None else clock.now + max(0.0, timeout)
        while not (found := self._ready()):
            coming = network.next_event()
            if coming is None and end is None:
                # Places in memory are left out: they would make every run's text another.
                dump = re.sub(r" at 0x[0-9a-f]+", "", format_dump())
                raise DeadlockError(
                    "everything waits, and no event is left that could end it: look for what "
                    f"was never settled or sent\n{dump}"
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


class SimNetwork(Network):
    """A network in memory, for ``IOLoop(network=...)``; a ``World`` has one.

    Arguments:
        clock: whose time its events move.
        random: what delays are drawn from.
        trace: where events are noted.

    Attributes:
        hosts: all hosts by name. There is one from the beginning, "localhost", to which everything
            belongs that is not made within ``on(host)``.
        default_link: how hosts reach each other that no ``link`` was made for, and themselves.
        dns_delay: the least and the most seconds that a look-up takes.
    """

    def __init__(self, clock: SimClock, random: Random, trace: Trace | None = None) -> None:
        self.clock = clock
        self.trace = Trace(clock) if trace is None else trace
        self.default_link = Link()
        self.dns_delay = (0.001, 0.01)
        self.hosts: dict[str, Host] = {}
        # Addresses, the number of an error, or None: no answer.
        self._names: dict[str, tuple[str, ...] | int | None] = {}
        # All sockets that have a descriptor; those of which a poller may have to tell; wakers.
        self.descriptors: dict[int, SimSocket] = {}
        self.touched: dict[int, None] = {}
        self.wakers: dict[int, _SimWaker] = {}
        self._free_fds: list[int] = []
        self._seed = random.random()
        self._draw_dns = Random(f"{self._seed} dns").random
        self._connections = self._sequence = 0
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._links: dict[tuple[str, str], Link] = {}
        self._cut: dict[tuple[str, str], None] = {}
        # What cannot pass: between whom, which call.
        self._held: list[tuple[SimSocket, SimSocket, Callable[[], Any]]] = []
        self._here: ContextVar[Host] = ContextVar("host")
        self._default = self.host("localhost", "127.0.0.1", "::1")

    # --- what there is ---------------------------------------------------------------------

    def host(self, name: str, *addresses: str) -> Host:
        """Return the host of that name; make it, and its name in DNS, if there is none.

        Arguments:
            name: the name.
            addresses: of a new host; by default one of each family.
        """
        if name not in self.hosts:
            number = len(self.hosts)
            made = addresses or (f"10.0.{number >> 8}.{number & 255}", f"fd00::{number:x}")
            self.hosts[name] = Host(self, name, made)
            self._names[name] = made
        return self.hosts[name]

    @contextmanager
    def on(self, host: Host | str) -> Iterator[Host]:
        """Let what begins in the block happen on a host: sockets, and tasks with theirs."""
        found = self.host(host) if isinstance(host, str) else host
        token = self._here.set(found)
        try:
            yield found
        finally:
            self._here.reset(token)

    def host_at(self, address: str) -> Host | None:
        """Return who has an address; the current host has the loopback's."""
        if ip_address(address).is_loopback:
            return self._here.get(self._default)
        return next((each for each in self.hosts.values() if address in each.addresses), None)

    def link(self, a: str, b: str, **changes: Any) -> Link:
        """Change how two hosts reach each other; the arguments are those of ``Link``."""
        key = _pair(a, b)
        self._links[key] = made = replace(
            self._links.get(key, self.default_link), busy_until={}, **changes
        )
        return made

    def link_between(self, a: str, b: str) -> Link:
        """Return how two hosts reach each other."""
        return self._links.get(_pair(a, b), self.default_link) if self._links else self.default_link

    # --- names -----------------------------------------------------------------------------

    def set_name(self, name: str, *addresses: str) -> None:
        """Let a name have these addresses from now on; none: it does not exist."""
        self._names[name] = addresses

    def fail_name(self, name: str, number: int = socket.EAI_AGAIN) -> None:
        """Let look-ups of a name fail from now on, with that number of ``getaddrinfo``."""
        self._names[name] = number

    def hang_name(self, name: str) -> None:
        """Let look-ups of a name never be answered from now on."""
        self._names[name] = None

    def answer_later(self, ask: Callable[[], Any], host: str) -> bool:
        least, most = self.dns_delay
        delay = least + (most - least) * self._draw_dns()
        if self._names.get(host, 0) is None:
            self.trace.add("look up", f"{host}: no answer will come")
            return True

        def answer() -> None:
            self.trace.add("look up", host)
            ask()

        self.after(delay, answer)
        return True

    def getaddrinfo(self, host: str, port: int, family: int, *, numeric: bool) -> Any:
        try:
            names: tuple[str, ...] | int | None = (str(ip_address(host)),)
        except ValueError:
            names = () if numeric else self._names.get(host.lower().rstrip("."))
        if isinstance(names, int):
            raise GAIError(names, "the simulated look-up failed")
        found = [
            (kind, self.address(kind, name, port))
            for name in names or ()
            for kind in [AF_INET6 if ":" in name else AF_INET]
            if family in (AF_UNSPEC, kind)
        ]
        if not found:
            raise GAIError(socket.EAI_NONAME, "Name or service not known")
        return found

    def address(self, family: int, name: str, port: int) -> tuple[Any, ...]:
        """Write an address as the family's sockets do."""
        return (name, port, 0, 0) if family == AF_INET6 else (name, port)

    # --- what goes wrong -------------------------------------------------------------------

    def partition(self, a: str, b: str, seconds: float | None = None) -> None:
        """Let nothing pass between two hosts, and tell nobody; what is sent waits.

        Arguments:
            a, b: names of hosts.
            seconds: so long; None: until ``heal``.
        """
        self._cut[_pair(a, b)] = None
        self.trace.add("partition", f"{a} {b}")
        if seconds is not None:
            self.after(seconds, lambda: self.heal(a, b))

    def heal(self, a: str, b: str) -> None:
        """Let everything pass again, first what waited."""
        if _pair(a, b) in self._cut:
            del self._cut[_pair(a, b)]
            self.trace.add("heal", f"{a} {b}")
            self.release()

    def reset(self, a: str, b: str) -> None:
        """Reset every connection between two hosts, on both sides."""
        self.trace.add("reset", f"{a} {b}")
        for sock in list(self.descriptors.values()):
            if sock.is_between(a, b):
                sock.drop()

    def crash(self, name: str, seconds: float) -> None:
        """Let a host be gone for a while, and come back without its connections.

        Its own side of them is reset at once. The other side hears nothing until it sends
        something to the host that is back. Whoever listened there listens again.
        """
        host = self.hosts[name]
        self.trace.add("crash", name)
        for sock in list(self.descriptors.values()):
            if sock.host is host and sock.state == "listening":
                for waiting in sock.waiting:
                    waiting.lose()
                sock.waiting.clear()
            elif sock.host is host:
                sock.lose()
        host.ignore(seconds=seconds)

    # --- the loop's side -------------------------------------------------------------------

    def poller(self) -> _SimPoller:
        return _SimPoller(self)

    def waker(self) -> Waker:
        made = _SimWaker()
        self.wakers[made.fileno()] = made
        return made

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> Any:
        if family not in (AF_INET, AF_INET6) or kind != socket.SOCK_STREAM:
            raise OSError(errno.EAFNOSUPPORT, "a simulated network has TCP sockets only")
        made = SimSocket(self, family, self._here.get(self._default))
        made.open()
        return made

    def popen(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"a simulation starts no subprocess: {args[0] if args else kwargs!r}")

    def bind_sockets(
        self,
        port: int,
        address: str | None = None,
        family: int = AF_UNSPEC,
        backlog: int | None = 128,
        flags: int | None = None,
        reuse_port: bool = False,
    ) -> Any:
        if address:
            found = self.getaddrinfo(address, 0, family, numeric=False)
            wanted = [(kind, where[0]) for kind, where in found]
        else:
            both = ((AF_INET, "0.0.0.0"), (AF_INET6, "::"))
            wanted = [each for each in both if family in (AF_UNSPEC, each[0])]
        made: list[SimSocket] = []
        try:
            for kind, name in wanted:
                sock = self.socket(kind)
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

    def queued(self, listener: Any) -> int:
        """Return how many connections wait to be accepted."""
        return len(listener.waiting)

    def new_fd(self, sock: SimSocket) -> int:
        """Give out the lowest free number.

        Raises:
            OSError: EMFILE.
        """
        host = sock.host
        if host.max_descriptors is not None and host.descriptors >= host.max_descriptors:
            raise os_error(errno.EMFILE)
        host.descriptors += 1
        fd = heapq.heappop(self._free_fds) if self._free_fds else _FIRST_FD + len(self.descriptors)
        self.descriptors[fd] = sock
        return fd

    def forget_fd(self, sock: SimSocket) -> None:
        """Take a number back."""
        fd = sock.fileno()
        sock.host.descriptors -= 1
        del self.descriptors[fd]
        self.touched.pop(fd, None)
        heapq.heappush(self._free_fds, fd)

    def new_port(self, host: Host) -> int:
        """Give out a port that was not given out before."""
        host.next_port += 1
        return host.next_port

    # --- events ----------------------------------------------------------------------------

    def after(self, seconds: float, call: Callable[[], Any]) -> None:
        """Let something happen in so many seconds."""
        self._at(self.clock.now + seconds, call)

    def _at(self, when: float, call: Callable[[], Any]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, call))

    def next_event(self) -> float | None:
        """Return when the next thing happens."""
        return self._events[0][0] if self._events else None

    def run_due(self) -> None:
        """Let happen what is due."""
        events = self._events
        while events and events[0][0] <= self.clock.now:
            heapq.heappop(events)[2]()

    def carry(
        self, source: SimSocket, target: SimSocket, call: Callable[[], Any] | None, size: int = 0
    ) -> None:
        """Let something happen at the other end, after all that was sent there before.

        None: nothing happens, but the same numbers are drawn.
        """
        a, b = source.host.name, target.host.name
        assert source.way is not None
        when = source.way.arrival(self.link_between(a, b), a, self.clock.now, size)
        if call is not None:
            self._at(when, functools.partial(self._land, source, target, call))

    def _passes(self, source: SimSocket, target: SimSocket) -> bool:
        if self._cut and _pair(source.host.name, target.host.name) in self._cut:
            return False
        return not (source.host.ignores(None) or target.host.ignores(None))

    def _land(self, source: SimSocket, target: SimSocket, call: Callable[[], Any]) -> None:
        """Let it happen, or hold it back while nothing passes."""
        held = self._held
        if not held and self._passes(source, target):
            call()
            return
        if self._passes(source, target) and not any(each[0] is source for each in held):
            call()
            return
        entry = (source, target, call)
        held.append(entry)
        self.after(UNACKNOWLEDGED_SECONDS, lambda: self._give_up(entry))

    def _give_up(self, entry: tuple[SimSocket, SimSocket, Callable[[], Any]]) -> None:
        if entry in self._held:
            self._held = [each for each in self._held if each[0] is not entry[0]]
            entry[0].fail(errno.ETIMEDOUT)

    def release(self) -> None:
        """Let pass what may pass now."""
        held, self._held = self._held, []
        for entry in held:
            if self._passes(*entry[:2]):
                entry[2]()
            else:
                self._held.append(entry)

    def end(self) -> None:
        """Nothing happens any more."""
        self._events.clear()
        self._held.clear()

    # --- connecting ------------------------------------------------------------------------

    def begin_connect(self, sock: SimSocket, address: tuple[Any, ...]) -> None:
        """Send the first packet of a handshake."""
        name, port = address[:2]
        loopback = ip_address(name).is_loopback
        host = sock.host if loopback or ip_address(name).is_unspecified else self.host_at(name)
        own = [each for each in sock.host.addresses if (":" in each) == (":" in name)]
        if not own and not loopback:
            raise os_error(errno.ENETUNREACH)
        self._connections += 1
        number = self._connections
        sock.begin(number, address, name if loopback else own[0])
        seed = f"{self._seed} {number}"
        sock.way = Way(f"{seed} out")
        # An address that nobody has is as silent as one behind a firewall.
        where = host.name if host is not None else name
        self.trace.add(f"#{number}", f"connect {sock.host.name} to {where} port {port}")
        self.after(CONNECT_SECONDS, lambda: self._stop_knocking(sock))
        if host is not None:
            link = self.link_between(sock.host.name, host.name)
            when = sock.way.arrival(link, sock.host.name, self.clock.now, 0)
            self._at(when, lambda: self._knock(sock, host, port, seed))

    def _stop_knocking(self, sock: SimSocket) -> None:
        if sock.state == "connecting":
            sock.fail(errno.ETIMEDOUT)

    def _knock(self, sock: SimSocket, host: Host, port: int, seed: str) -> None:
        """The first packet of a handshake has come; it is sent again while nobody answers."""
        if sock.state != "connecting":
            return
        listener = host.listeners.get((sock.family, port))
        blocked = _pair(sock.host.name, host.name) in self._cut or host.ignores(port)
        if blocked or (listener is not None and len(listener.waiting) > listener.backlog):
            self.after(_FULL_QUEUE_SECONDS, lambda: self._knock(sock, host, port, seed))
        elif listener is None or host.refuses(port):
            self.trace.add(sock.name, "refused")
            sock.fail(errno.ECONNREFUSED)
        else:
            self.trace.add(sock.name, "connected")
            sock.meet(listener, seed)


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)
