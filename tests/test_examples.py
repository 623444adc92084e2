"""Each example runs as a reader would run it: as a program of its own."""

import http.client
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import RawServerFactory
from tests.support.authority import Authority
from tests.support.needs import needs_command
from tests.support.raw_server import answer, read_exactly, read_request

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 30.0
"""Seconds that an example may take."""

DEMO = ("--requests", "100", "--budget", "2")
"""So much time that services which answer do so in it, however busy the machine is."""


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *arguments]


def run(name: str, *arguments: str, stdin: str = "") -> str:
    """Run an example to its end; return what it printed. Warnings are errors."""
    ran = subprocess.run(
        command(name, *arguments),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert (ran.returncode, complaints(ran.stderr)) == (0, ""), ran.stderr
    return ran.stdout


def complaints(errors: str) -> str:
    """What a program complained of; how long a step takes is the machine's affair."""
    return "".join(line for line in errors.splitlines(True) if not line.startswith("Slow step of"))


@contextmanager
def running(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run an example beside the block; it is killed if the block leaves it running."""
    with subprocess.Popen(
        command(name, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def refuses(port: int) -> bool:
    """Whether nobody listens on a port any longer."""
    with socket.socket() as sock:
        sock.settimeout(LIMIT)
        return sock.connect_ex(("127.0.0.1", port)) != 0


class TestTinyCoro:
    def test_it_fetches_and_tells_its_stations(self, raw_server: RawServerFactory) -> None:
        requests = []

        def script(conn: socket.socket) -> None:
            requests.append(read_request(conn))
            conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nHello, epoll!")

        server = raw_server(script)
        printed = run("tiny_coro.py", server.url("/page"))
        assert requests == [f"GET /page HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()]
        stations = [
            f"connecting to 127.0.0.1:{server.port}",
            "request sent",
            "32 bytes came",
            "the page is whole",
            "Hello, epoll!",
        ]
        assert re.search(".*".join(map(re.escape, stations)), printed, re.DOTALL), printed

    def test_it_stands_alone_and_stays_small(self) -> None:
        source = (EXAMPLES / "tiny_coro.py").read_text()
        assert not re.search(r"^\s*(import|from) coro", source, re.MULTILINE)
        assert len(source.splitlines()) <= 100


class TestDemoService:
    @contextmanager
    def service(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
        """Run the services; gives their process, and their addresses by name."""
        process = subprocess.Popen(
            command("demo_service.py", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            try:
                yield process, json.loads(process.stdout.readline())
                _, errors = process.communicate(timeout=LIMIT)  # closes its standard input
                assert (process.returncode, complaints(errors)) == (0, "")
            finally:
                process.kill()

    def test_three_answer_and_one_fails(self) -> None:
        with self.service() as (_, where):
            told = {name: get(where[name]) for name in ("prices", "stock", "reviews", "offers")}
            assert [status for status, _ in told.values()] == [200, 200, 200, 503]
            assert json.loads(told["prices"][1]) == {"apple": 3, "pear": 4}
            assert get(where["prices"], "/nothing-here")[0] == 404

    def test_it_ends_with_its_standard_input_whoever_waits(self) -> None:
        with socket.socket() as sock, self.service() as (_, where):
            sock.connect(("127.0.0.1", int(where["shipping"].strip("/").rpartition(":")[2])))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(8)

    def test_it_ends_in_time_by_itself(self) -> None:
        with self.service("--lifetime", "0.1") as (process, _):
            assert process.wait(LIMIT) == 0


@pytest.fixture(scope="module")
def printed() -> str:
    """What the demo prints."""
    return run("demo.py", *DEMO)


class TestDemo:
    def test_it_tells_its_story_and_leaves_nothing(self, printed: str) -> None:
        told = [
            "One request to http://127.0.0.1:",
            "prices",
            '{"apple": 3, "pear": 4}',
            "shipping",
            "Timeout during request",
            "offers",
            "HTTP 503: Service Unavailable",
            "had said",
            "answers = yield {service.name: service.ask(budget) for service in services}",
            "request 2",
            "without offers, shipping",
            "left alone: offers, shipping",
            "a circuit breaker",
            "100 requests, 25 at a time",
            "requests/s",
            "p50",
            "the slowest service",
            "p99",
            *("queue", "dns", "connect", "tls", "sent", "first_byte", "body", "total"),
            "HTTPConnectError: HTTP 599: ",
            "TimeoutError: Timeout during request",
            "HTTPError: HTTP 404: Not Found",
            "In short",
            "nothing is left behind",
        ]
        # However the lines are filled.
        assert re.search(".*".join(map(re.escape, told)), " ".join(printed.split())), printed
        ports = set(map(int, re.findall(r"http://127.0.0.1:(\d+)/", printed)))
        assert len(ports) == 4
        assert all(map(refuses, ports))

    def test_its_figures_agree(self, printed: str) -> None:
        figures = [
            int(value.replace(",", ""))
            for value in re.findall(r"^ +([\d,]+)  \w", printed, re.MULTILINE)
        ]
        to_gateway, upstream, opened, _ = figures
        assert (to_gateway, upstream) == (100, 300)
        assert 3 <= opened <= 75
        short = " ".join(printed.partition("In short")[2].split())
        assert re.match(rf"400 requests in \d+ ms, for which {opened} connections", short), short

    def test_one_after_the_other_is_the_sum(self, printed: str) -> None:
        first, _, rest = printed.partition("had said")
        times = [int(ms) for ms in re.findall(r"^ +\w+ +(\d+) ms", first, re.MULTILINE)]
        one_by_one = re.search(r"would\s+have\s+taken\s+(\d+) ms", rest)
        assert one_by_one is not None
        assert len(times) == 5
        assert abs(sum(times) - int(one_by_one[1])) <= len(times)

    def test_stations_are_drawn_one_after_the_other(self, printed: str) -> None:
        _, new, kept = (
            printed.partition("4. One fetch")[2].partition("5. Three")[0].split("http://")
        )
        for picture, stations in ((new, 5), (kept, 3)):
            bars = re.findall(r"^ *\w+ +[\d.]+ ms ( *[▏█]+)", picture, re.MULTILINE)
            begins = [len(bar) - len(bar.lstrip()) for bar in bars]
            assert len(bars) == stations, printed
            assert begins == sorted(begins), printed

    def test_ctrl_c_leaves_nothing(self) -> None:
        with running("demo.py", *DEMO) as process:
            assert process.stdout is not None
            ports = []
            while "request 2" not in (line := process.stdout.readline()):
                assert line, "it ended early"
                ports += re.findall(r"http://127.0.0.1:(\d+)", line)
            process.send_signal(signal.SIGINT)  # while the gateway waits for the slow one
            _, errors = process.communicate(timeout=LIMIT)
            assert (process.returncode, complaints(errors)) == (130, "")
        assert ports
        assert all(refuses(int(port)) for port in ports)


class TestFetchMany:
    def test_arguments(self, raw_server: RawServerFactory) -> None:
        server = raw_server(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"))
        printed = run("fetch_many.py", server.url("/a"), "no URL", server.url("/b"))
        assert re.search(rf"^{re.escape(server.url('/a'))}: 4 bytes in \d+ ms$", printed, re.M)
        assert "not a URL: 'no URL'" in printed
        assert re.search(r"^2 pages in [\d.]+ s$", printed, re.M)

    def test_standard_input(self, raw_server: RawServerFactory, refused_port: int) -> None:
        server = raw_server(answer(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
        urls = [server.url(), f"http://127.0.0.1:{refused_port}/"]
        printed = run("fetch_many.py", stdin="\n".join(urls))
        assert f"{urls[0]}: HTTP 404: Not Found" in printed
        assert re.search(rf"{urls[1]}: HTTP 599: .*Connection refused", printed)
        assert "0 pages in" in printed


class TestEchoServer:
    @contextmanager
    def server(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """Run the server; gives its process and port."""
        with running("echo_server.py", "--port", "0", *arguments) as process:
            assert process.stdout is not None
            port = re.fullmatch(r"listening on 127.0.0.1:(\d+)\n", process.stdout.readline())
            assert port is not None
            yield process, int(port[1])

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=LIMIT)

    def test_it_sends_back_what_it_gets(self) -> None:
        with self.server() as (_, port), self.connect(port) as one, self.connect(port) as two:
            payload = os.urandom(100_000)
            for sock in (one, two):
                sock.sendall(payload)
            for sock in (two, one):
                assert read_exactly(sock, len(payload)) == payload
            one.shutdown(socket.SHUT_WR)
            assert one.recv(1) == b""

    def test_tls(self, ca: Authority) -> None:
        with (
            self.server("--certificate", str(ca.issue("localhost"))) as (_, port),
            self.connect(port) as plain,
            ca.client_context().wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_ends_in_order(self, number: signal.Signals) -> None:
        with self.server() as (process, port), self.connect(port) as sock:
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
            process.send_signal(number)
            assert sock.recv(1) == b""
            printed, errors = process.communicate(timeout=LIMIT)
            assert (process.returncode, complaints(errors)) == (0, "")
            assert printed == f"{number.name}: closing 1 connections\n"
        assert refuses(port)


# --- services ------------------------------------------------------------------------------


@contextmanager
def serving(name: str, *arguments: str) -> Iterator[str]:
    """An example that prints its address and runs until SIGTERM, which has to end it well."""
    with running(name, "--port", "0", *arguments) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, process.communicate(timeout=LIMIT)[1]
        yield address
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert "Warning" not in errors


class TestGateway:
    def test_answers_are_put_together(self, raw_server: RawServerFactory) -> None:
        prices = raw_server(lambda conn: answer_all(conn, b'{"apple": 3}'))
        stock = raw_server(lambda conn: answer_all(conn, b"[1, 2]"))
        silent = raw_server(lambda conn: read_exactly(conn, 10**9))
        services = [
            f"prices={prices.url()}",
            f"stock={stock.url()}",
            f"silent={silent.url()}",
        ]
        with serving("gateway.py", "--budget", "0.3", *services) as address:
            for _ in range(7):
                status, body = get(address)
                assert status == 200
                told = json.loads(body)
                assert told["services"]["prices"]["said"] == {"apple": 3}
                assert told["services"]["stock"]["said"] == [1, 2]
                assert told["missing"] == ["silent"]
            assert "left alone" in told["services"]["silent"]["error"]
        # Connections are kept; who is left alone is not asked.
        assert prices.connections == stock.connections == 1
        assert silent.connections == 5

    def test_who_is_left_alone_is_tried_again(self) -> None:
        breaker = runpy.run_path(str(EXAMPLES / "gateway.py"))["Breaker"](2, 10.0)
        for now in (0.0, 1.0):
            assert breaker.allows(now)
            breaker.note(False, now)
        assert not breaker.allows(10.9)
        # One tries it, and what comes of it holds for all.
        assert breaker.allows(11.0)
        assert not breaker.allows(11.1)
        breaker.note(False, 12.0)
        assert not breaker.allows(21.9)
        assert breaker.allows(22.0)
        breaker.note(True, 22.1)
        assert breaker.allows(22.2)
        breaker.note(False, 22.3)
        assert breaker.allows(22.4)

    def test_nothing_is_there(self, refused_port: int) -> None:
        with serving("gateway.py", f"one=http://127.0.0.1:{refused_port}/") as address:
            status, body = get(address)
            assert (status, json.loads(body)["missing"]) == (502, ["one"])

    def test_a_wrong_call(self) -> None:
        done = subprocess.run(
            command("gateway.py", "prices"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "NAME=URL" in done.stderr


class TestProxy:
    def curl(self, proxy: str, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        curl = needs_command("curl", "apt-get install curl")
        return subprocess.run(
            [curl, "-sS", "--max-time", "10", "--proxytunnel", "--proxy", proxy, *arguments, url],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_a_tunnel(self, raw_server: RawServerFactory, ca: Authority) -> None:
        server = raw_server(
            lambda conn: answer_all(conn, b"through the tunnel"), tls=ca.server_context()
        )
        with serving("proxy.py", "--private", "--to", str(server.port)) as proxy:
            url = f"https://localhost:{server.port}/"
            done = self.curl(proxy, url, "--cacert", str(ca.pem), "--ipv4")
            assert done.stdout == "through the tunnel", done.stderr

    def test_limits(self, raw_server: RawServerFactory, refused_port: int) -> None:
        server = raw_server(lambda conn: answer_all(conn, b"never"))
        ports = ["--to", str(server.port), "--to", str(refused_port)]
        with serving("proxy.py", *ports) as proxy:
            private = self.curl(proxy, f"http://127.0.0.1:{server.port}/")
            assert "403" in private.stderr
        with serving("proxy.py", "--private", *ports) as proxy:
            assert "403" in self.curl(proxy, "http://127.0.0.1:1/").stderr
            assert "502" in self.curl(proxy, f"http://127.0.0.1:{refused_port}/").stderr
            assert get(f"{proxy}/")[0] == 405
            assert b" 403 " in ask(proxy, f"localhost:{'9' * 5000}")
        with serving("proxy.py", *ports) as proxy:
            for host in ("localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"):
                assert b" 403 " in ask(proxy, f"{host}:{server.port}"), host

    def test_a_tunnel_lasts_as_long_as_anything_moves(self, raw_server: RawServerFactory) -> None:
        """Though it be in one direction, as in a download."""

        def drip(conn: socket.socket) -> None:
            for _ in range(10):
                conn.sendall(b"drip ")
                time.sleep(0.1)
            conn.recv(1)

        server = raw_server(drip)
        options = ("--private", "--idle", "0.6", "--to", str(server.port))
        with serving("proxy.py", *options) as proxy:
            # Then nothing moves, and it ends.
            assert ask(proxy, f"127.0.0.1:{server.port}", b"").endswith(b"drip " * 10)

    def test_ends_are_passed_on(self, raw_server: RawServerFactory) -> None:
        def answer_at_the_end(conn: socket.socket) -> None:
            conn.sendall(b"%d bytes" % len(b"".join(iter(lambda: conn.recv(65536), b""))))

        server = raw_server(answer_at_the_end)
        with serving("proxy.py", "--private", "--to", str(server.port)) as proxy:
            heard = ask(proxy, f"localhost:{server.port}", bytes(1_000_000))
            assert heard.endswith(b"1000000 bytes")


def ask(proxy: str, target: str, data: bytes | None = None) -> bytes:
    """Ask for a tunnel, say something there and end; return all that is heard.

    Without data, the answer of the proxy.
    """
    with socket.create_connection(("127.0.0.1", int(proxy.rpartition(":")[2])), LIMIT) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        if data is None:
            return sock.recv(1000)
        sock.sendall(data)
        if data:
            sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def answer_all(conn: socket.socket, body: bytes) -> None:
    while read_request(conn):
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def get(address: str, path: str = "/") -> tuple[int, bytes]:
    place = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(place, timeout=LIMIT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
