"""Load of short connections: ``python -m benchmarks.echo.knocking PORT PID``, bare epoll.

Each connects, sends one message, reads its echo and closes; as many are under way at a time as
``load`` has connections.  The CPU time told is that of the server, as there.
"""

import select
import socket
import time
from functools import partial

from ..trial import Trial
from .load import CONNECTIONS, cpu_clock, parser


class Load:
    """Connections to one echo server, one after another on each of so many places."""

    def __init__(self, port: int, size: int) -> None:
        self.address = ("127.0.0.1", port)
        self.message = bytes(range(256)) * (size // 256)
        self.epoll = select.epoll()

    def knock(self) -> socket.socket:
        """Connect and send; on loopback neither waits while the server's backlog has room."""
        sock = socket.create_connection(self.address, timeout=10)
        sock.setblocking(False)
        sock.send(self.message)
        self.epoll.register(sock, select.EPOLLIN)
        return sock

    def exchange(self, count: int) -> None:
        """Bring so many messages there and back, each on a connection of its own."""
        poll, knock = self.epoll.poll, self.knock
        message = self.message
        size = len(message)
        under_way = {}
        for _ in range(CONNECTIONS):
            sock = knock()
            under_way[sock.fileno()] = sock
        to_begin = count - CONNECTIONS
        to_come = count
        while to_come:
            for fd, _ in poll():
                sock = under_way[fd]
                # Wait in the kernel for all of it, rather than count pieces.
                if len(sock.recv(size, socket.MSG_PEEK)) < size:
                    continue
                if sock.recv(size) != message:
                    raise ValueError("the echo is not what was sent")
                del under_way[fd]
                sock.close()
                to_come -= 1
                if to_begin:
                    to_begin -= 1
                    sock = knock()
                    under_way[sock.fileno()] = sock


def main() -> None:
    """Run a trial against the server on the given port."""
    options = parser().parse_args()
    load = Load(options.port, options.size)
    for count in Trial(options.seconds, partial(time.clock_gettime, cpu_clock(options.pid))):
        load.exchange(count)


if __name__ == "__main__":
    main()
