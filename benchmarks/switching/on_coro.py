"""coro on its own epoll loop, or inside asyncio."""

from argparse import Namespace
from collections.abc import Callable, Generator
from typing import Any

from coro.future import Future
from coro.gen import coroutine, run
from coro.locks import Lock
from coro.loop import IOLoop
from coro.queues import Queue

from ..hosts import LOOPS, runner
from ..trial import Trial
from .subject import DEPTH, HOLDERS, TASKS, batches, main, nothing

Coroutine = Generator[Any, Any, Any]


@coroutine
def spin(turns: int) -> Coroutine:
    """Yield to the loop ``turns`` times."""
    for _ in range(turns):
        yield


@coroutine
def spinners(count: int) -> Coroutine:
    """Run the tasks of the case ``yield``."""
    yield [spin(count // TASKS) for _ in range(TASKS)]


@coroutine
def at_once() -> Coroutine:
    """A coroutine that ends without suspending."""
    return 1
    yield


@coroutine
def children(count: int) -> Coroutine:
    """Wait for ``count`` children, one after another."""
    for _ in range(count):
        yield at_once()


@coroutine
def link(below: int) -> Coroutine:
    """One of a chain: waits for the next, or at the bottom for the loop."""
    if below:
        return (yield link(below - 1))
    yield
    return 1


@coroutine
def chains(count: int) -> Coroutine:
    """Walk down and up ``count`` chains."""
    for _ in range(count):
        yield link(DEPTH - 1)


@coroutine
def player(slots: list[Future[None]], me: int, turns: int) -> Coroutine:
    """Wait to be woken, then wake the other; ``turns`` times."""
    for _ in range(turns):
        yield slots[me]
        slots[me] = Future()
        slots[1 - me].set_result(None)


@coroutine
def players(count: int) -> Coroutine:
    """Run the two tasks of the case ``wake``; the first finds itself woken."""
    slots: list[Future[None]] = [Future(), Future()]
    slots[0].set_result(None)
    yield [player(slots, me, count // 2) for me in range(2)]


@coroutine
def putter(queue: Queue[int], count: int) -> Coroutine:
    """Put ``count`` items."""
    for number in range(count):
        yield queue.put(number)


@coroutine
def getter(queue: Queue[int], count: int) -> Coroutine:
    """Get ``count`` items."""
    for _ in range(count):
        yield queue.get()


@coroutine
def queue(count: int) -> Coroutine:
    """Hand ``count`` items over by a queue that holds one."""
    between: Queue[int] = Queue(maxsize=1)
    yield [putter(between, count), getter(between, count)]


@coroutine
def holder(lock: Lock, count: int) -> Coroutine:
    """Take the lock ``count`` times, each time for a turn of the loop."""
    for _ in range(count):
        with (yield lock.acquire()):
            yield


@coroutine
def locks(count: int) -> Coroutine:
    """Let several tasks hand a lock round."""
    lock = Lock()
    yield [holder(lock, count // HOLDERS) for _ in range(HOLDERS)]


@coroutine
def callbacks(count: int) -> Coroutine:
    """Keep some callbacks going, ``count`` calls in all."""
    loop = IOLoop.current()
    over: Future[None] = Future()
    left = count

    def call() -> None:
        nonlocal left
        left -= 1
        if left >= TASKS:
            loop.add_callback(call)
        elif not left:
            over.set_result(None)

    for _ in range(TASKS):
        loop.add_callback(call)
    yield over


@coroutine
def timers(count: int) -> Coroutine:
    """Add timers, and cancel them all."""
    loop = IOLoop.current()
    for batch in batches(count):
        added = [loop.call_later(60 + number % 7, nothing) for number in batch]
        for timer in added:
            loop.remove_timeout(timer)
        yield


def drive(work: Callable[[int], Any], trial: Trial, options: Namespace) -> None:
    """Yield each count's work on coro's loop, or await it inside asyncio."""

    @coroutine
    def measure() -> Coroutine:
        for count in trial:
            yield work(count)

    async def as_guest() -> None:
        await measure()

    if options.loop == LOOPS[0]:
        run(measure)
        return
    with runner(options.loop) as host:
        host.run(as_guest())


if __name__ == "__main__":
    works = {
        "yield": spinners,
        "child": children,
        "chain": chains,
        "wake": players,
        "queue": queue,
        "lock": locks,
        "call_soon": callbacks,
        "timers": timers,
    }
    main(works, drive, LOOPS)
