"""What the simulated network does on demand: links, names, faults, limits."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Generator
from typing import Any

import pytest

from coro.errors import ConnectError, ResolveError, StreamClosedError, TimeoutError
from coro.gen import coroutine, sleep, timeout
from coro.loop import IOLoop
from coro.stream import IOStream, PipeIOStream
from coro.tcp import connect
from coro.tcpserver import TCPServer
from coro.testing import Fault, Faults, Link, World, current_world, simulate
from coro.testing.network import CONNECT_SECONDS, UNACKNOWLEDGED_SECONDS

PORT = 7


class Echo(TCPServer):
    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        try:
            while True:
                yield stream.write((yield stream.read_bytes(65536, partial=True)))
        except StreamClosedError:
            stream.close()


def play(body: Callable[..., Any], seed: int = 0, **options: Any) -> World:
    """Run ``body(network)`` on "home", with an echo server on "shop"."""

    @coroutine
    def main() -> Generator[Any, Any, None]:
        network = current_world().network
        with network.on("shop"):
            server = Echo()
            server.listen(PORT)
        with network.on("home"):
            yield from body(network)
        yield server.shutdown(1)

    world = World(seed, **options)
    world.run(main)
    assert world.left == []
    return world


def now() -> float:
    return current_world().clock.now


class TestLinks:
    def test_delay(self) -> None:
        def body(network: Any) -> Any:
            network.link("home", "shop", delay=(2.0, 3.0))
            begun = now()
            stream = yield connect("shop", PORT)
            assert 2 < now() - begun < 3.1
            begun = now()
            yield stream.write(b"hello")
            yield stream.read_bytes(5)
            assert 4 < now() - begun < 6
            stream.close()

        play(body)

    def test_bandwidth(self) -> None:
        def body(network: Any) -> Any:
            network.link("home", "shop", bandwidth=100_000)
            stream = yield connect("shop", PORT)
            begun = now()
            writing = stream.write(bytes(1_000_000))
            yield stream.read_bytes(1_000_000)
            yield writing
            assert 9.9 < now() - begun < 14
            stream.close()

        play(body)

    def test_two_connections_share_it(self) -> None:
        def body(network: Any) -> Any:
            network.link("home", "shop", bandwidth=100_000)
            begun = now()
            streams = yield [connect("shop", PORT), connect("shop", PORT)]
            for stream in streams:
                stream.write(bytes(500_000))
            yield [stream.read_bytes(500_000) for stream in streams]
            assert 9.9 < now() - begun < 14
            for stream in streams:
                stream.close()

        play(body)

    def test_loss_costs_time_and_no_bytes(self) -> None:
        def took(loss: float) -> float:
            times = []

            def body(network: Any) -> Any:
                network.link("home", "shop", loss=loss)
                stream = yield connect("shop", PORT)
                begun = now()
                for number in range(100):
                    yield stream.write(b"%d\n" % number)
                    assert (yield stream.read_until(b"\n")) == b"%d\n" % number
                times.append(now() - begun)
                stream.close()

            play(body)
            return times[0]

        assert took(0.0) < 1
        assert took(0.3) > 10

    @pytest.mark.parametrize(
        "options",
        [{"delay": (2, 1)}, {"delay": (-1, 1)}, {"bandwidth": 0}, {"loss": 1}, {"loss": -0.1}],
    )
    def test_that_make_no_sense(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            Link(**options)


class TestNames:
    def test_both_families(self) -> None:
        def body(network: Any) -> Any:
            network.host("dual", "192.0.2.1", "2001:db8::1")
            with network.on("dual"):
                server = Echo()
                server.listen(PORT)
            for af, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
                stream = yield connect("dual", PORT, af=af)
                assert stream.socket.getpeername()[0] == address
                stream.close()
            yield server.shutdown(1)

        play(body)

    def test_that_change(self) -> None:
        def body(network: Any) -> Any:
            network.set_name("service", *network.host("shop").addresses)
            (yield connect("service", PORT)).close()
            network.set_name("other")
            with pytest.raises(ResolveError, match="not known"):
                yield connect("other", PORT)
            network.set_name("other", "10.0.0.99")
            # A failure is remembered for a moment.
            yield sleep(100)
            with pytest.raises(TimeoutError):
                yield connect("other", PORT, timeout=5)

        play(body)

    def test_that_fail_or_hang(self) -> None:
        def body(network: Any) -> Any:
            network.fail_name("broken")
            with pytest.raises(ResolveError) as caught:
                yield connect("broken", PORT)
            assert caught.value.errno == socket.EAI_AGAIN
            network.hang_name("silent")
            begun = now()
            with pytest.raises(TimeoutError):
                yield connect("silent", PORT, timeout=3)
            assert now() - begun == pytest.approx(3)

        play(body)

    def test_delay(self) -> None:
        def body(network: Any) -> Any:
            network.dns_delay = (5.0, 6.0)
            begun = now()
            (yield connect("shop", PORT)).close()
            assert 5 < now() - begun < 6.1

        play(body)


class TestFaults:
    def test_a_port_that_refuses_for_a_while(self) -> None:
        def body(network: Any) -> Any:
            network.host("shop").refuse(PORT, seconds=10)
            with pytest.raises(ConnectError) as caught:
                yield connect("shop", PORT)
            assert caught.value.errno == errno.ECONNREFUSED
            yield sleep(10)
            (yield connect("shop", PORT)).close()

        play(body)

    def test_a_black_hole(self) -> None:
        def body(network: Any) -> Any:
            network.host("shop").ignore(PORT)
            begun = now()
            with pytest.raises(ConnectError) as caught:
                yield connect("10.0.0.1", PORT)
            assert caught.value.errno == errno.ETIMEDOUT
            assert now() - begun == pytest.approx(CONNECT_SECONDS)

        play(body)

    def test_a_partition_that_heals(self) -> None:
        def body(network: Any) -> Any:
            stream = yield connect("shop", PORT)
            network.partition("home", "shop", 50)
            begun = now()
            yield stream.write(b"hello")
            assert (yield stream.read_bytes(5)) == b"hello"
            assert 50 <= now() - begun < 51
            stream.close()

        world = play(body)
        assert "partition home shop" in world.trace.text()
        assert "heal home shop" in world.trace.text()

    def test_a_partition_that_does_not(self) -> None:
        def body(network: Any) -> Any:
            stream = yield connect("shop", PORT)
            network.partition("home", "shop")
            begun = now()
            yield stream.write(b"hello")
            with pytest.raises(StreamClosedError) as caught:
                yield stream.read_bytes(5)
            error = caught.value.real_error
            assert isinstance(error, OSError)
            assert error.errno == errno.ETIMEDOUT
            assert now() - begun == pytest.approx(UNACKNOWLEDGED_SECONDS, abs=1)
            network.heal("home", "shop")

        play(body)

    def test_a_reset(self) -> None:
        def body(network: Any) -> Any:
            stream = yield connect("shop", PORT)
            network.reset("home", "shop")
            with pytest.raises(StreamClosedError) as caught:
                yield stream.read_bytes(1)
            assert isinstance(caught.value.real_error, ConnectionResetError)

        play(body)

    def test_a_crash(self) -> None:
        def body(network: Any) -> Any:
            stream = yield connect("shop", PORT)
            network.crash("shop", 20)
            begun = now()
            with pytest.raises(TimeoutError):
                yield connect("shop", PORT, timeout=5)
            # Nobody there knows the connection any more, once there is somebody.
            yield stream.write(b"hello")
            with pytest.raises(StreamClosedError) as caught:
                yield stream.read_bytes(1)
            assert isinstance(caught.value.real_error, ConnectionResetError)
            assert 20 <= now() - begun < 21
            (yield connect("shop", PORT)).close()

        play(body)

    def test_that_are_given(self) -> None:
        def body(network: Any) -> Any:
            yield sleep(1.5)
            with pytest.raises(ConnectError):
                yield connect("shop", PORT)
            yield sleep(1)
            (yield connect("shop", PORT)).close()

        world = play(body, faults=[Fault("refuse", 1.0, ("shop",), 1.0)])
        assert world.faults == [Fault("refuse", 1.0, ("shop",), 1.0)]

    def test_that_are_drawn_are_noted_with_their_hosts(self) -> None:
        def body(network: Any) -> Any:
            yield sleep(20)

        for seed in range(5):
            world = play(body, seed, faults=Faults(4, within=10.0))
            assert len(world.faults) == 4
            assert all(fault.hosts for fault in world.faults)


class TestLimits:
    def test_descriptors_are_used_up(self) -> None:
        def body(network: Any) -> Any:
            network.host("home").max_descriptors = 1
            stream = yield connect("10.0.0.1", PORT)
            with pytest.raises(ConnectError) as caught:
                yield connect("10.0.0.1", PORT)
            assert caught.value.errno == errno.EMFILE
            stream.close()
            (yield connect("10.0.0.1", PORT)).close()

        play(body)

    def test_a_server_without_descriptors_pauses(self) -> None:
        def body(network: Any) -> Any:
            shop = network.host("shop")
            shop.max_descriptors = shop.descriptors
            stream = yield connect("shop", PORT)
            yield stream.write(b"hello")
            with pytest.raises(TimeoutError):
                yield read_within(stream, 10)
            shop.max_descriptors = None
            assert (yield stream.read_bytes(5)) == b"hello"
            stream.close()

        play(body)

    def test_what_is_not_simulated_says_so(self) -> None:
        @coroutine
        def main() -> Any:
            loop = IOLoop.current()
            with pytest.raises(OSError, match="TCP sockets only"):
                loop.network.socket(socket.AF_UNIX)
            reading, writing = os.pipe()
            try:
                stream = PipeIOStream(reading)
                with pytest.raises(RuntimeError, match="is one of the system"):
                    yield stream.read_bytes(1)
                stream.close()
            finally:
                os.close(writing)

        simulate(main)


@coroutine
def read_within(stream: IOStream, seconds: float) -> Any:
    with timeout(seconds):
        return (yield stream.read_bytes(5))
