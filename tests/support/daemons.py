"""Servers that nobody here wrote, as processes of their own: started, awaited, ended."""

from __future__ import annotations

import contextlib
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

START = 20.0
"""Seconds that a server may take to start or to end."""


def spawn(
    stack: ExitStack,
    command: list[str],
    *,
    user: str | None = None,
    ending: signal.Signals = signal.SIGTERM,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Run a server until the stack unwinds, or this process is gone.

    Arguments:
        user: as whom, for servers that do not want to be root.
        ending: the signal that ends it.
    """
    setpriv = shutil.which("setpriv")
    mortal = [setpriv, "--pdeathsig", ending.name.removeprefix("SIG")] if setpriv else []
    if user is not None:
        options |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    process = subprocess.Popen(
        [*mortal, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )

    def end() -> None:
        process.send_signal(ending)
        try:
            process.wait(START)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(START)

    stack.callback(end)
    return process


def run_daemon(
    stack: ExitStack,
    command: list[str],
    port: int,
    log: Path | None,
    *others: int,
    user: str | None = None,
    ending: signal.Signals = signal.SIGTERM,
    cwd: Path | str = "/",
) -> None:
    """Run a server until the stack unwinds; return when it takes connections.

    Arguments:
        port, others: where, on 127.0.0.1.
        log: what to show if it does not start.
        user, ending: as for ``spawn``.
        cwd: the directory in which it runs.
    """
    process = spawn(stack, command, user=user, ending=ending, cwd=cwd)
    until = time.monotonic() + START
    waiting = [port, *others]
    while waiting:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", waiting[-1]), START).close()
            waiting.pop()
            continue
        if process.poll() is not None or time.monotonic() > until:
            said = log.read_text()[-2000:] if log is not None and log.exists() else ""
            raise RuntimeError(f"{command[0]} did not start: {said}")
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that were free just now."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [sock.getsockname()[1] for sock in sockets]
