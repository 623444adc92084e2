"""Many connections at once: ``python -m benchmarks.connections [--count N]``.

A server in a process of its own echoes on so many connections; the client is coro as well. Printed
are how fast they were opened, one echo on each of them, and the memory that an idle one costs the
server.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from coro.errors import StreamClosedError
from coro.gen import coroutine, run
from coro.stream import IOStream, PipeIOStream
from coro.tcp import TCPServer, connect

from .memory import memory_of, raise_limit

AT_ONCE = 200
"""So many are opened, or used, side by side."""

SPARE = 100
"""Descriptors that are not connections."""


class Echo(TCPServer):
    """Sends back what it gets."""

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        """Serve one connection."""
        try:
            while True:
                yield stream.write((yield stream.read_bytes(4096, partial=True)))
        except StreamClosedError:
            stream.close()


@dataclass
class Result:
    """What was found.

    Attributes:
        count: connections that were open at once.
        echoed: those on which the very bytes came back.
        opened_in, echoed_in: seconds.
        bytes_each: of the server's memory for each idle connection.
    """

    count: int
    echoed: int
    opened_in: float
    echoed_in: float
    bytes_each: float


@coroutine
def serve() -> Any:
    """Tell the port on stdout, and serve until stdin ends."""
    raise_limit()
    server = Echo()
    server.listen(0, "127.0.0.1", backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    yield PipeIOStream(os.dup(0)).read_until_close()
    yield server.shutdown(0)


def groups(things: list[Any]) -> Iterator[list[Any]]:
    """Part a list into those that are dealt with side by side."""
    for begin in range(0, len(things), AT_ONCE):
        yield things[begin : begin + AT_ONCE]


@coroutine
def echo(number: int, stream: IOStream) -> Any:
    """Whether what is sent comes back."""
    sent = b"%08d" % number
    yield stream.write(sent)
    return (yield stream.read_bytes(len(sent))) == sent


@coroutine
def use(count: int, port: int, pid: int) -> Any:
    """Open the connections, leave them idle, then use each once."""
    streams: list[IOStream] = []
    try:
        # The first one makes the server load what it needs.
        streams.append((yield connect("127.0.0.1", port)))
        yield echo(0, streams[0])
        memory = memory_of([pid])
        began = time.perf_counter()
        for numbers in groups(list(range(1, count))):
            streams += yield [connect("127.0.0.1", port) for _ in numbers]
        yield echo(0, streams[-1])  # so the server has accepted them all
        opened = time.perf_counter()
        grown = memory_of([pid]) - memory
        echoed = 0
        for group in groups(list(enumerate(streams))):
            echoed += sum((yield [echo(number, stream) for number, stream in group]))
        ended = time.perf_counter()
        return Result(count, echoed, opened - began, ended - opened, grown / (count - 1))
    finally:
        for stream in streams:
            stream.close()


def measure(count: int) -> Result:
    """Measure with so many connections, or as many as the system allows."""
    count = min(count, raise_limit() - SPARE)
    command = [sys.executable, "-m", "benchmarks.connections", "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        result: Result = run(use, count, int(server.stdout.readline()), server.pid)
        server.stdin.close()
    return result


@click.command()
@click.option("--count", default=10_000, show_default=True, help="How many connections.")
@click.option("--serve", "serving", is_flag=True, hidden=True)
def main(count: int, serving: bool) -> None:
    """Hold many connections at once."""
    if serving:
        run(serve)
        return
    result = measure(count)
    print(
        f"{result.count} connections: opened in {result.opened_in:.2f} s, one echo on each in "
        f"{result.echoed_in:.2f} s, {result.echoed} of them right; "
        f"{result.bytes_each:.0f} bytes of the server's memory for each"
    )


if __name__ == "__main__":
    sys.exit(main())
