"""``coro serve``, run as a user runs it, for the length of a block."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.support.command import COMMAND, ENVIRONMENT
from tests.support.documents import ROOT

START = 20.0
"""Seconds that it may take to end."""


class Served:
    """A running ``coro serve``.

    Attributes:
        process: its process.
        url: where it serves, without a slash at the end; of a unix socket its path.
        log: what it wrote to standard error since it serves; all of it when it has ended.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process = process
        self.url = _place(process.stderr)
        self.log = ""
        # A pipe that nobody reads would stop it.
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, log: IO[str]) -> None:
        for line in log:
            self.log += line

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(START)
        self._reader.join(START)
        return self.process.returncode


@contextmanager
def coro_serve(
    *arguments: object,
    cwd: Path,
    dev: bool = True,
    fails: bool = False,
    fds: Sequence[int] = (),
) -> Iterator[Served]:
    """Run it in a directory; no traceback and no warning may come of it.

    Arguments:
        dev: in development mode, warnings being errors; not for the code of others.
        fails: tracebacks are what the test is about.
        fds: descriptors that it inherits.
    """
    command = COMMAND if dev else [COMMAND[0], "-m", "coro"]
    process = subprocess.Popen(
        [*command, "serve", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        pass_fds=fds,
    )
    with process:
        try:
            served = Served(process)
            yield served
            assert served.end() == 0, served.log
            assert fails or "Traceback" not in served.log, served.log
            assert "Warning" not in served.log, served.log
        finally:
            # If it has not ended, something failed.
            process.kill()


def _place(log: IO[str]) -> str:
    """Read up to the line that says that it is ready; return where it listens."""
    said, place = "", ""
    for line in log:
        said += line
        if found := re.match(r"coro: serving .* on (\S+)$", line):
            place = found[1]
        if "Ctrl-C ends it" in line:
            return place
    raise RuntimeError(f"coro serve did not start: {said}")
