"""Names to addresses.

``getaddrinfo`` blocks, and nobody can stop it. So look-ups run in daemon threads of this room's
own: they are few (a flood of names must not become a flood of threads), they are never the user's
executor (which may be busy for hours), and as daemons they do not hold up the end of the process.
A look-up that is given up is abandoned: its thread may hang on, but its answer goes nowhere.

Whoever asks for a name that is being looked up already shares that look-up (``Lookup``). Each may
give up for himself; when the last one does, the look-up is given up. Answers are kept for a while,
a name's not existing for a second at most, and what was no answer (no server, no time) not at all.
Look-ups and answers belong to one loop: nothing is shared between threads.

Literal addresses need none of this: they are recognised by ``getaddrinfo`` itself, without a query.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self
from weakref import WeakKeyDictionary, WeakSet

import ada_url

from coro.errors import ResolveError
from coro.future import PENDING, Future
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.net import AF_UNSPEC, GAIError, Network, SocketAddress
from coro.timers import Timer

__all__ = [
    "Addresses",
    "CachingResolver",
    "Lookup",
    "OverrideResolver",
    "Overrides",
    "Resolver",
    "ThreadedResolver",
    "ascii_host",
    "resolve_literal",
    "wait_for_threads",
]

Addresses = list[tuple[int, SocketAddress]]

# A host name in ASCII, and a family.
Key = tuple[str, int]

# By host, (host, port) or (host, port, family): a host, or a host and a port, to use instead.
Overrides = Mapping[Any, str | tuple[str, int]]

MAX_THREADS = 16
MAX_QUEUE = 10_000
IDLE_SECONDS = 10.0

MAX_ENTRIES = 1000
# Seconds: for a look-up, for which an answer is kept, and for which the absence of one is.
LOOKUP_SECONDS = 30.0
KEEP_SECONDS = 10.0
KEEP_ABSENCE_SECONDS = 1.0

# A label of a host name (RFC 1123 section 2.1); underscores occur, whatever the rules say.
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")


class Resolver:
    """The interface of resolvers: override ``resolve``.

    ``Resolver()`` itself gives the system's, a ``ThreadedResolver``.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Make a resolver of this class, or the system's."""
        made: Any = object.__new__(ThreadedResolver if cls is Resolver else cls)
        return made  # type: ignore[no-any-return]

    @coroutine
    def resolve(
        self, host: str, port: int, family: int = AF_UNSPEC
    ) -> Generator[Any, Any, Addresses]:
        """Look a host up.

        Arguments:
            host: a name or a literal address.
            port: put into each address.
            family: ``socket.AF_INET``, ``socket.AF_INET6``, or ``socket.AF_UNSPEC`` for both.
        Returns:
            ``(family, address)`` pairs, the preferred one first.
        Raises:
            ResolveError: the host has no such address.
        """
        raise NotImplementedError
        yield

    def close(self) -> None:
        """Give back what the resolver holds."""


class OverrideResolver(Resolver):
    """Another resolver, with some hosts put elsewhere, as in ``/etc/hosts``.

    TLS and HTTP go on speaking of the host that was asked for.

    Arguments:
        resolver: who is asked for the rest, and for hosts that are named in ``mapping``.
        mapping: by host, ``(host, port)`` or ``(host, port, family)``, the more exact one being
            preferred: a host (name or literal address) or a ``(host, port)`` to use instead.
    """

    def __init__(self, resolver: Resolver, mapping: Overrides) -> None:
        self.resolver = resolver
        self.mapping = mapping

    def close(self) -> None:
        """Close the other resolver."""
        self.resolver.close()

    @coroutine
    def resolve(
        self, host: str, port: int, family: int = AF_UNSPEC
    ) -> Generator[Any, Any, Addresses]:
        """Look a host up, or what stands in its place."""
        for key in ((host, port, family), (host, port), host):
            instead = self.mapping.get(key)
            if instead is not None:
                host, port = (instead, port) if isinstance(instead, str) else instead
                break
        found: Addresses = yield self.resolver.resolve(host, port, family)
        return found


class Answer(NamedTuple):
    """What came of a look-up.

    Attributes:
        addresses: with some port or other.
        error: number and text of an ``EAI_*`` error, if there is no address.
        seconds: how long it may be kept.
    """

    addresses: Addresses
    error: tuple[int, str] | None
    seconds: float


class _Waiting(Future[Answer]):
    """One who waits for a look-up. Cancelling it leaves the look-up to the others."""

    __slots__ = ("_lookup",)

    def __init__(self, lookup: Lookup) -> None:
        super().__init__(loop=lookup.loop)
        self._lookup = lookup

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        self._lookup.leave(self)
        return True

    def _awaited(self) -> str:
        return self._lookup.describe()


class Lookup:
    """A look-up under way, for all who wait for it. It lives in its loop's thread.

    Attributes:
        loop: whose it is.
        host, family: what is looked up.
        answer: what came of it; None while it is under way, and if it is given up.
        over: whether it has an answer or was given up. May be read in any thread.
    """

    def __init__(self, resolver: CachingResolver, memory: _Memory, loop: IOLoop, key: Key) -> None:
        self.loop = loop
        self.host, self.family = key
        self.answer: Answer | None = None
        self.over = False
        self._resolver = resolver
        self._memory = memory
        self._waiting: dict[_Waiting, None] = {}
        self._timer: Timer = loop.call_later(resolver.timeout, self._expire)
        memory.lookups[key] = self
        # A closed loop takes no answers: whoever still waits then does so for ever.
        loop._call_on_close(self, self.give_up)

    def describe(self) -> str:
        """Say what is waited for."""
        return f"resolve {self.host} {self._resolver.manner}"

    def join(self) -> Future[Answer]:
        """Wait for its answer."""
        waiting = _Waiting(self)
        self._waiting[waiting] = None
        return waiting

    def leave(self, waiting: _Waiting) -> None:
        """Wait no longer; when the last one leaves, it is given up."""
        self._waiting.pop(waiting, None)
        if not self._waiting and not self.over:
            self.give_up()

    def give_up(self) -> None:
        """End it without an answer."""
        self._end()
        self._waiting.clear()
        self._resolver._abandon(self)

    def land(self, answer: Answer) -> None:
        """Give everybody who waits the answer, unless it comes too late."""
        if self.over:
            return
        self._end()
        self.answer = answer
        self._memory.keep((self.host, self.family), answer, self.loop.time())
        for waiting in self._waiting:
            if waiting._state == PENDING:
                waiting._settle(answer)
        self._waiting.clear()

    def _expire(self) -> None:
        text = f"no answer within {self._resolver.timeout:g} s"
        self.land(Answer([], (socket.EAI_AGAIN, text), 0))
        self._resolver._abandon(self)

    def _end(self) -> None:
        self.over = True
        self.loop.remove_timeout(self._timer)
        self.loop._forget_on_close(self)
        self._memory.lookups.pop((self.host, self.family), None)


class _Memory:
    """Of one loop: the look-ups under way, and the answers that are kept, the least used first."""

    def __init__(self, limit: int) -> None:
        self.lookups: dict[Key, Lookup] = {}
        self._limit = limit
        self._kept: OrderedDict[Key, tuple[float, Answer]] = OrderedDict()

    def recall(self, key: Key, now: float) -> Answer | None:
        """Return an answer that is still good."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept[0] <= now:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return kept[1]

    def keep(self, key: Key, answer: Answer, now: float) -> None:
        """Keep an answer as long as it allows."""
        if answer.seconds > 0 and self._limit > 0:
            self._kept[key] = (now + answer.seconds, answer)
            self._kept.move_to_end(key)
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)


class CachingResolver(Resolver):
    """What resolvers that ask somebody have in common: literals, IDNA, sharing, keeping.

    A subclass overrides ``_begin``.

    Arguments:
        timeout: seconds for a look-up, waiting for its turn included.
        ttl: seconds for which an answer is kept at the most; 0 keeps none. That a name does not
            exist is kept for one second at the most.
        max_entries: how many answers are kept; the least recently used ones go.
    """

    # How it looks up, for dumps.
    manner = ""

    def __init__(self, timeout: float, ttl: float, max_entries: int) -> None:
        if not timeout > 0:
            raise ValueError(f"a look-up's time limit is more than 0 seconds, not {timeout!r}")
        self.timeout = timeout
        self.ttl = ttl
        self._max_entries = max_entries
        self._memories: WeakKeyDictionary[IOLoop, _Memory] = WeakKeyDictionary()

    @coroutine
    def resolve(
        self, host: str, port: int, family: int = AF_UNSPEC
    ) -> Generator[Any, Any, Addresses]:
        """Look a host up; a literal address at once."""
        loop = IOLoop.current()
        name = ascii_host(host)
        literal = resolve_literal(loop.network, name, port, family)
        if literal is not None:
            return literal
        _check_name(name, host)
        # Without regard to case (RFC 4343).
        key = name.lower(), family
        memory = self._memories.get(loop)
        if memory is None:
            memory = self._memories[loop] = _Memory(self._max_entries)
        answer = memory.recall(key, loop.time())
        if answer is None:
            lookup = memory.lookups.get(key)
            if lookup is None:
                lookup = Lookup(self, memory, loop, key)
                try:
                    self._begin(lookup)
                except BaseException:
                    lookup.give_up()
                    raise
            answer = lookup.answer
            if answer is None:
                answer = yield lookup.join()
        if answer.error is not None:
            errno, text = answer.error
            raise ResolveError(errno, text, host)
        return [(family, (at[0], port, *at[2:])) for family, at in answer.addresses]

    def _begin(self, lookup: Lookup) -> None:
        """Look ``lookup.host`` up, and call ``lookup.land(answer)`` in the loop's thread."""
        raise NotImplementedError

    def _abandon(self, lookup: Lookup) -> None:
        """Nobody waits for this look-up any longer."""

    def _found(self, addresses: Addresses, seconds: float) -> Answer:
        return Answer(addresses, None, min(seconds, self.ttl))

    def _failed(self, errno: int, text: str) -> Answer:
        """Make the answer of an error: only that there is no such name is worth keeping."""
        absent = errno in _ABSENT
        return Answer([], (errno, text), min(KEEP_ABSENCE_SECONDS, self.ttl) if absent else 0)


_ABSENT = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
)


class ThreadedResolver(CachingResolver):
    """The system's resolver, asked in threads.

    Arguments:
        max_threads: how many look-ups may be under way at once; further ones wait their turn.
        timeout: seconds for a look-up, waiting for its turn included.
        ttl: seconds for which answers are kept, for the system does not tell; 0 keeps none.
        max_entries: how many answers are kept for each loop.
    """

    manner = "in a thread"

    def __init__(
        self,
        max_threads: int = MAX_THREADS,
        *,
        timeout: float = LOOKUP_SECONDS,
        ttl: float = KEEP_SECONDS,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        super().__init__(timeout, ttl, max_entries)
        self._workers = _Workers(max_threads)

    def _begin(self, lookup: Lookup) -> None:
        if not lookup.loop.network.answer_later(partial(self._ask, lookup), lookup.host):
            self._workers.submit(self, lookup)

    def _ask(self, lookup: Lookup) -> None:
        """Look up, in a thread."""
        try:
            addresses = lookup.loop.network.getaddrinfo(
                lookup.host, 0, lookup.family, numeric=False
            )
            answer = self._found(addresses, self.ttl)
        except OSError as error:
            answer = self._failed(error.errno or socket.EAI_FAIL, error.strerror or str(error))
        except Exception as error:
            answer = self._failed(socket.EAI_FAIL, f"the look-up failed: {error!r}")
        lookup.loop.add_callback(lookup.land, answer)


def ascii_host(host: str) -> str:
    """Return a host as DNS and TLS write it: names by IDNA (UTS #46), all else as it is.

    Raises:
        ResolveError: there is no such spelling.
    """
    if host.isascii():
        return host
    try:
        name: str = ada_url.idna_to_ascii(host).decode("ascii")
    except UnicodeEncodeError:
        name = ""
    if not name:
        raise _no_name(host, "it breaks the rules of internationalized names")
    return name


def _check_name(name: str, host: str) -> None:
    """Refuse what DNS cannot look up (RFC 1035 section 2.3.4)."""
    labels = name.removesuffix(".").split(".")
    if len(name) > 254 or (len(name) == 254 and name[-1] != "."):
        raise _no_name(host, "it is longer than 253 characters")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise _no_name(host, f"the label {label!r} has not 1 to 63 letters, digits or hyphens")


def _no_name(host: str, reason: str) -> ResolveError:
    return ResolveError(socket.EAI_NONAME, f"not a host name: {reason}", host)


def resolve_literal(network: Network, host: str, port: int, family: int) -> Addresses | None:
    """Return the address that a literal stands for, or None if the host is a name.

    Arguments:
        host: in ASCII.
    Raises:
        ResolveError: the host is neither, or a literal of another family.
    """
    if not host or "\0" in host:
        raise _no_name(host, "it is empty" if not host else "it has a NUL character")
    try:
        found = network.getaddrinfo(host, port, AF_UNSPEC, numeric=True)
    except (GAIError, UnicodeError):
        return None
    if family == AF_UNSPEC:
        return found
    fitting = [entry for entry in found if entry[0] == family]
    if not fitting:
        raise ResolveError(socket.EAI_FAMILY, "it is an address of another family", host)
    return fitting


def wait_for_threads(seconds: float) -> bool:
    """Block until no look-up is under way in a thread, those included that were given up.

    Who counts descriptors needs it: the system may have some open for a look-up.

    Arguments:
        seconds: how long to wait at most.
    Returns:
        Whether all have ended.
    """
    until = time.monotonic() + seconds
    return all(each.wait(until - time.monotonic()) for each in [*_Workers.made])


class _Workers:
    """A few daemon threads that look names up, started when needed; idle ones end."""

    made: ClassVar[WeakSet[_Workers]] = WeakSet()

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a resolver needs at least one thread, not {limit!r}")
        self._limit = limit
        self._reset()
        self.made.add(self)

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._rested = threading.Condition(self._lock)
        # Invariant, under the lock: _idle threads are waiting for _jobs, of _threads in all.
        self._jobs: deque[tuple[ThreadedResolver, Lookup]] = deque()
        self._idle = 0
        self._threads = 0

    def submit(self, resolver: ThreadedResolver, lookup: Lookup) -> None:
        """Look up in a thread, unless that is over before its turn comes.

        Raises:
            ResolveError: too many are waiting for their turn, or no thread can be started.
        """
        self._check_process()
        with self._lock:
            if len(self._jobs) >= MAX_QUEUE:
                text = f"{MAX_QUEUE} look-ups are waiting for their turn already"
                raise ResolveError(socket.EAI_AGAIN, text, lookup.host)
            self._jobs.append((resolver, lookup))
            if self._idle >= len(self._jobs):
                self._arrived.notify()
            elif self._threads < self._limit:
                self._start(lookup)

    def wait(self, seconds: float) -> bool:
        """Block until all threads are idle, but no longer than that; return whether they are."""
        self._check_process()
        with self._lock:
            return self._rested.wait_for(self._are_idle, seconds)

    def _are_idle(self) -> bool:
        return self._idle == self._threads and not self._jobs

    def _check_process(self) -> None:
        """A fork copies the counts, but not the threads."""
        if self._process != os.getpid():
            self._reset()

    def _start(self, lookup: Lookup) -> None:
        thread = threading.Thread(target=self._work, name="coro-resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The system has no thread to give. Those that run will come to it, if there are any.
            if not self._threads:
                self._jobs.pop()
                raise ResolveError(socket.EAI_AGAIN, str(error), lookup.host) from None
        else:
            self._threads += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._idle += 1
                    self._rested.notify_all()
                    self._arrived.wait(IDLE_SECONDS)
                    self._idle -= 1
                if not self._jobs:
                    self._threads -= 1
                    return
                resolver, lookup = self._jobs.popleft()
            if not lookup.over:
                resolver._ask(lookup)
            del resolver, lookup
