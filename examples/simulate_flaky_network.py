"""A bug that ordinary tests miss, found in a simulated network and replayed by its seed.

    python examples/simulate_flaky_network.py

A bank books payments. A customer whose connection breaks tries again, as a customer should. What if
it breaks after the bank has booked, and before the customer has heard of it? On a quiet network
that never happens, however often the tests run. It takes seconds, and opens no socket.
"""

from typing import Any

from coro import connect, coroutine, sleep
from coro.errors import StreamClosedError
from coro.stream import IOStream
from coro.tcpserver import TCPServer

PORT = 700
PAYMENTS = 20
SEEDS = 300


# --- the service, and its client: nothing here knows of any simulation ----------------------


class Bank(TCPServer):
    """Books ``number amount`` lines, and answers each with ``booked``.

    Arguments:
        careful: do not book a number twice.
    """

    def __init__(self, careful: bool) -> None:
        super().__init__()
        self.careful = careful
        self.total = 0
        self.known: set[int] = set()

    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        try:
            while True:
                line = yield stream.read_until(b"\n", max_bytes=100)
                number, amount = map(int, line.split())
                yield sleep(0.01)  # it thinks
                if not (self.careful and number in self.known):
                    self.known.add(number)
                    self.total += amount
                yield stream.write(b"booked\n")
        except StreamClosedError:
            pass
        finally:
            stream.close()


@coroutine
def pay(host: str, number: int, amount: int) -> Any:
    """Pay once, whatever it takes."""
    while True:
        try:
            stream = yield connect(host, PORT, timeout=1)
            try:
                yield stream.write(b"%d %d\n" % (number, amount))
                yield stream.read_until(b"\n", max_bytes=100)
                return
            finally:
                stream.close()
        except OSError:
            yield sleep(0.1)  # and again


# --- the test --------------------------------------------------------------------------------
