"""Whole programs in simulation: much traffic, TLS; and one and the same run for one seed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from coro.errors import StreamClosedError
from coro.gen import coroutine, sleep
from coro.stream import IOStream
from coro.tcp import connect
from coro.tcpserver import TCPServer
from coro.testing import Fault, World, current_world
from tests.support.authority import Authority
from tests.testing.traffic import run

ROOT = Path(__file__).parent.parent.parent

# Of the trace of ``echo`` under seed 7, on every Python. It changes with what the simulation draws,
# and with what streams send: look at ``world.trace.text()`` before and after, and write it anew.
DIGEST = "b5bb2c636b1b284da4d2b8dac9af3e0c995a71ee8bed8e87b57ed99a41b15842"


class Echo(TCPServer):
    @coroutine
    def handle_stream(self, stream: IOStream, address: Any) -> Any:
        try:
            while True:
                yield stream.write((yield stream.read_bytes(100_000, partial=True)))
        except StreamClosedError:
            stream.close()


@coroutine
def echo(ca: Authority) -> Generator[Any, Any, None]:
    """Plain and with TLS, by name, between hosts, beside a partition."""
    network = current_world().network
    network.link("client", "server", loss=0.1)
    with network.on("server"):
        plain, secure = Echo(), Echo(ca.server_context())
        plain.listen(7)
        secure.listen(8)

    @coroutine
    def talk(port: int, tls: Any) -> Generator[Any, Any, None]:
        stream = yield connect("server", port, ssl_options=tls, server_hostname=tls and "localhost")
        for number in range(20):
            data = bytes([number]) * (1 + number * number * 100)
            yield stream.write(data)
            assert (yield stream.read_bytes(len(data))) == data
            yield sleep(random.random())
        stream.close()

    with network.on("client"):
        yield [talk(7, None), talk(8, ca.client_context())]
    yield [plain.shutdown(1), secure.shutdown(1)]


def recorded(ca: Authority, seed: int) -> World:
    world = World(seed, faults=[Fault("partition", 3.0, ("client", "server"), 2.0)])
    world.run(echo, ca)
    assert world.left == []
    return world


def test_the_trace_is_the_same_on_every_python(ca: Authority) -> None:
    world = recorded(ca, 7)
    assert recorded(ca, 7).trace.text() == world.trace.text()
    assert recorded(ca, 8).trace.digest() != world.trace.digest()
    assert world.trace.digest() == DIGEST


def test_lengths_of_ciphertext_are_not_told(ca: Authority) -> None:
    text = recorded(ca, 1).trace.text()
    assert "bytes" in text
    assert "TLS" in text
    secret = next(line.split()[1] for line in text.splitlines() if line.endswith("TLS"))
    assert not [line for line in text.splitlines() if secret in line and "bytes" in line]


def test_much_traffic_with_faults() -> None:
    world, seen = run(10, 300.0, 0)
    assert len(world.faults) == 10
    assert seen["fetched"] > 1000
    assert sum(seen.values()) > seen["fetched"], "no fault hit anybody"
    assert world.left == []
    assert world.network.descriptors == {}


def test_hashes_of_strings_decide_nothing() -> None:
    command = [sys.executable, "-m", "tests.testing.traffic", "--hosts=5", "--seconds=60"]
    digests = set()
    for number in ("1", "2"):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        digests.add(done.stdout.splitlines()[2])
    assert len(digests) == 1
