"""One large transfer: ``python -m benchmarks.bulk [--megabytes N] [--slow SECONDS]``.

Two cases: one write of all the bytes, and a proxy of two streams, whose reader takes 1 MB/s for
some seconds and then all it can get. A ticker of 10 ms runs beside each. Printed are how late the
ticks came and how much the process grew.
"""

import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from coro.errors import StreamClosedError
from coro.gen import coroutine
from coro.loop import IOLoop
from coro.stream import IOStream

from .processes import OTHER_CORE, SUBJECT_CORE

MB = 1 << 20
TICK = 0.010
LIMIT = 1 * MB
"""The proxy's buffers, each."""


def other_end(work: Callable[[], Any]) -> int:
    """Do the work in a child process on the other core; return its pid."""
    pid = os.fork()
    if not pid:
        os.sched_setaffinity(0, {OTHER_CORE})
        try:
            work()
        finally:
            os._exit(0)
    return pid


def produce(sock: socket.socket, size: int) -> None:
    piece = bytes(MB)
    for _ in range(size // MB):
        sock.sendall(piece)
    sock.close()


def consume(sock: socket.socket, slow: float) -> None:
    end = time.monotonic() + slow
    while sock.recv(MB // 10):
        if time.monotonic() < end:
            time.sleep(0.1)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def peak() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, transfer: Callable[[], Any], size: int) -> None:
    """Run a transfer beside a ticker, and print how both went."""
    loop = IOLoop()
    late: list[float] = []
    due = loop.time() + TICK

    def tick() -> None:
        nonlocal due
        now = loop.time()
        late.append(now - due)
        due = now + TICK
        loop.call_at(due, tick)

    loop.call_at(due, tick)
    before = peak()
    began = time.perf_counter()
    loop.run_sync(coroutine(transfer))
    took = time.perf_counter() - began
    loop.close()
    late.sort()
    p50, p99 = (late[int(len(late) * share)] * 1000 for share in (0.50, 0.99))
    print(
        f"{name}: {size / MB / took:.0f} MB/s, {len(late)} ticks late by {p50:.2f} ms (half),"
        f" {p99:.2f} ms (99 %), {late[-1] * 1000:.2f} ms (most); grew by {peak() - before:.1f} MB"
    )


def write(size: int) -> None:
    ours, theirs = tcp_pair()
    pid = other_end(lambda: (ours.close(), consume(theirs, 0)))
    theirs.close()
    data = bytes(size)

    def transfer() -> Any:
        stream = IOStream(ours)
        yield stream.write(data)
        stream.close()

    measure("one write", transfer, size)
    os.waitpid(pid, 0)


def proxy(size: int, slow: float) -> None:
    source, inward = tcp_pair()
    outward, sink = tcp_pair()
    ends = (source, inward, outward, sink)
    pids = []
    for mine, work in (
        (source, lambda: produce(source, size)),
        (sink, lambda: consume(sink, slow)),
    ):
        pids.append(
            other_end(
                lambda mine=mine, work=work: (  # type: ignore[misc]
                    [each.close() for each in ends if each is not mine],
                    work(),
                )
            )
        )
    source.close()
    sink.close()

    def transfer() -> Any:
        reader = IOStream(inward, max_buffer_size=LIMIT)
        writer = IOStream(outward, max_write_buffer_size=LIMIT)
        try:
            while True:
                yield writer.write((yield reader.read_bytes(LIMIT, partial=True)))
        except StreamClosedError:
            writer.close()

    measure(f"proxy, slow for {slow:g} s, buffers of {LIMIT // MB} MB", transfer, size)
    for pid in pids:
        os.waitpid(pid, 0)


@click.command()
@click.option("--megabytes", default=1024, show_default=True, help="How much to transfer.")
@click.option("--slow", default=5.0, show_default=True, help="Seconds in which 1 MB/s is read.")
def main(megabytes: int, slow: float) -> None:
    """Transfer much at once."""
    os.sched_setaffinity(0, {SUBJECT_CORE})
    proxy(megabytes * MB, slow)
    write(megabytes * MB)


if __name__ == "__main__":
    sys.exit(main())
