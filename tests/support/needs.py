"""What a test needs of the machine: found, or skipped with how to get it, or (in CI) a failure."""

import os
import shutil
from importlib.util import find_spec

import pytest

REQUIRE_ALL = os.environ.get("CORO_REQUIRE_ALL", "") not in ("", "0")
"""Nothing may be skipped: set in CI, where all that tests need has been installed."""


def needs(what: str, how_to_get_it: str, *, there: bool) -> None:
    """Skip the running test unless ``there``; where nothing may be skipped, fail it.

    Arguments:
        what: the thing, for the reader: "nginx".
        how_to_get_it: what to type: "apt-get install nginx-light".
    """
    if there:
        return
    message = f"needs {what}: {how_to_get_it}"
    if REQUIRE_ALL:
        pytest.fail(f"{message} (CORO_REQUIRE_ALL is set)", pytrace=False)
    pytest.skip(message)


def needs_command(name: str, how_to_get_it: str) -> str:
    """Return the path of a command, or skip (fail) the running test."""
    # Debian's servers live in /usr/sbin, which is on root's PATH only.
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    path = shutil.which(name, path=search)
    needs(name, how_to_get_it, there=path is not None)
    assert path is not None
    return path


def needs_module(name: str, distribution: str | None = None) -> None:
    """Skip (fail) the running test unless a module can be imported."""
    needs(name, f"pip install {distribution or name}", there=find_spec(name) is not None)
