"""Descriptors and threads that a test left behind."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coro.resolver import LOOKUP_SECONDS, wait_for_threads

_FDS = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")


def open_fds() -> dict[int, str]:
    """Return the open descriptors of this process, each with what it is ("socket:[81]")."""
    found = {}
    for name in os.listdir(_FDS):
        try:
            found[int(name)] = os.readlink(_FDS / name)
        except OSError:  # the descriptor that listed the directory, closed by now
            continue
    return found


def count_fds() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir(_FDS)) - 1  # less the one that lists the directory


@contextmanager
def no_fds_left() -> Iterator[None]:
    """Fail if the block leaves more descriptors open than it found."""
    before = count_fds()
    known = open_fds()
    yield
    if count_fds() <= before:
        return
    gc.collect()  # what only a cycle held open is told by its ResourceWarning
    wait_for_threads(LOOKUP_SECONDS)  # a look-up that was given up may go on, and has a socket
    if count_fds() > before:
        fresh = {fd: what for fd, what in open_fds().items() if known.get(fd) != what}
        pytest.fail(f"descriptors left open: {fresh}", pytrace=False)
