"""What ``--verbose`` shows, and the command's cookies and proxies."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RawServerFactory
from tests.support.authority import Authority
from tests.support.command import run
from tests.support.nginx import Nginx
from tests.support.raw_server import read_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def answering(raw_server: RawServerFactory) -> Callable[..., Any]:
    """``answering(a, b)``: a server that gives its answers over one connection."""

    def start(*answers: bytes) -> Any:
        requests: list[bytes] = []

        def script(conn: socket.socket) -> None:
            for answer in answers:
                requests.append(read_request(conn))
                conn.sendall(answer)

        server: Any = raw_server(script)
        server.requests = requests
        return server

    return start


class TestVerbose:
    def test_an_exchange(self, answering: Any) -> None:
        server = answering(
            b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX-Odd: \x80\t\xff\r\nContent-Length: 2\r\n\r\nhi",
        )
        ran = run("fetch", "-v", "-o", "-", "-d", "body", server.url())
        assert (ran.status, ran.stdout) == (0, b"hi")
        shown = re.sub("User-Agent: .*|Accept-Encoding: .*", "...", ran.stderr)
        assert shown == (
            f"* connected to 127.0.0.1:{server.port}\n"
            "> POST / HTTP/1.1\n"
            f"> Host: 127.0.0.1:{server.port}\n"
            "> ...\n"
            "> ...\n"
            "> Content-Type: application/x-www-form-urlencoded\n"
            "> Content-Length: 4\n"
            ">\n"
            "< HTTP/1.1 302 Found\n"
            "< Location: /there\n"
            "< Content-Length: 0\n"
            "<\n"
            f"* the connection to 127.0.0.1:{server.port} once more\n"
            "> GET /there HTTP/1.1\n"
            f"> Host: 127.0.0.1:{server.port}\n"
            "> ...\n"
            "> ...\n"
            ">\n"
            "< HTTP/1.1 200 OK\n"
            "< X-Odd: \\x80\\t\xff\n"
            "< Content-Length: 2\n"
            "<\n"
        )

    def test_secrets_are_left_out(self, answering: Any) -> None:
        server = answering(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: geheim=1\r\n\r\n"))
        url = server.url().replace("//", "//user:geheim@")
        ran = run("fetch", "--verbose", "-H", "cookie: geheim", url)
        assert b"geheim" in server.requests[0]
        assert "geheim" not in ran.stderr
        assert ran.stderr.count("(not shown)") == 3

    def test_tls(self, nginx: Nginx, ca: Authority) -> None:
        ran = run("fetch", "-v", "--ca", ca.pem, nginx.url(tls=True))
        assert re.search(r"(?m)^\* TLSv1\.[23], \w+", ran.stderr)
        assert re.search(r"(?m)^\* certificate of localhost, .* by .*trustme.*, until ", ran.stderr)
        ran = run("fetch", "-v", "--insecure", nginx.url(tls=True))
        assert "\n* certificate not checked\n" in ran.stderr

    def test_several_fetches_are_told_apart(self, nginx: Nginx) -> None:
        ran = run("fetch", "-v", nginx.url("/1k.txt"), nginx.url("/page.html"))
        for number in ("1", "2"):
            lines = [line for line in ran.stderr.splitlines() if line.startswith(f"[{number}] ")]
            assert lines[0].startswith(f"[{number}] * http://127.0.0.1:")
            path = lines[0].rpartition("/")[2]
            assert f"[{number}] > GET /{path} HTTP/1.1" in lines
            assert f"[{number}] < HTTP/1.1 200 OK" in lines

    def test_a_tunnel(self, answering: Any) -> None:
        server = answering(b"HTTP/1.1 403 Forbidden\r\nX-Rule: 7\r\n\r\n")
        proxy = f"user:geheim@127.0.0.1:{server.port}"
        ran = run("fetch", "-v", "--proxy", proxy, "https://origin.test/")
        assert ran.stderr.splitlines()[:3] == [
            f"* connected to 127.0.0.1:{server.port}",
            "> CONNECT origin.test:443 HTTP/1.1",
            "> Host: origin.test:443",
        ]
        assert "< X-Rule: 7" in ran.stderr
        assert "geheim" not in ran.stderr


class TestCookies:
    def test_they_are_kept_in_a_file(self, answering: Any, tmp_path: Path) -> None:
        file = tmp_path / "jar"
        server = answering(
            b"HTTP/1.1 302 Found\r\nLocation: /2\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n",
            OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: b=2; Max-Age=1000\r\n\r\n"),
        )
        assert run("fetch", "--cookie-jar", file, server.url()).status == 0
        assert b"\r\nCookie: a=1\r\n" in server.requests[1]
        again = answering(OK)
        assert run("fetch", "-b", file, again.url()).status == 0
        assert b"\r\nCookie: a=1; b=2\r\n" in again.requests[0]

    def test_also_if_a_fetch_fails(self, answering: Any, tmp_path: Path) -> None:
        file = tmp_path / "jar"
        server = answering(b"HTTP/1.1 404 No\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n")
        assert run("fetch", "-b", file, server.url()).status == 1
        assert "a\t1" in file.read_text()

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        for file in (__file__, tmp_path, tmp_path / "no" / "jar"):
            ran = run("fetch", "--cookie-jar", file, "h")
            assert (ran.status, "--cookie-jar" in ran.stderr) == (2, True)

    def test_a_file_that_cannot_be_written(
        self, raw_server: RawServerFactory, tmp_path: Path
    ) -> None:
        directory = tmp_path / "dir"
        directory.mkdir()

        def script(conn: socket.socket) -> None:
            read_request(conn)
            directory.rmdir()
            conn.sendall(OK)

        ran = run("fetch", "--cookie-jar", directory / "jar", raw_server(script).url())
        assert (ran.status, ran.lines[0]["error"]) == (1, None)
        assert "cannot save the cookies" in ran.stderr


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("ftp://h", "unknown kind of proxy 'ftp'"),
        ("http://h:port", "not the URL of a proxy"),
        ("http://u:geheim%0d@h", "control character"),
        ("h\n", "control character"),
    ],
)
def test_proxies_that_are_none(proxy: str, told: str) -> None:
    ran = run("fetch", "--proxy", proxy, "h")
    assert ran.status == 2
    assert told in re.sub(r"[\s│]+", " ", ran.stderr)
    assert "geheim" not in ran.stderr
