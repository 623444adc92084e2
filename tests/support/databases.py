"""Real databases for interop tests: PostgreSQL and Redis, each with its files in a directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.authority import Authority
from tests.support.daemons import START, free_ports, run_daemon
from tests.support.needs import needs, needs_command

USER = "coro"


@dataclass(frozen=True)
class Database:
    """A running database; with TLS its certificate says "localhost".

    Attributes:
        port: where it listens on 127.0.0.1, without TLS.
        tls_port: likewise, with TLS; PostgreSQL has one port for both.
        socket: its unix socket; PostgreSQL's clients are given the directory.
    """

    port: int
    tls_port: int
    socket: Path


@contextmanager
def running_postgres(ca: Authority) -> Iterator[Database]:
    """Run PostgreSQL for the length of the block, or skip the test: one user, who is trusted."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    needs("PostgreSQL", "apt-get install postgresql", there=bool(found))
    with ExitStack() as stack:
        # It does not run as root, and pytest's directories are root's alone.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coro-postgres-")))
        user = "postgres" if os.geteuid() == 0 else None
        certificate = _own(Path(shutil.copy(ca.issue(), directory)), user)
        _own(directory, user)
        data = directory / "data"
        made = subprocess.run(
            [
                *(str(found[-1] / "initdb"), "-D", str(data), "-U", USER, "--auth=trust"),
                *("--encoding=UTF8", "--no-locale", "--no-sync"),
            ],
            cwd="/",
            user=user,
            capture_output=True,
            timeout=START,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"initdb: {made.stderr.decode()[-2000:]}")
        (port,) = free_ports(1)
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": directory,
            "ssl": "on",
            "ssl_cert_file": certificate,
            "ssl_key_file": certificate,
            "fsync": "off",
            "logging_collector": "on",
            "log_directory": directory,
            "log_filename": "log",
        }
        run_daemon(
            stack,
            [
                *(str(found[-1] / "postgres"), "-D", str(data), "-p", str(port)),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            port,
            directory / "log",
            user=user,
            # It waits for no client.
            ending=signal.SIGINT,
        )
        _await_ready(data / "postmaster.pid")
        yield Database(port, port, directory)


def _own(path: Path, user: str | None) -> Path:
    path.chmod(0o700 if path.is_dir() else 0o600)
    if user is not None:
        shutil.chown(path, user)
    return path


def _await_ready(status: Path) -> None:
    """Wait until PostgreSQL, which listens before it can answer, notes that it can."""
    until = time.monotonic() + START
    while "ready" not in status.read_text():
        if time.monotonic() > until:
            raise RuntimeError("PostgreSQL was not ready in time")
        time.sleep(0.02)


@contextmanager
def running_redis(ca: Authority, directory: Path) -> Iterator[Database]:
    """Run Redis for the length of the block, or skip the test."""
    command = needs_command("redis-server", "apt-get install redis-server")
    with ExitStack() as stack:
        port, tls_port = free_ports(2)
        certificate = ca.issue()
        settings = {
            "bind": "127.0.0.1",
            "port": port,
            "unixsocket": directory / "redis.sock",
            "tls-port": tls_port,
            "tls-cert-file": certificate,
            "tls-key-file": certificate,
            "tls-ca-cert-file": ca.pem,
            "tls-auth-clients": "no",
            "save": "",
            "dir": directory,
            "logfile": directory / "log",
        }
        arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        run_daemon(stack, [command, *arguments], port, directory / "log")
        yield Database(port, tls_port, directory / "redis.sock")
