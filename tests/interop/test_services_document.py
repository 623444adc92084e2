"""What docs/services.md shows besides programs: it does what the page says."""

import http.client
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support.daemons import free_ports, run_daemon
from tests.support.documents import ROOT, blocks
from tests.support.needs import needs_command
from tests.support.serving import coro_serve

DOCUMENT = "docs/services.md"
PATIENCE = 20.0

SOCKET, SERVICE = blocks(DOCUMENT, "systemd")
(NGINX,) = blocks(DOCUMENT, "nginx")
(CONTAINER,) = blocks(DOCUMENT, "dockerfile")

APP = """
import json
import os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    told = {"client": scope["client"][0], "scheme": scope["scheme"], "process": os.getpid()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
"""

AROUND = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{shown}
}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def ask(port: int, headers: dict[str, str] | None = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with closing(connection):
        connection.request("GET", "/", headers=headers or {})
        response = connection.getresponse()
        body = response.read() if response.status == 200 else b"{}"
        return response.status, json.loads(body)


def test_nginx_in_front(site: Path) -> None:
    nginx = needs_command("nginx", "apt-get install nginx-light")
    shown = NGINX.replace("/run/shop/http.sock", str(site / "socket"))
    (port,) = free_ports(1)
    shown = shown.replace("listen 80;", f"listen 127.0.0.1:{port};")
    (line,) = re.findall(r"^    coro serve (.+)$", (ROOT / DOCUMENT).read_text(), re.MULTILINE)[-1:]
    arguments = [word.replace("/run/shop/http.sock", str(site / "socket")) for word in line.split()]
    assert "--trust-proxy" in arguments
    with coro_serve(*arguments, cwd=site), ExitStack() as stack:
        user = "user root;" if os.geteuid() == 0 else ""
        configuration = site / "nginx.conf"
        configuration.write_text(AROUND.format(directory=site, user=user, shown=shown))
        log = site / "error.log"
        run_daemon(stack, [nginx, "-e", str(log), "-c", str(configuration)], port, log)
        status, told = ask(port)
        assert (status, told["client"], told["scheme"]) == (200, "127.0.0.1", "http")
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        assert ask(port, upgrade)[0] == 101


def test_systemd_knows_the_units(tmp_path: Path) -> None:
    analyze = needs_command("systemd-analyze", "apt-get install systemd")
    (tmp_path / "shop.socket").write_text(SOCKET)
    service = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", SERVICE, flags=re.MULTILINE)
    (tmp_path / "shop.service").write_text(service)
    ran = subprocess.run(
        [analyze, "verify", "./shop.service", "./shop.socket"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    about_these = [line for line in ran.stderr.splitlines() if "shop." in line]
    assert (ran.returncode, about_these) == (0, [])


def test_a_socket_as_systemd_hands_it_over(site: Path) -> None:
    activate = needs_command("systemd-socket-activate", "apt-get install systemd")
    (port,) = free_ports(1)
    (line,) = re.findall(r"^ExecStart=\S+/coro (.+)$", SERVICE, re.MULTILINE)
    command = [activate, "-l", f"127.0.0.1:{port}", "-E", f"PYTHONPATH={ROOT}"]
    command += [sys.executable, "-m", "coro", *shlex.split(line)]
    with ExitStack() as stack:
        run_daemon(stack, command, port, None, cwd=site)
        assert ask(port)[0] == 200


class Customers:
    """Clients that ask without a pause, some on new connections and some on kept ones.

    Attributes:
        errors: what went wrong; nothing is tried twice.
    """

    def __init__(self, port: int) -> None:
        self.errors: list[Exception] = []
        self._port = port
        self._answered = threading.Semaphore(0)
        self._enough = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=[keeps]) for keeps in (True, True, False, False)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, keeps: bool) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as held:
            while not self._enough.is_set():
                try:
                    held.request("GET", "/")
                    response = held.getresponse()
                    assert (response.status, response.read() != b"") == (200, True)
                except Exception as error:
                    self.errors.append(error)
                    return
                if response.will_close or not keeps:
                    held.close()
                self._answered.release()

    def served(self, count: int) -> None:
        """Wait until so many more were answered."""
        for _ in range(count):
            assert self._answered.acquire(timeout=PATIENCE)

    def end(self) -> None:
        """Let them ask no more, and wait for their last answers."""
        self._enough.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_restarts_lose_nothing(site: Path, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        fd = listener.fileno()
        command = ("app:app", "--fd", fd, "--workers", workers, "--no-access-log")
        customers = Customers(listener.getsockname()[1])
        for _ in range(3):
            with coro_serve(*command, cwd=site, fds=[fd]):
                customers.served(50)
        with coro_serve(*command, cwd=site, fds=[fd]):
            customers.end()
        assert customers.errors == []


def test_the_container_runs_what_serves(site: Path) -> None:
    (line,) = re.findall(r"^CMD (\[.+\])$", CONTAINER, re.MULTILINE)
    program, command, *arguments = json.loads(line)
    assert (program, command) == ("coro", "serve")
    at = arguments.index("--port") + 1
    arguments[at] = "0"
    with coro_serve(*arguments, cwd=site) as served:
        assert ask(served.port)[0] == 200
