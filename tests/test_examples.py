"""Each example runs as a reader would run it: as a program of its own."""

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import RawServerFactory
from tests.support.raw_server import read_request

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 30.0
"""Seconds that an example may take."""


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name), *arguments]


def run(name: str, *arguments: str) -> str:
    """Run an example to its end; return what it printed. Warnings are errors."""
    ran = subprocess.run(
        command(name, *arguments), capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout


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
    def service(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """Run the service; gives its process and port."""
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
                yield process, int(process.stdout.readline())
                _, complaints = process.communicate(timeout=LIMIT)  # closes its standard input
                assert (process.returncode, complaints) == (0, "")
            finally:
                process.kill()

    @pytest.fixture
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        with self.service("--pages", "30") as (_, port):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
            yield connection
            connection.close()

    def get(self, connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()

    def test_the_links_lead_to_every_page(self, connection: http.client.HTTPConnection) -> None:
        to_visit, sizes = ["/"], {}
        while to_visit:
            path = to_visit.pop()
            status, body = self.get(connection, path)
            assert status == 200
            sizes[path] = len(body)
            links = re.findall(r'href="([^"]+)"', body.decode())
            to_visit += {link for link in links if link not in sizes and link not in to_visit}
        assert len(sizes) == 31
        assert len(set(sizes.values())) > 20

    def test_head_404_405_and_the_same_connection(
        self, connection: http.client.HTTPConnection
    ) -> None:
        assert self.get(connection, "/nothing-here")[0] == 404
        sock = connection.sock
        connection.request("HEAD", "/pages/1")
        response = connection.getresponse()
        assert int(response.headers["Content-Length"]) > 0
        assert response.read() == b""
        connection.request("DELETE", "/pages/1")
        response = connection.getresponse()
        response.read()
        assert response.status == 405
        assert connection.sock is sock

    def test_pipelined_and_in_pieces(self, connection: http.client.HTTPConnection) -> None:
        with socket.create_connection(("127.0.0.1", connection.port), timeout=LIMIT) as sock:
            sock.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHo")
            sock.sendall(b"st: x\r\nConnection: close\r\n\r\n")
            received = b"".join(iter(lambda: sock.recv(65536), b""))
        assert received.count(b"HTTP/1.1 404 Not Found") == 2

    def test_the_slow_page_never_answers(self, connection: http.client.HTTPConnection) -> None:
        connection.timeout = 0.05
        with pytest.raises(TimeoutError):
            self.get(connection, "/slow")

    def test_it_ends_with_its_standard_input_whoever_is_connected(self) -> None:
        with socket.socket() as sock, self.service() as (_, port):
            sock.connect(("127.0.0.1", port))
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert sock.recv(8) == b"HTTP/1.1"

    def test_it_ends_in_time_by_itself(self) -> None:
        with self.service("--lifetime", "0.1") as (process, _):
            assert process.wait(LIMIT) == 0
