"""``coro serve``: what it serves, how it is told, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.authority import Authority
from tests.support.command import run
from tests.support.documents import ROOT
from tests.support.serving import coro_serve

APP = """
import asyncio
import json
import os

from coro import coroutine, sleep
from coro.http import Response, Router

number = 5


@coroutine
def handler(request):
    yield sleep(0.001)
    return Response.json({
        "ip": request.remote_ip, "protocol": request.protocol, "body": len(request.body),
        "process": os.getpid(),
    })


async def slow(request):
    async def pieces():
        yield b"s"
        await asyncio.sleep(0.3)
        yield b"low, and whole"
    return Response(pieces())


def ambiguous(a, b):
    pass


class Object:
    def __call__(self, request):
        return Response("of an object")


thing = Object()
router = Router()
router.add("GET", "/", thing)


class App:
    def __init__(self, fails="", says=""):
        self.fails, self.says = fails, says

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for what in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{what}"
                scope["state"]["began"] = True
                outcome = "failed" if self.fails == what else "complete"
                await send({"type": f"lifespan.{what}.{outcome}", "message": "no database"})
            return
        told = {"began": scope["state"].get("began"), "root": scope["root_path"],
                "client": scope["client"][0], "scheme": scope["scheme"]}
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})


app = App()
no_start, no_end = App("startup"), App("shutdown")


def legacy(*args, **kwargs):
    return app(*args, **kwargs)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with an application and a page."""
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "page.txt").write_text("of the page\n" * 200)
    return tmp_path


def get(
    port: int, path: str = "/", headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def refuses(port: int) -> bool:
    """Whether nobody listens at a port any longer; who just missed a worker is reset."""
    try:
        get(port)
    except ConnectionRefusedError:
        return True
    except (ConnectionError, http.client.BadStatusLine):
        pass
    return False


class Asking:
    """A client whose requests can be under way."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._response: http.client.HTTPResponse | None = None
        self.connection.connect()

    def ask(self, path: str) -> None:
        self.connection.request("GET", path)

    def hear(self, size: int | None = None) -> bytes:
        """The body, or so much of it."""
        if self._response is None:
            self._response = self.connection.getresponse()
        return self._response.read(size)

    def close(self) -> None:
        self.connection.close()


class TestTargets:
    def test_a_handler(self, site: Path) -> None:
        with coro_serve("app:handler", "-p", 0, cwd=site) as served:
            got = json.loads(get(served.port, body=b"x" * 10)[1])
            assert (got["ip"], got["protocol"], got["body"]) == ("127.0.0.1", "http", 10)
        assert "200 POST / (127.0.0.1)" in served.log

    @pytest.mark.parametrize("target", ["app:thing", "app:router"])
    def test_an_object(self, site: Path, target: str) -> None:
        with coro_serve(target, "-p", 0, cwd=site) as served:
            assert get(served.port)[1] == b"of an object"

    @pytest.mark.parametrize("target", [["app:app"], ["app:legacy", "--interface", "asgi"]])
    def test_an_asgi_application(self, site: Path, target: list[str]) -> None:
        with coro_serve(*target, "-p", 0, "--root-path", "/mounted", cwd=site) as served:
            got = json.loads(get(served.port)[1])
            assert got == {
                "began": True,
                "root": "/mounted",
                "client": "127.0.0.1",
                "scheme": "http",
            }

    def test_a_directory(self, site: Path) -> None:
        with coro_serve(site, "-p", 0, "--listing", "--compress", cwd=site) as served:
            status, body, headers = get(served.port, "/page.txt", {"Accept-Encoding": "gzip"})
            assert (status, headers["Content-Encoding"]) == (200, "gzip")
            assert len(body) < 200
            assert b"page.txt" in get(served.port)[1]
            assert get(served.port, "/../etc/passwd")[0] == 404

    def test_without_listing(self, site: Path) -> None:
        with coro_serve(".", "-p", 0, "--no-access-log", cwd=site) as served:
            assert get(served.port)[0] == 404
        assert "GET" not in served.log


class TestPlaces:
    def test_tls(self, site: Path, ca: Authority) -> None:
        with coro_serve("app:handler", "-p", 0, "--certfile", ca.issue(), cwd=site) as served:
            assert served.url.startswith("https://")
            context = ssl.create_default_context(cafile=ca.pem)
            context.set_alpn_protocols(["h2", "http/1.1"])
            with (
                socket.create_connection(("127.0.0.1", served.port), 20) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as tls,
            ):
                assert tls.selected_alpn_protocol() == "http/1.1"
                tls.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert b'"protocol":"https"' in b"".join(iter(lambda: tls.recv(9999), b""))

    def test_a_unix_socket(self, site: Path) -> None:
        path = site / "socket"
        options = ("--unix", path, "--unix-mode", "660", "--trust-proxy", "unix")
        with coro_serve("app:handler", *options, cwd=site) as served:
            assert served.url == str(path)
            assert path.stat().st_mode & 0o777 == 0o660
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(
                    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\n"
                    b"Connection: close\r\n\r\n"
                )
                assert b'"ip":"192.0.2.7"' in b"".join(iter(lambda: sock.recv(9999), b""))

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_socket_that_was_handed_over_outlives_a_restart(
        self, site: Path, workers: int
    ) -> None:
        """Who comes while nobody serves waits for the one that begins."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            fd, port = listener.fileno(), listener.getsockname()[1]
            options = ("--fd", fd, "--workers", workers)
            with coro_serve("app:thing", *options, cwd=site, fds=[fd]) as served:
                assert served.port == port
                assert get(port)[1] == b"of an object"
            with contextlib.closing(Asking(port)) as asking:
                asking.ask("/")
                with coro_serve("app:thing", *options, cwd=site, fds=[fd]):
                    assert asking.hear() == b"of an object"

    @pytest.mark.parametrize(
        ("trusted", "ip"),
        [((), "127.0.0.1"), (("127.0.0.0/8",), "192.0.2.7"), (("10.0.0.1", "unix"), "127.0.0.1")],
    )
    def test_who_may_tell_of_the_client(self, site: Path, trusted: list[str], ip: str) -> None:
        options = [word for each in trusted for word in ("--trust-proxy", each)]
        with coro_serve("app:app", "-p", 0, *options, cwd=site) as served:
            headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
            got = json.loads(get(served.port, headers=headers)[1])
            assert got["client"] == ip
            assert got["scheme"] == ("http" if ip == "127.0.0.1" else "https")

    def test_workers_share_a_port(self, site: Path) -> None:
        with coro_serve("app:handler", "-p", 0, "--workers", 2, cwd=site) as served:
            processes = {json.loads(get(served.port)[1])["process"] for _ in range(40)}
            assert processes
            assert served.process.pid not in processes
            # One that is killed is replaced.
            os.kill(processes.pop(), signal.SIGKILL)
            assert all(get(served.port)[0] == 200 for _ in range(20))
        # Who runs it is told.
        assert re.search(r"^worker \d .*by SIGKILL; starting it again$", served.log, re.MULTILINE)


class TestTheEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_request_under_way_is_answered(self, site: Path, number: int) -> None:
        with coro_serve("app:slow", "-p", 0, cwd=site) as served:
            with (
                contextlib.closing(Asking(served.port)) as begun,
                contextlib.closing(Asking(served.port)) as waiting,
            ):
                begun.ask("/")
                # Its answer has begun: the other one's connection has been accepted by then.
                assert begun.hear(1) == b"s"
                waiting.ask("/")
                served.process.send_signal(number)
                assert begun.hear() == waiting.hear()[1:] == b"low, and whole"
            assert served.process.wait(20) == 0

    def test_workers_do_not_let_clients_queue_behind_them(self, site: Path) -> None:
        """While they finish what they have, who comes is refused at once."""
        with coro_serve("app:handler", "-p", 0, "--workers", 2, cwd=site) as served:
            with contextlib.closing(Asking(served.port)) as asking:
                asking.connection.putrequest("POST", "/")
                asking.connection.putheader("Content-Length", "3")
                asking.connection.endheaders(b"ab")
                served.process.send_signal(signal.SIGTERM)
                while not refuses(served.port):
                    pass
                asking.connection.send(b"c")
                assert json.loads(asking.hear())["body"] == 3
            assert served.process.wait(20) == 0

    def test_the_second_signal_does_not_wait(self, site: Path) -> None:
        (site / "hangs.py").write_text(
            "import asyncio\nasync def hangs(request):\n    await asyncio.sleep(1000)\n"
        )
        with (
            pytest.raises(AssertionError),
            coro_serve("hangs:hangs", "-p", 0, "--grace", 0, cwd=site) as served,
        ):
            with socket.create_connection(("127.0.0.1", served.port)) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                time_out = time.monotonic() + 20
                while served.process.poll() is None and time.monotonic() < time_out:
                    served.process.send_signal(signal.SIGINT)
                    time.sleep(0.05)
            assert served.process.returncode == 1
            raise AssertionError("as expected, the block's status is not 0")

    def test_an_application_that_cannot_start(self, site: Path) -> None:
        got = run("serve", "app:no_start", "-p", 0, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"})
        assert got.status == 3
        assert got.stderr.splitlines()[-1] == "coro: the application cannot start: no database"

    def test_an_application_that_cannot_end(self, site: Path) -> None:
        with coro_serve("app:no_end", "-p", 0, cwd=site) as served:
            assert get(served.port)[0] == 200
        assert "the application cannot end: no database" in served.log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing' is neither a directory nor 'module:attribute'"),
        (["app:"], "neither a directory nor"),
        (["nothing:app"], "there is no module 'nothing' here or on the path"),
        (["app.py:app"], "did you mean app?"),
        (["app:none"], "app has no attribute 'none'; it has App, Object, ambiguous,"),
        (["app:number"], "app:number is 5, which cannot be called"),
        (["app:ambiguous"], "say --interface asgi"),
        (["app:app", "--certfile", "app.py"], "cannot use the certificate app.py"),
        (["app:app", "--keyfile", "app.py"], "--keyfile is for a --certfile"),
        (["app:app", "--trust-proxy", "proxy"], "Invalid value for --trust-proxy"),
        (["app:app", "--unix", "/nowhere/socket"], "cannot listen on /nowhere/socket"),
        (["app:app", "--unix", "socket", "--unix-mode", "rw"], "not three octal digits"),
        (["app:app", "--fd", "0"], "cannot listen on descriptor 0: "),
        (["app:app", "--fd", "0", "--unix", "socket"], "exclude each other"),
        (["app:app", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000"),
        (["app:app", "--port", "65536"], "65536"),
    ],
)
def test_wrong_calls(
    site: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(site)
    got = run("serve", *arguments, env={"PYTHONPATH": str(ROOT)})
    assert got.status in (1, 2)
    assert message in " ".join(got.stderr.split())


def test_a_module_that_lacks_something_itself_says_so(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback shows where."""
    monkeypatch.chdir(site)
    with pytest.raises(AssertionError, match="nothing_of_that_name"):
        run("serve", "broken:app", env={"PYTHONPATH": str(ROOT)})
