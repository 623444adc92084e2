"""Measured processes: started on a chosen core, bounded in time, ended by their pid."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .model import Measurement, SubjectError
from .trial import LONGEST

ROOT = Path(__file__).parents[1]

_CORES = sorted(os.sched_getaffinity(0))
SUBJECT_CORE = _CORES[0]
"""The core of whatever is measured."""
OTHER_CORE = _CORES[-1]
"""The core of the other end of the connection (load generator, web server)."""


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs one of this package's modules with the interpreter of this one."""
    return [sys.executable, "-m", module, *map(str, arguments)]


class Child:
    """A running process: ``process`` with its ``stdout`` to read, and its stderr in a file.

    A file does not fill up, so that a process that complains all the time is not blocked by it.
    """

    def __init__(self, command: Sequence[str], core: int) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, end() closes it
        with _pinned(core):
            self.process = subprocess.Popen(
                command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=self.errors
            )

    def first_line(self) -> str:
        """Wait for the first line that the process prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SubjectError(self.last_words() or "ended without a word")
        return line

    def last_words(self) -> str:
        """The last line of stderr: of a traceback, the one that names the error."""
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or [""])[-1]

    def end(self) -> None:
        """Terminate the process if it has not ended, and wait for it."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.errors.close()


def family(pid: int) -> list[int]:
    """A process and those that came of it and still run, as a server's workers."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for each in (task / "children").read_text().split():
            found += family(int(each))
    return found


@contextmanager
def child(command: Sequence[str], core: int) -> Iterator[Child]:
    """Run ``command`` on ``core`` for the length of the block; afterwards it is gone."""
    running = Child(command, core)
    try:
        yield running
    finally:
        running.end()


def measured(command: Sequence[str], core: int) -> Measurement:
    """Run ``command`` to its end and return the measurement on its last line."""
    with child(command, core) as running:
        try:
            out, _ = running.process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            raise SubjectError(f"gave no result within {LONGEST} s") from None
        if running.process.returncode or not out:
            status = running.process.returncode
            raise SubjectError(running.last_words() or f"ended with status {status}")
    measurement = Measurement(**json.loads(out.splitlines()[-1]))
    if not measurement.operations:
        raise SubjectError("did nothing in the time that it had")
    return measurement


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """What is started in the block stays on ``core``, with all its threads and workers."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
