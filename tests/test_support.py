"""The tests' own tools: a detector that detects nothing would make every other test worthless."""

import gzip
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request

import pytest

from tests.conftest import RawServerFactory
from tests.support import nginx as private_nginx
from tests.support.authority import Authority
from tests.support.leaks import count_fds, no_fds_left, open_fds
from tests.support.needs import needs_command
from tests.support.nginx import Nginx
from tests.support.raw_server import RawServer, answer, read_request, stay_silent

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_a_descriptor_left_open_is_told() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"descriptors left open: .*socket"):  # noqa: SIM117
        with no_fds_left():
            left = socket.socket()
    left.close()


def test_closed_descriptors_are_no_leak() -> None:
    before = count_fds()
    with no_fds_left(), socket.socket() as sock:
        assert count_fds() == before + 1
        assert sock.fileno() in open_fds()
    assert count_fds() == before


def test_a_script_answers_each_connection(raw_server: RawServerFactory) -> None:
    server = raw_server(answer(OK))
    for _ in range(2):
        assert exchange(server.port, b"GET / HTTP/1.1\r\n\r\n") == OK
    assert server.connections == 2
    assert repr(server) == f"<RawServer 127.0.0.1:{server.port} open connections=2>"


def test_a_script_sees_the_whole_request(raw_server: RawServerFactory) -> None:
    seen = []

    def script(conn: socket.socket) -> None:
        seen.append(read_request(conn))
        conn.sendall(OK)

    request = b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"
    exchange(raw_server(script).port, request)
    assert seen == [request]


def test_what_a_script_asserts_reaches_the_test() -> None:
    def script(conn: socket.socket) -> None:
        raise AssertionError("seen by the script")

    server = RawServer(script)
    exchange(server.port, b"")
    with pytest.raises(AssertionError, match="seen by the script"):
        server.close()


def test_a_peer_that_leaves_is_no_error_of_the_script(raw_server: RawServerFactory) -> None:
    server = raw_server(answer(OK))
    with socket.create_connection(server.address, timeout=5) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""  # the script has ended
    assert [type(error) for error in server.hangups] == [ConnectionResetError]


def test_closing_ends_a_silent_script_and_its_threads() -> None:
    before = threading.active_count()
    server = RawServer(stay_silent)
    with socket.create_connection(server.address) as sock:
        sock.sendall(b"anybody?")
        server.close()
    assert threading.active_count() == before


def test_a_script_through_tls(raw_server: RawServerFactory, ca: Authority) -> None:
    server = raw_server(answer(OK), tls=ca.server_context())
    request = urllib.request.Request(server.url("/page"))
    with urllib.request.urlopen(request, timeout=5, context=ca.client_context()) as response:
        assert response.read() == b"hi"


def test_an_untrusted_authority(raw_server: RawServerFactory, ca: Authority) -> None:
    server = raw_server(answer(OK), tls=ca.server_context())
    with (
        socket.create_connection(server.address, timeout=5) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")


def test_a_refused_port(refused_port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", refused_port), timeout=5)


def test_a_deaf_port(deaf_port: int) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", deaf_port), timeout=0.05)


def test_nginx_keeps_connections(nginx: Nginx) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=5)
    try:
        for path, status in (("/1k.txt", 200), ("/moved", 302), ("/nothing", 404)):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == status
            response.read()
            sock = connection.sock
            assert sock is not None
        connection.request("GET", "/page.html", headers={"Accept-Encoding": "gzip"})
        page = (nginx.root / "page.html").read_bytes()
        assert gzip.decompress(connection.getresponse().read()) == page
        assert connection.sock is sock
    finally:
        connection.close()


def test_nginx_serves_a_big_file_through_tls(nginx: Nginx, ca: Authority) -> None:
    curl = needs_command("curl", "apt-get install curl")
    options = ["--silent", "--show-error", "--cacert", str(ca.pem), "--output", os.devnull]
    got = subprocess.run(
        [curl, *options, "--write-out", "%{size_download}", nginx.url("/big.bin", tls=True)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={"PATH": os.environ["PATH"]},
    )
    assert int(got.stdout) == private_nginx.BIG_SIZE


@pytest.mark.parametrize(("require_all", "outcome"), [("", "skipped"), ("1", "failed")])
def test_what_is_missing_is_named(require_all: str, outcome: str, tmp_path: os.PathLike) -> None:
    test = os.path.join(tmp_path, "test_missing.py")
    with open(test, "w") as file:
        file.write(
            "from tests.support.needs import needs_command\n"
            "def test(): needs_command('no-such-command', 'apt-get install it')\n"
        )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rsf", "-p", "no:cacheprovider", "-c", os.devnull, test],
        env=os.environ | {"CORO_REQUIRE_ALL": require_all, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "needs no-such-command: apt-get install it" in ran.stdout
    assert f"1 {outcome}" in ran.stdout
