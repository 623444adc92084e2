"""The load generator: ``python -m benchmarks.echo.load PORT PID``, bare epoll, no library.

Every connection sends its next message when the last one has come back whole.  The CPU time told is
that of the server, whose process id it is given.
"""

import select
import socket
import time
from argparse import ArgumentParser
from functools import partial

from ..trial import Trial

CONNECTIONS = 50
MESSAGE = bytes(range(256)) * 4
"""One message: 1 KB."""


class Load:
    """Connections to one echo server."""

    def __init__(self, port: int) -> None:
        self.epoll = select.epoll()
        self.sockets = [
            socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(CONNECTIONS)
        ]
        for sock in self.sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.epoll.register(sock, select.EPOLLIN)
        self.calls = {sock.fileno(): (sock.recv_into, sock.send) for sock in self.sockets}

    def exchange(self, count: int) -> None:
        """Send ``count`` messages, spread over the connections, and read their echoes."""
        poll, calls, size = self.epoll.poll, self.calls, len(MESSAGE)
        buffer = bytearray(size)
        missing = dict.fromkeys(calls, size)
        to_send = count - CONNECTIONS
        to_come = count
        for sock in self.sockets:
            sock.send(MESSAGE)
        while to_come:
            for fd, _ in poll():
                recv_into, send = calls[fd]
                got = recv_into(buffer)
                if not got:
                    raise ConnectionError("the server closed a connection")
                if got != missing[fd]:
                    missing[fd] -= got
                    continue
                missing[fd] = size
                to_come -= 1
                if to_send:
                    to_send -= 1
                    send(MESSAGE)
        if buffer != MESSAGE:
            raise ValueError("the echo is not what was sent")


def main() -> None:
    """Run a trial against the server on the given port."""
    parser = ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("pid", type=int, help="the server's process")
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    load = Load(options.port)
    for count in Trial(options.seconds, partial(time.clock_gettime, cpu_clock(options.pid))):
        load.exchange(count)


def cpu_clock(pid: int) -> int:
    """The id of a process's CPU clock, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


if __name__ == "__main__":
    main()
