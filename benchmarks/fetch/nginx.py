"""A private nginx for the length of a block: own configuration, own directory, one worker.

It serves ``/1k.txt``, ``/huge.bin``, and ``/take``, which answers with the former when it has the
whole body of the request; plain, and with a certificate over TLS.
"""

import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..machine import nginx_path
from ..model import UnavailableError
from ..processes import OTHER_CORE, Child, child

BODY = bytes(range(32, 96)) * 16
"""What is fetched: 1 KB."""

START = 5.0
"""Seconds that nginx has to begin to accept."""

HUGE = 1 << 40
"""Bytes of ``/huge.bin``, a file without contents."""

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
    client_body_buffer_size 128k;
    upstream self {{ server 127.0.0.1:{port}; keepalive 100; }}
    server {{
        listen 127.0.0.1:{port};
        {tls}
        root {directory}/root;
        location = /take {{
            proxy_pass http://self/1k.txt;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection "";
            proxy_http_version 1.1;
        }}
    }}
}}
"""


@contextmanager
def running_nginx(pem: str | None = None, sizes: Sequence[int] = ()) -> Iterator[str]:
    """Serve from the other core; gives the URL, without a path.

    With ``pem``, a file with key and certificate, it is that over TLS. For each of ``sizes`` there
    is a file of so many bytes, as in ``/1024.bin``.
    """
    path = nginx_path()
    if path is None:
        raise UnavailableError("nginx is not installed (apt install nginx)")
    with tempfile.TemporaryDirectory() as name:
        directory, port, tls_port = Path(name), _free_port(), _free_port()
        directory.chmod(0o755)  # nginx's worker gives up root
        (directory / "root").mkdir()
        (directory / "root" / "1k.txt").write_bytes(BODY)
        for size, file_name in ((HUGE, "huge.bin"), *((size, f"{size}.bin") for size in sizes)):
            with (directory / "root" / file_name).open("wb") as file:
                file.truncate(size)
        configuration = directory / "nginx.conf"
        tls = ""
        if pem is not None:
            tls = f"listen 127.0.0.1:{tls_port} ssl; ssl_certificate {pem}; "
            tls += f"ssl_certificate_key {pem};"
        configuration.write_text(CONFIGURATION.format(directory=directory, port=port, tls=tls))
        command = ["timeout", FORGOTTEN, path, "-e", "stderr", "-c", str(configuration)]
        with child(command, OTHER_CORE) as running:
            _wait_for(port, running)
            yield f"http://127.0.0.1:{port}" if pem is None else f"https://localhost:{tls_port}"


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
