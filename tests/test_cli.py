"""The command, run as a user runs it: as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coro
from coro.cli.files import file_name
from coro.http.urls import parse
from tests.conftest import RawServerFactory
from tests.support.authority import Authority
from tests.support.command import COMMAND, ENVIRONMENT, LIMIT, ended, run, running
from tests.support.nginx import BIG_SIZE, SMALL, Nginx
from tests.support.raw_server import answer, read_request, stay_silent

TIMINGS = ["queue", "dns", "connect", "tls", "sent", "first_byte", "total"]

# Runs the command, and then tells the most memory that it had, in KB.
MEASURED = """
import atexit, re, sys
from coro.__main__ import main
def tell():
    status = open("/proc/self/status").read()
    sys.stderr.write(re.search(r"VmHWM:\\s*(\\d+)", status)[1])
atexit.register(tell)
main()
"""


class TestJSONLines:
    def test_one_object_a_url(self, nginx: Nginx) -> None:
        urls = [nginx.url("/1k.txt"), nginx.url("/page.html")]
        ran = run("fetch", *urls)
        assert (ran.status, ran.stderr) == (0, "")
        lines = ran.by_url()
        assert {url: lines[url]["bytes"] for url in urls} == {urls[0]: 1024, urls[1]: 16200}
        for line in lines.values():
            assert list(line) == ["url", "code", "bytes", "timings", "error"]
            assert (line["code"], line["error"]) == (200, None)
            assert list(line["timings"]) == TIMINGS
            assert 0 < line["timings"]["total"] < LIMIT

    def test_any_status_but_2xx_is_a_failure(self, nginx: Nginx) -> None:
        good, bad = nginx.url("/1k.txt"), nginx.url("/none")
        ran = run("fetch", good, bad)
        assert ran.status == 1
        assert ran.by_url()[bad]["code"] == 404
        assert ran.by_url()[bad]["error"] == "HTTP 404: Not Found"
        assert ran.by_url()[good]["error"] is None
        assert ran.stderr == f"coro: {bad}: HTTP 404: Not Found\n"

    def test_the_scheme_may_be_left_out(self, nginx: Nginx) -> None:
        url = f"127.0.0.1:{nginx.port}/1k.txt"
        (line,) = run("fetch", url).lines
        assert (line["url"], line["code"]) == (url, 200)

    def test_redirects_are_followed_and_told(self, nginx: Nginx) -> None:
        (line,) = run("fetch", nginx.url("/moved")).lines
        assert (line["code"], line["effective_url"]) == (200, nginx.url("/1k.txt"))

    def test_endless_redirects_fail(self, raw_server: RawServerFactory) -> None:
        again = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"
        server = raw_server(answer(*[again] * 20))
        ran = run("fetch", server.url())
        assert ran.status == 1
        told = f"more than 10 redirects, which lead in a circle: {server.url()} -> {server.url()}"
        assert ran.lines[0]["error"] == f"HTTP 302: {told}"

    def test_no_more_than_so_many_at_once(self, raw_server: RawServerFactory) -> None:
        lock = threading.Lock()
        under_way, most = 0, 0
        three = threading.Barrier(3)

        def script(conn: socket.socket) -> None:
            nonlocal under_way, most
            read_request(conn)
            with lock:
                under_way += 1
                most = max(most, under_way)
            three.wait(LIMIT)
            with lock:
                under_way -= 1
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        server = raw_server(script)
        ran = run("fetch", "--concurrency", 3, *(server.url(f"/{n}") for n in range(9)))
        assert (ran.status, len(ran.lines), most) == (0, 9, 3)


class TestRequest:
    def exchange(
        self, raw_server: RawServerFactory, *arguments: object, stdin: bytes = b""
    ) -> tuple[bytes, bytes]:
        """Fetch with arguments; return the head and the body of the request."""
        requests = []

        def script(conn: socket.socket) -> None:
            requests.append(read_request(conn))
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        server = raw_server(script)
        ran = run("fetch", *arguments, server.url("/path?query"), stdin=stdin)
        assert ran.status == 0, ran
        head, _, body = requests[0].partition(b"\r\n\r\n")
        return head, body

    def test_a_plain_get(self, raw_server: RawServerFactory) -> None:
        head, body = self.exchange(raw_server)
        assert head.startswith(b"GET /path?query HTTP/1.1\r\n")
        assert body == b""

    def test_method_and_headers(self, raw_server: RawServerFactory) -> None:
        head, _ = self.exchange(
            raw_server, "-X", "propfind", "-H", "X-One: 1", "-H", "X-One:two", "-H", "Depth: 0"
        )
        assert head.startswith(b"PROPFIND /path?query HTTP/1.1\r\n")
        assert {b"X-One: 1", b"X-One: two", b"Depth: 0"} <= set(head.split(b"\r\n"))

    def test_data_is_posted(self, raw_server: RawServerFactory) -> None:
        head, body = self.exchange(raw_server, "-d", "a=ü")
        assert head.startswith(b"POST ")
        assert body == "a=ü".encode()

    def test_data_from_a_file(self, raw_server: RawServerFactory, tmp_path: Path) -> None:
        file = tmp_path / "body"
        file.write_bytes(bytes(range(256)))
        head, body = self.exchange(raw_server, "-X", "PUT", "--data", f"@{file}")
        assert head.startswith(b"PUT ")
        assert body == bytes(range(256))

    def test_data_from_standard_input(self, raw_server: RawServerFactory) -> None:
        assert self.exchange(raw_server, "-d", "@-", stdin=b"piped")[1] == b"piped"


class TestInput:
    def test_a_file(self, nginx: Nginx, tmp_path: Path) -> None:
        one, two, three = (nginx.url(f"/1k.txt?{n}") for n in range(3))
        file = tmp_path / "urls"
        file.write_bytes(
            b"\xef\xbb\xbf" + f"{one}\r\n\n# no URL\n  \n  {two}  \n{three}#part".encode()
        )
        ran = run("fetch", "--input", file)
        assert (ran.status, ran.stderr) == (0, "")
        assert set(ran.by_url()) == {one, two, f"{three}#part"}

    def test_standard_input_after_arguments(self, nginx: Nginx) -> None:
        ran = run("fetch", nginx.url("/page.html"), "--input", "-", stdin=nginx.url().encode())
        assert [line["bytes"] for line in ran.lines] == [16200, 1024]

    def test_it_may_be_empty(self) -> None:
        assert run("fetch", "--input", "-").status == 0

    def test_a_chunk_that_ends_inside_a_line(self, nginx: Nginx) -> None:
        lines = [nginx.url(f"/1k.txt?{n:0500}") for n in range(400)]
        ran = run("fetch", "--input", "-", stdin="\n".join(lines).encode())
        assert ran.status == 0
        assert sorted(ran.by_url()) == lines

    def test_a_line_is_fetched_while_the_next_is_waited_for(self, nginx: Nginx) -> None:
        with running("fetch", "--input", "-", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for n in range(3):
                url = nginx.url(f"/1k.txt?{n}")
                process.stdin.write(f"{url}\n".encode())
                process.stdin.flush()
                assert json.loads(process.stdout.readline())["url"] == url
            assert ended(process) == (0, "")

    def test_an_endless_list_is_not_read_ahead(self, nginx: Nginx) -> None:
        with running("fetch", "--input", "-", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            stdin, written = process.stdin, 0

            def feed() -> None:
                nonlocal written
                line = f"{nginx.url()}\n".encode()
                with contextlib.suppress(BrokenPipeError):
                    while True:
                        written += stdin.write(line)
                with contextlib.suppress(BrokenPipeError):
                    stdin.close()

            feeder = threading.Thread(target=feed)
            feeder.start()
            for _ in range(3):
                process.stdout.readline()
            process.stdout.close()
            assert process.wait(LIMIT) == 141
            feeder.join(LIMIT)
            assert not feeder.is_alive()
            assert process.stderr is not None
            assert process.stderr.read() == b""

    def test_what_is_no_url_concerns_only_itself(self, nginx: Nginx) -> None:
        good = nginx.url()
        bad = [b"http://\xff/", b"ftp://h/", b"http://a b/", b"h" * 200_000, b"\x1b[2Jx"]
        ran = run("fetch", "--input", "-", stdin=b"\n".join([*bad, good.encode()]))
        assert ran.status == 1
        assert len(ran.lines) == 6
        assert ran.by_url()[good]["error"] is None
        assert [line["code"] for line in ran.lines].count(599) == 5
        assert len(ran.stderr.splitlines()) == 5
        assert "\x1b" not in ran.stderr


class TestOutput:
    def test_bodies_become_files(self, nginx: Nginx, tmp_path: Path) -> None:
        directory = tmp_path / "new" / "pages"
        urls = [nginx.url("/1k.txt"), nginx.url("/page.html"), nginx.url("/1k.txt?again")]
        ran = run("fetch", "--output", directory, *urls, nginx.url("/none"))
        assert ran.status == 1
        files = {url: Path(ran.by_url()[url]["file"]) for url in urls}
        assert set(files.values()) == set(directory.iterdir())
        assert files[urls[0]].read_bytes() == SMALL
        assert files[urls[1]].read_bytes() == (nginx.root / "page.html").read_bytes()
        assert "file" not in ran.by_url()[nginx.url("/none")]

    def test_an_empty_body_is_an_empty_file(
        self, raw_server: RawServerFactory, tmp_path: Path
    ) -> None:
        server = raw_server(answer(b"HTTP/1.1 204 No Content\r\n\r\n"))
        (line,) = run("fetch", "-o", tmp_path, server.url()).lines
        assert Path(line["file"]).read_bytes() == b""

    def test_only_what_is_whole_replaces_an_older_file(
        self, raw_server: RawServerFactory, tmp_path: Path
    ) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        responses = [head + b"first", head + b"sec", head + b"third"]

        def script(conn: socket.socket) -> None:
            read_request(conn)
            conn.sendall(responses.pop(0))

        server = raw_server(script)
        seen = []
        for _ in range(3):
            run("fetch", "-o", tmp_path, server.url())
            (file,) = tmp_path.iterdir()
            seen.append(file.read_bytes())
        assert seen == [b"first", b"first", b"third"]

    def test_a_body_that_cannot_be_written(self, nginx: Nginx, tmp_path: Path) -> None:
        (line,) = run("fetch", "-o", tmp_path, nginx.url()).lines
        file = Path(line["file"])
        file.unlink()
        file.mkdir()
        ran = run("fetch", "-o", tmp_path, nginx.url())
        assert ran.status == 1
        assert ran.stderr == f"coro: {nginx.url()}: cannot write {file}: Is a directory\n"
        assert list(tmp_path.iterdir()) == [file]

    def test_to_standard_output(self, nginx: Nginx) -> None:
        page = (nginx.root / "page.html").read_bytes()
        ran = run("fetch", "-o", "-", nginx.url(), nginx.url("/none"), nginx.url("/page.html"))
        assert (ran.status, ran.stdout) == (1, SMALL + page)

    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    def test_50_mb_take_no_memory(
        self, nginx: Nginx, ca: Authority, tmp_path: Path, tls: bool
    ) -> None:
        peaks = []
        for path in ("/1k.txt", "/big.bin"):
            ran = run(
                "fetch", "--ca", ca.pem, "-o", tmp_path, nginx.url(path, tls=tls),
                command=[sys.executable, "-c", MEASURED],
            )  # fmt: skip
            assert ran.status == 0, ran
            peaks.append(int(ran.stderr))
        file = Path(ran.lines[0]["file"])
        assert file.stat().st_size == ran.lines[0]["bytes"] == BIG_SIZE
        assert file.read_bytes() == (nginx.root / "big.bin").read_bytes()
        file.unlink()
        assert peaks[1] - peaks[0] < 8 * 1024, peaks


class TestFileNames:
    TRICKY = [
        "http://h/a/b",
        "https://h/a/b",
        "https://h/a_b",
        "https://h/a?b",
        "https://h/a//b",
        "https://h/a/b/",
        "https://h/a/b?",
        "https://h/A/b",
        "https://h/%61/b",
        "https://user@h/a/b",
        "https://user:word@h/a/b",
        "https://h:8443/a/b",
        "https://h/",
        "https://h/a/~b",
        "https://h_/a/b",
        "https://h/..%2f..%2fetc%2fpasswd",
        "https://h/%2e%2e%2f%2e%2e%2fetc",
        "https://h/a\\..\\..\\b",
        "https://h/a%00b",
        "https://h/a%0Ab",
        "https://.h/a",
        "https://../a",
        "https://.../",
        "https://[::1]/a",
        "https://h/" + "x" * 5000,
        "https://h/" + "x" * 5000 + "y",
        "https://h/x." + "x" * 5000,
        "https://h/-rf",
        "https://h/ü",
        "https://h/CON",
        "https://h/.coro-1-1.part",
    ]

    def test_they_are_distinct_and_plain(self) -> None:
        targets = {parse(url) for url in self.TRICKY}
        names = {file_name(target) for target in targets}
        assert len(names) == len(targets) >= len(self.TRICKY) - 1
        for name in names:
            assert re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", name), name
            assert len(name) <= 255

    def test_they_can_be_read(self) -> None:
        assert file_name(parse("https://example.org/docs/intro.html")) == (
            "example.org_docs_intro.html"
        )
        assert re.fullmatch(
            r"example\.org_big\.tar~[a-z2-7]{12}\.gz",
            file_name(parse("http://example.org/big.tar.gz")),
        )

    def test_they_stay_below_the_directory(self, nginx: Nginx, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        paths = ["/../../up", "/%2e%2e/%2e%2e/up", "/..%2f..%2fup", "//etc/passwd", "/.."]
        urls = [nginx.url(path) for path in paths]
        (nginx.root / "up").write_text("up")
        try:
            run("fetch", "--output", inside, *urls)
        finally:
            (nginx.root / "up").unlink()
        assert list(tmp_path.iterdir()) == [inside]
        assert all(re.match("127.0.0.1_", file.name) for file in inside.iterdir())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


class TestFailures:
    """Each one is a line that says what happened and where; none is a hang or a traceback.

    The limits are long enough for a busy machine to reach the phase in which they are to run out.
    """

    def fail(self, url: str, *arguments: object) -> dict[str, Any]:
        ran = run("fetch", *arguments, url)
        assert ran.status == 1
        (line,) = ran.lines
        assert (line["url"], line["code"]) == (url, 599)
        assert line["error"]
        assert ran.stderr == f"coro: {url}: {line['error']}\n"
        return line

    def test_refused(self, refused_port: int) -> None:
        line = self.fail(f"http://127.0.0.1:{refused_port}/")
        assert f"127.0.0.1:{refused_port}" in line["error"]
        assert "Connection refused" in line["error"]
        assert line["phase"] == "connect"

    def test_unknown_host(self) -> None:
        line = self.fail("http://nowhere.invalid/", "--connect-timeout", 5)
        assert "nowhere.invalid" in line["error"]
        assert line["phase"] == "dns"

    def test_nobody_takes_the_connection(self, deaf_port: int) -> None:
        line = self.fail(f"http://127.0.0.1:{deaf_port}/", "--connect-timeout", 1)
        assert line["error"] == f"Timeout while connecting to 127.0.0.1:{deaf_port}"

    @pytest.mark.parametrize("option", ["--timeout", "--inactivity-timeout"])
    def test_silent(self, raw_server: RawServerFactory, option: str) -> None:
        server = raw_server(stay_silent)
        line = self.fail(server.url(), option, 1)
        assert "Timeout" in line["error"]
        assert line["phase"] == "wait"

    def test_silent_tls(self, raw_server: RawServerFactory) -> None:
        server = raw_server(stay_silent)
        line = self.fail(f"https://127.0.0.1:{server.port}/", "--connect-timeout", 2)
        assert line["error"] == f"Timeout during TLS handshake with 127.0.0.1:{server.port}"

    def test_silent_in_the_middle(self, raw_server: RawServerFactory, tmp_path: Path) -> None:
        def script(conn: socket.socket) -> None:
            read_request(conn)
            conn.sendall(HEAD + b"half")
            stay_silent(conn)

        server = raw_server(script)
        line = self.fail(server.url(), "--inactivity-timeout", 0.2, "--output", tmp_path)
        assert line["phase"] == "body"
        assert list(tmp_path.iterdir()) == []

    def test_closed_in_the_middle(self, raw_server: RawServerFactory, tmp_path: Path) -> None:
        server = raw_server(answer(HEAD + b"half"))
        line = self.fail(server.url(), "--output", tmp_path)
        assert line["error"] == "connection closed after 4 of 10 bytes of the body"
        assert line["bytes"] == 4
        assert list(tmp_path.iterdir()) == []

    def test_closed_before_a_response(self, raw_server: RawServerFactory) -> None:
        assert "before any response" in self.fail(raw_server(answer(b"")).url())["error"]

    def test_no_http(self, raw_server: RawServerFactory) -> None:
        server = raw_server(answer(b"SSH-2.0-OpenSSH_9.9\r\n"))
        self.fail(server.url())

    def test_a_certificate_of_an_unknown_authority(self, nginx: Nginx) -> None:
        line = self.fail(nginx.url(tls=True))
        assert f"the certificate of localhost:{nginx.tls_port} is not trusted" in line["error"]
        assert line["phase"] == "tls"

    def test_a_certificate_for_another_name(
        self, raw_server: RawServerFactory, ca: Authority
    ) -> None:
        server = raw_server(stay_silent, tls=ca.server_context("other.example"))
        line = self.fail(f"https://localhost:{server.port}/", "--ca", ca.pem)
        assert "localhost" in line["error"]

    def test_no_tls(self, raw_server: RawServerFactory) -> None:
        def script(conn: socket.socket) -> None:
            conn.recv(1)
            conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server = raw_server(script)
        line = self.fail(f"https://localhost:{server.port}/")
        assert f"TLS with localhost:{server.port} failed" in line["error"]

    def test_insecure_says_so(self, nginx: Nginx) -> None:
        ran = run("fetch", "--insecure", nginx.url(tls=True))
        assert (ran.status, ran.lines[0]["bytes"]) == (0, 1024)
        assert re.fullmatch(r"coro: warning: .*--insecure.*\n", ran.stderr)

    def test_a_secret_is_not_told(self, refused_port: int) -> None:
        ran = run("fetch", f"http://me:secret@127.0.0.1:{refused_port}/")
        assert "secret" not in ran.stderr


class TestTerminal:
    def watch(self, *arguments: object, stdout: bool = False) -> tuple[int, str, bytes]:
        """Run on a terminal; return the status, what that showed, and standard output."""
        master, terminal = pty.openpty()
        with (
            os.fdopen(master, "rb", buffering=0) as screen,
            running(
                *arguments,
                stderr=terminal,
                stdout=terminal if stdout else subprocess.PIPE,
                env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100"},
            ) as process,
        ):
            os.close(terminal)
            shown = []
            with contextlib.suppress(OSError):  # EIO: the last process has left the terminal
                while piece := screen.read(65536):
                    shown.append(piece)
            printed = process.stdout.read() if process.stdout is not None else b""
            return process.wait(LIMIT), b"".join(shown).decode(), printed

    def test_a_bar_on_standard_error_alone(self, nginx: Nginx) -> None:
        status, shown, printed = self.watch("fetch", nginx.url(), nginx.url("/none"))
        assert status == 1
        assert "━" in shown
        assert "2/2" in shown
        assert "1 failed" in shown
        assert f"{nginx.url('/none')}: HTTP 404" in shown
        assert '"url"' not in shown
        assert len([json.loads(line) for line in printed.splitlines()]) == 2

    def test_lines_and_bar_share_a_terminal(self, nginx: Nginx) -> None:
        status, shown, _ = self.watch("fetch", nginx.url(), stdout=True)
        assert status == 0
        assert "1/1" in shown
        line = re.search(r'\{"url": .*?\}, "error": null\}', shown)
        assert line is not None
        assert json.loads(line[0])["bytes"] == 1024

    def test_bodies_have_the_terminal_for_themselves(self, nginx: Nginx) -> None:
        assert self.watch("fetch", "-o", "-", nginx.url(), stdout=True) == (0, SMALL.decode(), b"")


class TestTheEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_in_order(
        self, raw_server: RawServerFactory, tmp_path: Path, number: signal.Signals
    ) -> None:
        begun = threading.Event()

        def script(conn: socket.socket) -> None:
            read_request(conn)
            # More than the buffers between us hold: part of it was written to the file.
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(20_000_000))
            begun.set()
            stay_silent(conn)

        server = raw_server(script)
        with running("fetch", "-o", tmp_path, server.url()) as process:
            assert begun.wait(LIMIT)
            assert len(list(tmp_path.iterdir())) == 1
            process.send_signal(number)
            assert ended(process) == (128 + number, f"coro: ended by {number.name}\n")
        assert list(tmp_path.iterdir()) == []

    def test_nobody_reads_a_body(self, nginx: Nginx) -> None:
        with running("fetch", "-o", "-", nginx.url("/big.bin")) as process:
            assert process.stdout is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.wait(LIMIT) == 141
            assert process.stderr is not None
            assert process.stderr.read() == b""

    def test_a_slow_reader_stops_no_fetch(
        self, nginx: Nginx, raw_server: RawServerFactory, full_pipe: int
    ) -> None:
        """One worker has a line that nobody takes; the other one goes on with its long fetch."""
        received = threading.Event()

        def script(conn: socket.socket) -> None:
            for n in range(8):
                read_request(conn)
                conn.sendall(
                    b"HTTP/1.1 302 Found\r\nLocation: /%d\r\nContent-Length: 0\r\n\r\n" % n
                )
            read_request(conn)
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(20_000_000))
            received.set()
            stay_silent(conn)

        server = raw_server(script)
        with running("fetch", nginx.url(), server.url(), stdout=full_pipe) as process:
            assert received.wait(LIMIT)
            process.send_signal(signal.SIGINT)
            assert ended(process) == (130, "coro: ended by SIGINT\n")

    @pytest.fixture
    def full_pipe(self) -> Iterator[int]:
        """The writing end of a pipe that takes no more."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        yield writer
        os.close(reader)
        os.close(writer)


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["fetch"], "give URLs, or --input FILE"),
            (["fetch", "--input", "/nowhere/urls"], "cannot read /nowhere/urls"),
            (["fetch", "--input", "/"], "Is a directory"),
            (["fetch", "-H", "no colon", "h"], "'Name: value'"),
            (["fetch", "-H", "Na me: x", "h"], "invalid header name"),
            (["fetch", "-H", "X: a\r\nY: b", "h"], "invalid value"),
            (["fetch", "-X", "GE T", "h"], "not a method"),
            (["fetch", "-d", "@/nowhere", "h"], "cannot read /nowhere"),
            (["fetch", "-d", "@-", "--input", "-"], "standard input"),
            (["fetch", "--ca", "/nowhere", "h"], "/nowhere"),
            (["fetch", "--ca", __file__, "h"], "no file of certificates"),
            (["fetch", "--output", __file__, "h"], "cannot make the directory"),
            (["fetch", "--timeout", "-1", "h"], "--timeout"),
            (["fetch", "--timeout", "nan", "h"], "--timeout"),
            (["fetch", "--connect-timeout", "inf", "h"], "--connect-timeout"),
            (["fetch", "--concurrency", "0", "h"], "--concurrency"),
            (["fetch", "--concurrency", "999999999999", "h"], "--concurrency"),
            (["fetch", "--nonsense"], "--nonsense"),
            (["nonsense"], "nonsense"),
        ],
    )
    def test_a_wrong_call(self, arguments: list[str], told: str) -> None:
        ran = run(*arguments)
        assert (ran.status, ran.stdout) == (2, b"")
        assert told in re.sub(r"\s+", " ", ran.stderr)

    @pytest.mark.parametrize("arguments", [["--help"], ["fetch", "--help"], ["-h"]])
    def test_help_teaches_by_examples(self, arguments: list[str]) -> None:
        ran = run(*arguments)
        assert (ran.status, ran.stderr) == (0, "")
        assert "coro fetch --ca our-ca.pem https://intranet.example/" in ran.stdout.decode()

    def test_version(self) -> None:
        assert run("--version").stdout.decode() == f"coro {coro.__version__}\n"

    @pytest.mark.parametrize("missing", ["click", "rich"])
    def test_a_missing_extra_is_named(self, missing: str) -> None:
        program = (
            f"import sys, runpy; sys.modules[{missing!r}] = None; "
            "runpy.run_module('coro', run_name='__main__')"
        )
        ran = run("--version", command=[sys.executable, "-c", program])
        if missing == "click":
            assert (ran.status, ran.stdout) == (2, b"")
            assert ran.stderr == "coro: the command needs click: pip install 'coro-loop[cli]'\n"
        else:
            assert ran.status == 0


def test_closed_standard_output(nginx: Nginx) -> None:
    """Descriptor 1 is then a socket of ours, which must not get the lines."""
    ran = run("fetch", nginx.url(), command=["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND])
    assert ran.status == 2
    assert "Standard output is closed" in ran.stderr
