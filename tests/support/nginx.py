"""A private nginx: own configuration, own directory, a master and one worker.

It inherits listening sockets that are bound already: nginx takes their numbers from the variable
``NGINX``, as it does when it replaces its own binary. So no other process can take a port between
the moment it is found free and the moment nginx binds it, and the first connection need not wait.
(With ``master_process off`` it crashes on inherited sockets, hence the master.)
"""

import http.client
import os
import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.authority import Authority
from tests.support.daemons import START, spawn

SMALL = bytes(range(32, 96)) * 16
"""``/1k.txt``: 1024 bytes."""

BIG_SIZE = 50_000_000
"""Bytes of ``/big.bin``."""

CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    log_format exchange '$connection $request_method $request_uri $status $body_bytes_sent';
    access_log {directory}/access.log exchange;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    types {{ text/plain txt; text/html html; application/octet-stream bin; }}
    sendfile on;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    gzip on;
    gzip_min_length 256;
    gzip_types text/plain;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        root {directory}/root;
        location = /moved {{ return 302 /1k.txt; }}
        location = /method {{ default_type text/plain; return 200 "$request_method\\n"; }}
        location = /agent {{ default_type text/plain; return 200 "$http_user_agent\\n"; }}
        location /drip/ {{ alias {directory}/root/; limit_rate 100; }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx.

    It serves ``/1k.txt`` (``SMALL``), ``/big.bin`` (50 MB), ``/page.html`` (16 KB, gzipped for who
    asks), ``/moved`` (302 to ``/1k.txt``), ``/method`` and ``/agent`` (what the request said),
    ``/drip/1k.txt`` (100 bytes a second), and 404 for the rest.

    Attributes:
        port, tls_port: where it listens, on 127.0.0.1.
        root: the directory it serves.
        access_log: a line for each request: connection number, method, path, status, body bytes.
    """

    port: int
    tls_port: int
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    def url(self, path: str = "/1k.txt", *, tls: bool = False) -> str:
        """Return the URL of a path; with ``tls``, one whose certificate says "localhost"."""
        if tls:
            return f"https://localhost:{self.tls_port}{path}"
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def running_nginx(command: str, directory: Path, ca: Authority) -> Iterator[Nginx]:
    """Run nginx for the length of the block; its directory is removed afterwards."""
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        sockets = [socket.create_server(("127.0.0.1", 0), backlog=511) for _ in range(2)]
        port, tls_port = (sock.getsockname()[1] for sock in sockets)
        nginx = Nginx(port, tls_port, directory)
        _fill(nginx.root)
        configuration = directory / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                user="user root;" if os.geteuid() == 0 else "",
                directory=directory,
                port=port,
                tls_port=tls_port,
                certificate=ca.issue(),
            )
        )
        log = directory / "error.log"
        spawn(
            stack,
            [command, "-e", str(log), "-c", str(configuration)],
            env=os.environ | {"NGINX": "".join(f"{sock.fileno()};" for sock in sockets)},
            pass_fds=[sock.fileno() for sock in sockets],
        )
        for sock in sockets:
            sock.close()
        try:
            _greet(port)
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"nginx did not start: {log.read_text()[-2000:]}") from error
        yield nginx


def _fill(root: Path) -> None:
    root.mkdir()
    (root / "1k.txt").write_bytes(SMALL)
    (root / "page.html").write_text("<p>Generators all the way down.</p>\n" * 450)
    piece = random.Random(50).randbytes(1_000_000)
    with (root / "big.bin").open("wb") as big:
        for _ in range(BIG_SIZE // len(piece)):
            big.write(piece)


def _greet(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START)
    try:
        connection.request("GET", "/1k.txt")
        if connection.getresponse().read() != SMALL:
            raise http.client.HTTPException("nginx serves something else")
    finally:
        connection.close()
