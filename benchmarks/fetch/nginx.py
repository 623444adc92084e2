"""A private nginx for the length of a block: own configuration, own directory, one worker."""

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..machine import nginx_path
from ..model import UnavailableError
from ..processes import OTHER_CORE, Child, child

BODY = bytes(range(32, 96)) * 16
"""What is fetched: 1 KB."""

START = 5.0
"""Seconds that nginx has to begin to accept."""

FORGOTTEN = "1h"
"""How long an nginx lives that nobody ended, because this process was killed."""

CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=10;
    types {{ text/plain txt; }}
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {directory}/root;
    }}
}}
"""


@contextmanager
def running_nginx() -> Iterator[str]:
    """Serve ``BODY`` from the other core; gives its URL."""
    path = nginx_path()
    if path is None:
        raise UnavailableError("nginx is not installed (apt install nginx)")
    with tempfile.TemporaryDirectory() as name:
        directory, port = Path(name), _free_port()
        directory.chmod(0o755)  # nginx's worker gives up root
        (directory / "root").mkdir()
        (directory / "root" / "1k.txt").write_bytes(BODY)
        configuration = directory / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(directory=directory, port=port))
        command = ["timeout", FORGOTTEN, path, "-e", "stderr", "-c", str(configuration)]
        with child(command, OTHER_CORE) as running:
            _wait_for(port, running)
            yield f"http://127.0.0.1:{port}/1k.txt"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int, running: Child) -> None:
    """Return when ``port`` accepts."""
    deadline = time.monotonic() + START
    while running.process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=START).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise UnavailableError(f"nginx did not start: {running.last_words()}")
