"""What memory a process has in use."""

import os
import resource
from collections.abc import Iterable
from pathlib import Path


def memory_of(pids: Iterable[int]) -> int:
    """Return the bytes of memory that these processes have in use."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def raise_limit() -> int:
    """Allow this process as many descriptors as it may have; return how many that are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
