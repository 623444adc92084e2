"""Echo over many connections: ``python -m benchmarks.scaling.load PORT PID --connections N``.

A few messages are under way at a time, whatever the number of connections, which have their turns
one after another.  The CPU time told is that of the server, as in ``benchmarks.echo.load``.
"""

import select
import socket
import time
from functools import partial
from itertools import cycle

from ..echo.load import cpu_clock, parser
from ..memory import raise_limit
from ..trial import Trial

UNDER_WAY = 10

AT_ONCE = 100
"""Connections that are opened before the server is seen to have accepted them."""


class Load:
    """Connections to one echo server, which have their turns."""

    def __init__(self, port: int, size: int, connections: int) -> None:
        self.message = bytes(range(256)) * (size // 256)
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        for number in range(1, connections + 1):
            sock = socket.create_connection(("127.0.0.1", port), timeout=10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets[sock.fileno()] = sock
            if number % AT_ONCE == 0:
                sock.sendall(self.message)
                sock.recv(size, socket.MSG_WAITALL)
        for sock in self.sockets.values():
            sock.setblocking(False)
            self.epoll.register(sock, select.EPOLLIN)
        self.turns = cycle(self.sockets.values())

    def exchange(self, count: int) -> None:
        """Send ``count`` messages and read their echoes."""
        poll, sockets, message, turns = self.epoll.poll, self.sockets, self.message, self.turns
        size = len(message)
        missing: dict[int, int] = {}
        to_send = count
        for _ in range(UNDER_WAY):
            sock = next(turns)
            missing[sock.fileno()] = size
            sock.send(message)
            to_send -= 1
        while missing:
            for fd, _ in poll():
                got = len(sockets[fd].recv(size))
                if not got:
                    raise ConnectionError("the server closed a connection")
                missing[fd] -= got
                if missing[fd]:
                    continue
                del missing[fd]
                if to_send:
                    to_send -= 1
                    sock = next(turns)
                    # With as many connections as messages, it may be that one is not back yet.
                    while sock.fileno() in missing:
                        sock = next(turns)
                    missing[sock.fileno()] = size
                    sock.send(message)


def main() -> None:
    """Run a trial against the server on the given port."""
    arguments = parser()
    arguments.add_argument("--connections", type=int)
    options = arguments.parse_args()
    raise_limit()
    load = Load(options.port, options.size, options.connections)
    # All of them have had a turn, and what that makes the server do is done.
    load.exchange(max(options.connections, UNDER_WAY))
    for count in Trial(options.seconds, partial(time.clock_gettime, cpu_clock(options.pid))):
        load.exchange(count)


if __name__ == "__main__":
    main()
