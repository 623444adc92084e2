"""``CaresResolver``: DNS asked without threads, by the c-ares library on the loop's descriptors.

c-ares speaks DNS, and leaves waiting to its host: it tells which descriptors it wants to be called
for (``_on_sockets``), and by when it has to be called in any case (``_set_timer``). A host's IPv4
and IPv6 addresses are asked for side by side. ``/etc/hosts`` and ``/etc/resolv.conf`` are honoured
as c-ares does it; other sources of names that the system may know (mDNS, LDAP) are not.

A single query cannot be taken back. One that is given up runs on until it is answered or times
out, unless it was the last: then all that is under way is cancelled, which gives the descriptors
back.

Closing. pycares destroys a channel in a thread of its own, which it shares between all channels.
So a channel is cancelled first, in its loop's thread: it then has no descriptor left that the
thread could tell of.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from coro.loop import IOLoop
from coro.net import ERROR, READ, WRITE
from coro.resolver import LOOKUP_SECONDS, MAX_ENTRIES, Addresses, CachingResolver, Lookup
from coro.timers import Timer

try:
    import pycares
except ImportError:
    pycares = None  # type: ignore[assignment]

__all__ = ["CaresResolver"]

# Seconds for which answers are kept at the most, whatever their TTL.
LONGEST_TTL = 300.0


class CaresResolver(CachingResolver):
    """DNS by c-ares, on the loop itself: ``pip install 'coro-loop[dns]'``.

    Close it, in its loop's thread, when it is no longer needed; a loop that closes does so for its
    part of it.

    Arguments:
        servers: addresses of name servers, ``"192.0.2.1"`` or ``"192.0.2.1:5353"``; by default the
            system's.
        query_timeout: seconds for the first try of each server; c-ares has a default.
        tries: how often each server is asked.
        timeout: seconds for a look-up in all.
        ttl: seconds for which answers are kept at the most; they tell themselves how long they are
            good. 0 keeps none.
        max_entries: how many answers are kept for each loop.
    Raises:
        ImportError: pycares is not installed.
    """

    manner = "by DNS"

    def __init__(
        self,
        servers: list[str] | None = None,
        *,
        query_timeout: float | None = None,
        tries: int | None = None,
        timeout: float = LOOKUP_SECONDS,
        ttl: float = LONGEST_TTL,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        if pycares is None:
            raise ImportError("CaresResolver needs pycares: pip install 'coro-loop[dns]'")
        super().__init__(timeout, ttl, max_entries)
        self._options = {"servers": servers, "timeout": query_timeout, "tries": tries}
        # Each until it is closed, by this or by its loop.
        self._channels: dict[IOLoop, _Channel] = {}

    def close(self) -> None:
        """Give back its descriptors and timers; look-ups under way end with an error."""
        for channel in list(self._channels.values()):
            channel.close()

    def _begin(self, lookup: Lookup) -> None:
        loop = lookup.loop
        channel = self._channels.get(loop)
        if channel is None:
            forget = functools.partial(self._channels.pop, loop)
            channel = self._channels[loop] = _Channel(loop, self._options, forget)
        channel.ask(lookup, functools.partial(self._take, lookup))

    def _take(self, lookup: Lookup, result: Any, status: int | None) -> None:
        if status is not None:
            lookup.land(self._failed(_NUMBERS.get(status, socket.EAI_FAIL), _text(status)))
            return
        addresses: Addresses = [(node.family, _decoded(node.addr)) for node in result.nodes]
        seconds = min((node.ttl for node in result.nodes), default=0)
        lookup.land(self._found(addresses, seconds))

    def _abandon(self, lookup: Lookup) -> None:
        channel = self._channels.get(lookup.loop)
        if channel is not None:
            channel.abandon(lookup)


def _decoded(address: tuple[Any, ...]) -> tuple[Any, ...]:
    host = address[0]
    return (host.decode() if isinstance(host, bytes) else host, *address[1:])


def _text(status: int) -> str:
    text = pycares.errno.strerror(status)
    return text.decode() if isinstance(text, bytes) else text


# The numbers of getaddrinfo for those of c-ares.
_NUMBERS: dict[int, int] = {}
if pycares is not None:
    _NUMBERS = {
        pycares.errno.ARES_ENODATA: socket.EAI_NODATA,
        pycares.errno.ARES_ENOTFOUND: socket.EAI_NONAME,
        pycares.errno.ARES_EBADNAME: socket.EAI_NONAME,
        pycares.errno.ARES_ETIMEOUT: socket.EAI_AGAIN,
        pycares.errno.ARES_ESERVFAIL: socket.EAI_AGAIN,
        pycares.errno.ARES_ECONNREFUSED: socket.EAI_AGAIN,
        pycares.errno.ARES_ECANCELLED: socket.EAI_AGAIN,
    }


class _Channel:
    """c-ares on one loop."""

    def __init__(self, loop: IOLoop, options: dict[str, Any], forget: Callable[[], Any]) -> None:
        self._loop = loop
        self._forget = forget
        self._registrations: dict[int, Any] = {}
        self._timer: Timer | None = None
        # How many queries c-ares has, and the look-ups that are still wanted.
        self._queries = 0
        self._wanted: set[Lookup] = set()
        # Weakly, for pycares may hold on to the callback of a channel that is closed.
        on_sockets = WeakMethod(self._on_sockets)

        def tell(fd: int, readable: bool, writable: bool) -> None:
            method = on_sockets()
            if method is not None:
                method(fd, readable, writable)

        self._cares = pycares.Channel(sock_state_cb=tell, **options)
        loop._call_on_close(self, self.close)

    def ask(self, lookup: Lookup, take: Callable[[Any, int | None], None]) -> None:
        """Look up; ``take(result, status)`` is called, maybe at once."""
        self._wanted.add(lookup)

        def on_answer(result: Any, status: int | None) -> None:
            self._queries -= 1
            self._wanted.discard(lookup)
            take(result, status)

        self._cares.getaddrinfo(
            lookup.host,
            None,
            family=socket.AddressFamily(lookup.family),
            type=socket.SOCK_STREAM,
            callback=on_answer,
        )
        # Only now, lest one that cannot begin be waited for.
        self._queries += 1
        self._set_timer()

    def abandon(self, lookup: Lookup) -> None:
        """Do without a look-up; without the last one, stop."""
        if lookup in self._wanted:
            self._wanted.discard(lookup)
            if not self._wanted:
                self._cares.cancel()
                self._set_timer()

    def close(self) -> None:
        """Give everything back; queries under way end with an error."""
        self._forget()
        self._loop._forget_on_close(self)
        self._cares.cancel()
        self._set_timer()
        self._cares.close()

    def _on_sockets(self, fd: int, readable: bool, writable: bool) -> None:
        """c-ares wants to be called for a descriptor, or is about to close it."""
        events = (READ if readable else 0) | (WRITE if writable else 0)
        registration = self._registrations.get(fd)
        if not events:
            if self._registrations.pop(fd, None) is not None:
                self._loop._unregister(fd)
        elif registration is not None:
            self._loop._modify(fd, registration, events)
        else:
            call = functools.partial(self._process, fd)
            self._registrations[fd] = self._loop._register(fd, self, call, events)

    def _process(self, fd: int, events: int) -> None:
        nothing = pycares.ARES_SOCKET_BAD
        self._cares.process_fd(
            fd if events & (READ | ERROR) else nothing, fd if events & WRITE else nothing
        )
        self._set_timer()

    def _on_timer(self) -> None:
        self._timer = None
        self._cares.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
        self._set_timer()

    def _set_timer(self) -> None:
        """Be called when c-ares wants to give something up."""
        if self._timer is not None:
            self._loop.remove_timeout(self._timer)
            self._timer = None
        if self._queries:
            seconds: float = self._cares.timeout()  # type: ignore[no-untyped-call]
            self._timer = self._loop.call_later(seconds, self._on_timer)
