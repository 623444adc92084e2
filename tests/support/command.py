"""The command, run as a user runs it: as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

LIMIT = 30.0
"""Seconds that a command may take."""

COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "coro"]

# What this machine's environment says of proxies is not what a test is about.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}


class Ran:
    """What a command did: status, and what it wrote."""

    def __init__(self, ran: subprocess.CompletedProcess[bytes]) -> None:
        self.status = ran.returncode
        self.stdout = ran.stdout
        self.stderr = ran.stderr.decode()

    def __repr__(self) -> str:
        return f"<Ran {self.status} {self.stdout[-2000:]!r} {self.stderr[-2000:]!r}>"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    def by_url(self) -> dict[str, dict[str, Any]]:
        return {line["url"]: line for line in self.lines}


def run(
    *arguments: object,
    stdin: bytes = b"",
    command: list[str] = COMMAND,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run ``coro`` with arguments, and more in the environment, to its end."""
    ran = Ran(
        subprocess.run(
            [*command, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=LIMIT,
            env={**ENVIRONMENT, **(env or {})},
        )
    )
    assert "Traceback" not in ran.stderr, ran
    assert "Warning" not in ran.stderr, ran
    return ran


@contextlib.contextmanager
def running(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``coro`` beside the block; it is killed if the block leaves it running."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options.setdefault("env", ENVIRONMENT)
    process: subprocess.Popen[bytes]
    with subprocess.Popen([*COMMAND, *map(str, arguments)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Return the status and the standard error of a command that is about to end."""
    _, stderr = process.communicate(timeout=LIMIT)
    return process.returncode, stderr.decode()
