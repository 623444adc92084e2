"""Real proxies for interop tests: squid for HTTP, microsocks for SOCKS 5."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.authority import Authority
from tests.support.daemons import free_ports, run_daemon

USER, PASSWORD = "squidward", "clarinet ä"

# Open to all on two ports, one of them with TLS; the third wants Basic, the fourth Digest.
CONFIGURATION = """
http_port 127.0.0.1:{ports[0]}
https_port 127.0.0.1:{ports[1]} tls-cert={certificate}
http_port 127.0.0.1:{ports[2]} name=basic
http_port 127.0.0.1:{ports[3]} name=digest
acl guarded myportname basic digest
auth_param {scheme} program {helper} {passwords}
auth_param {scheme} realm Bikini Bottom
{more}
acl known proxy_auth REQUIRED
http_access deny guarded !known
http_access allow all
pid_filename none
logformat coro %>lp %rm %ru %>Hs %un
access_log stdio:{directory}/access.log coro
cache_log {directory}/cache.log
coredump_dir {directory}
cache deny all
buffered_logs off
shutdown_lifetime 0 seconds
pinger_enable off
visible_hostname squid.test
via off
forwarded_for delete
"""


@dataclass(frozen=True)
class Squid:
    """A running squid, which asks for one kind of authentication.

    Attributes:
        port: open to all.
        tls_port: likewise, by TLS; the certificate says "localhost".
        guarded: for ``USER`` with ``PASSWORD`` only.
        access_log: a line for each request: port, method, URL, status, user.
    """

    port: int
    tls_port: int
    guarded: int
    access_log: Path


@contextmanager
def running_squid(command: str, ca: Authority, scheme: str) -> Iterator[Squid]:
    """Run squid for the length of the block.

    Arguments:
        scheme: "basic" or "digest".
    """
    with ExitStack() as stack:
        # Squid does not want to be root, and pytest's directories are root's alone.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coro-squid-")))
        ports = free_ports(4)
        passwords = directory / "passwords"
        certificate = shutil.copy(ca.issue(), directory / "squid.pem")
        if scheme == "basic":
            hashed = subprocess.run(
                ["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True
            ).stdout.decode()
            passwords.write_text(f"{USER}:{hashed}")
        else:
            passwords.write_text(f"{USER}:{PASSWORD}\n")
        configuration = directory / "squid.conf"
        configuration.write_text(
            CONFIGURATION.format(
                ports=ports,
                certificate=certificate,
                scheme=scheme,
                helper=_helper("basic_ncsa_auth" if scheme == "basic" else "digest_file_auth"),
                passwords=passwords,
                directory=directory,
                more="auth_param digest nonce_max_count 3" * (scheme == "digest"),
            )
        )
        user = None
        if os.geteuid() == 0:
            user = "proxy"
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, user)
        log = directory / "cache.log"
        # Its shared memory is named after the service.
        service = f"coro{ports[0]}"
        stack.callback(_forget_shared_memory, service)
        run_daemon(
            stack,
            [command, "-N", "-n", service, "-f", str(configuration)],
            ports[0],
            log,
            user=user,
            # Its own way to end takes seconds.
            ending=signal.SIGKILL,
        )
        guarded = ports[2 if scheme == "basic" else 3]
        yield Squid(ports[0], ports[1], guarded, directory / "access.log")


def _forget_shared_memory(service: str) -> None:
    for path in Path("/dev/shm").glob(f"{service}-*"):
        path.unlink()


def _helper(name: str) -> str:
    """Return the path of one of squid's helper programs."""
    for directory in ("/usr/lib/squid", "/usr/lib64/squid", "/usr/libexec/squid"):
        if Path(directory, name).exists():
            return f"{directory}/{name}"
    raise FileNotFoundError(f"squid's {name}")


@contextmanager
def running_socks(command: str, *arguments: str) -> Iterator[int]:
    """Run microsocks for the length of the block; give its port."""
    with ExitStack() as stack:
        (port,) = free_ports(1)
        run_daemon(stack, [command, "-i", "127.0.0.1", "-p", str(port), *arguments], port, None)
        yield port
