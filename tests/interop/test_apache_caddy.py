"""``fetch`` from Apache and from Caddy: files, plain and over TLS, compressed as each can."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coro.errors import HTTPError
from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPResponse
from coro.loop import IOLoop
from tests.support.authority import Authority
from tests.support.daemons import free_ports, run_daemon
from tests.support.hosting import new_loop
from tests.support.needs import needs_command

PAGE = "".join(f"<p>paragraph {number}</p>\n" for number in range(5000)).encode()
BIG = b"0123456789abcdef" * (5 << 16)
USER, PASSWORD, REALM = "friend", "sesame", "cave"

APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
{modules}
{user}
StartServers 1
Listen 127.0.0.1:{port}
Listen 127.0.0.1:{tls_port}
TypesConfig /dev/null
AddType text/html .html
AddType text/plain .txt
DocumentRoot {directory}/root
KeepAliveTimeout 60
MaxKeepAliveRequests 0
<Directory {directory}/root>
    Require all granted
    SetOutputFilter BROTLI_COMPRESS;DEFLATE
    SetEnvIf Request_URI \\.bin$ no-gzip no-brotli
</Directory>
<Location /guarded>
    AuthType Digest
    AuthName {realm}
    AuthDigestProvider file
    AuthUserFile {directory}/passwords
    Require valid-user
</Location>
Redirect 302 /moved /1k.txt
<VirtualHost 127.0.0.1:{tls_port}>
    SSLEngine on
    SSLCertificateFile {certificate}
</VirtualHost>
"""
APACHE_MODULES = (
    "mpm_event authz_core authz_user authn_core authn_file auth_digest mime filter brotli deflate "
    "setenvif alias dir ssl socache_shmcb"
)
APACHE_DIRECTORY = Path("/usr/lib/apache2/modules")

CADDY = """
{{
    admin off
    log {{
        output file {directory}/error.log
    }}
    auto_https off
    storage file_system {directory}/storage
}}
(files) {{
    root * {directory}/root
    encode zstd gzip
    redir /moved /1k.txt 302
    file_server
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    import files
}}
https://localhost:{tls_port} {{
    bind 127.0.0.1
    tls {certificate} {certificate}
    import files
}}
"""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    tls_port: int

    def url(self, path: str, *, tls: bool = False) -> str:
        if tls:
            return f"https://localhost:{self.tls_port}{path}"
        return f"http://127.0.0.1:{self.port}{path}"


def apache(directory: Path, port: int, tls_port: int, certificate: str) -> list[str]:
    """Write what Apache needs; return the command that runs it."""
    command = needs_command("apache2", "apt-get install apache2-bin")
    digest = hashlib.md5(f"{USER}:{REALM}:{PASSWORD}".encode()).hexdigest()
    (directory / "passwords").write_text(f"{USER}:{REALM}:{digest}\n")
    configuration = directory / "apache.conf"
    configuration.write_text(
        APACHE.format(
            directory=directory,
            port=port,
            tls_port=tls_port,
            certificate=certificate,
            realm=REALM,
            user="User www-data\nGroup www-data" if os.geteuid() == 0 else "",
            modules="\n".join(
                f"LoadModule {name}_module {APACHE_DIRECTORY}/mod_{name}.so"
                for name in APACHE_MODULES.split()
            ),
        )
    )
    return [command, "-D", "FOREGROUND", "-f", str(configuration)]


def caddy(directory: Path, port: int, tls_port: int, certificate: str) -> list[str]:
    """Write what Caddy needs; return the command that runs it."""
    command = needs_command("caddy", "apt-get install caddy")
    configuration = directory / "Caddyfile"
    configuration.write_text(
        CADDY.format(directory=directory, port=port, tls_port=tls_port, certificate=certificate)
    )
    caddy = ["env", f"HOME={directory}", command]
    return [*caddy, "run", "--adapter", "caddyfile", "--config", str(configuration)]


@contextmanager
def running(
    prepare: Callable[[Path, int, int, str], list[str]], directory: Path, ca: Authority
) -> Iterator[Server]:
    """Run a server for the length of the block."""
    root = directory / "root"
    (root / "guarded").mkdir(parents=True)
    (root / "1k.txt").write_bytes(b"k" * 1024)
    (root / "page.html").write_bytes(PAGE)
    (root / "big.bin").write_bytes(BIG)
    (root / "guarded" / "treasure.txt").write_bytes(b"gold")
    certificate = directory / "server.pem"
    shutil.copy(ca.issue(), certificate)
    for path in (directory, root, root / "guarded"):
        # Apache's workers give up root.
        path.chmod(0o755)
    port, tls_port = free_ports(2)
    command = prepare(directory, port, tls_port, str(certificate))
    with ExitStack() as stack:
        run_daemon(stack, command, port, directory / "error.log", tls_port)
        yield Server(prepare.__name__, port, tls_port)


@pytest.fixture(scope="module", params=[apache, caddy])
def server(request: pytest.FixtureRequest, ca: Authority) -> Iterator[Server]:
    # pytest's directories are their owner's alone, and Apache's workers are not.
    with (
        tempfile.TemporaryDirectory(prefix="coro-web-") as directory,
        running(request.param, Path(directory), ca) as server,
    ):
        yield server


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def client(loop: IOLoop, ca: Authority) -> Iterator[AsyncHTTPClient]:
    made = AsyncHTTPClient(force_instance=True, defaults={"ca_certs": str(ca.pem)})
    yield made
    made.close()


@pytest.fixture
def fetch(loop: IOLoop, client: AsyncHTTPClient) -> Callable[..., HTTPResponse]:
    return lambda *args, **options: loop.run_sync(functools.partial(client.fetch, *args, **options))


both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@both
def test_a_connection_is_kept(
    fetch: Any, client: AsyncHTTPClient, server: Server, tls: bool
) -> None:
    for _ in range(5):
        assert fetch(server.url("/1k.txt", tls=tls)).body == b"k" * 1024
    assert client.statistics()["opened"] == 1


@both
def test_a_large_body(fetch: Any, server: Server, tls: bool) -> None:
    assert fetch(server.url("/big.bin", tls=tls)).body == BIG


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_body_compressed(fetch: Any, server: Server, coding: str) -> None:
    """Each in what it has of them; what it has not, it sends as it is."""
    had = {"apache": ("br", "gzip"), "caddy": ("zstd", "gzip")}[server.name]
    got = fetch(server.url("/page.html"), headers={"Accept-Encoding": coding})
    assert got.body == PAGE
    assert got.headers.get("X-Consumed-Content-Encoding") == (coding if coding in had else None)


def test_what_is_asked_for_by_default_is_understood(fetch: Any, server: Server) -> None:
    got = fetch(server.url("/page.html"))
    assert got.body == PAGE
    assert got.headers["X-Consumed-Content-Encoding"] in ("br", "zstd")


def test_head_and_range_and_condition(fetch: Any, server: Server) -> None:
    url = server.url("/big.bin")
    head = fetch(url, method="HEAD")
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(BIG)))
    part = fetch(url, headers={"Range": "bytes=16-31"})
    assert (part.code, part.body) == (206, BIG[:16])
    unchanged = fetch(url, headers={"If-None-Match": head.headers["ETag"]}, raise_error=False)
    assert (unchanged.code, unchanged.body) == (304, b"")


def test_not_found_and_moved(fetch: Any, server: Server) -> None:
    with pytest.raises(HTTPError) as caught:
        fetch(server.url("/none"))
    assert caught.value.code == 404
    assert fetch(server.url("/moved")).effective_url == server.url("/1k.txt")


def test_an_upload_that_is_refused(fetch: Any, server: Server) -> None:
    """It answers before it has the body, or without having read it."""
    got = fetch(server.url("/1k.txt"), method="POST", body=BIG, raise_error=False)
    assert got.code in (200, 405)
    again = fetch(
        server.url("/1k.txt"), method="PUT", body=BIG, expect_100_continue=True, raise_error=False
    )
    assert again.code in (200, 405)


def test_a_body_that_is_pulled(loop: IOLoop, client: AsyncHTTPClient, server: Server) -> None:
    @coroutine
    def main() -> Any:
        response = yield client.fetch(server.url("/big.bin"), stream=True)
        count = 0
        while piece := (yield response.read(100_000)):
            count += len(piece)
        return count

    assert loop.run_sync(main) == len(BIG)


def test_many_side_by_side(loop: IOLoop, client: AsyncHTTPClient, server: Server) -> None:
    @coroutine
    def main() -> Any:
        return (yield [client.fetch(server.url("/page.html")) for _ in range(100)])

    assert all(response.body == PAGE for response in loop.run_sync(main))  # type: ignore[attr-defined]


@pytest.mark.parametrize("server", [apache], indirect=True)
def test_digest(fetch: Any, server: Server) -> None:
    options = {"auth_mode": "digest", "auth_username": USER, "auth_password": PASSWORD}
    for _ in range(2):
        assert fetch(server.url("/guarded/treasure.txt"), **options).body == b"gold"
    with pytest.raises(HTTPError) as caught:
        fetch(server.url("/guarded/treasure.txt"), **{**options, "auth_password": "salami"})
    assert caught.value.code == 401
