"""A bug that ordinary tests miss, found in a simulated network and replayed by its seed.

    python examples/simulate_flaky_network.py

A bank books payments. A customer whose connection breaks tries again, as a customer should. What if
it breaks after the bank has booked, and before the customer has heard of it? On a quiet network
that never happens, however often the tests run. In a simulated one it takes seconds to show, and
each time that its seed is tried.
"""

from typing import Any

from coro import connect, coroutine, run, sleep
from coro.errors import StreamClosedError
from coro.stream import IOStream
from coro.tcpserver import TCPServer
from coro.testing import Faults, current_world, explore

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
def pay(host: str, number: int, amount: int, port: int = PORT) -> Any:
    """Pay once, whatever it takes."""
    while True:
        try:
            stream = yield connect(host, port, timeout=1)
            try:
                yield stream.write(b"%d %d\n" % (number, amount))
                yield stream.read_until(b"\n", max_bytes=100)
                return
            finally:
                stream.close()
        except OSError:
            yield sleep(0.1)  # and again


# --- the test --------------------------------------------------------------------------------


@coroutine
def a_day_at_the_bank(careful: bool) -> Any:
    """Customers pay, and the bank has booked what they paid."""
    network = current_world().network
    with network.on("bank"):
        bank = Bank(careful)
        bank.listen(PORT)

    @coroutine
    def customer(name: str, numbers: range) -> Any:
        with network.on(name):
            for number in numbers:
                yield pay("bank", number, 10)
                yield sleep(0.1)

    yield [customer("ann", range(PAYMENTS)), customer("bob", range(PAYMENTS, 2 * PAYMENTS))]
    yield bank.shutdown(1)
    assert bank.total == 20 * PAYMENTS, f"paid {20 * PAYMENTS}, booked {bank.total}"


@coroutine
def in_a_quiet_world() -> Any:
    """The same, as ordinary tests have it."""
    bank = Bank(careful=False)
    bank.listen(0, "127.0.0.1")
    port = bank.sockets[0].getsockname()[1]
    yield [pay("127.0.0.1", number, 10, port) for number in range(PAYMENTS)]
    yield bank.shutdown(1)
    print(f"an ordinary test: paid {10 * PAYMENTS}, booked {bank.total}")


def main() -> None:
    run(in_a_quiet_world)

    faults = Faults(3, within=2.0, kinds=["reset", "partition"])
    try:
        explore(a_day_at_the_bank, False, seeds=range(SEEDS), faults=faults)
    except AssertionError as error:
        print(f"a simulated one: {error}", *error.__notes__, sep="\n")
    ran = explore(a_day_at_the_bank, True, seeds=range(SEEDS), faults=faults)
    print(f"the careful bank: {ran} seeds, nothing found")


if __name__ == "__main__":
    main()
