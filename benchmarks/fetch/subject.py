"""What the fetch subjects share: the command line, and the checks of what they got.

Over TLS nobody checks the certificate: it is a matter of the first request alone.
"""

import resource
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from ..trial import Trial
from .nginx import BODY

MEGABYTE = 1 << 20
FLAT = 64 << 10
"""By how many KB a process that streams may grow; what it streams is some ten times that."""


def parser() -> ArgumentParser:
    """The options of every fetch subject; some add their own."""
    result = ArgumentParser()
    result.add_argument("url")
    result.add_argument("--workers", type=int, default=50)
    result.add_argument("--seconds", type=float, default=0.5)
    result.add_argument("--size", type=int, default=len(BODY), help="bytes that a response has")
    result.add_argument("--post", type=int, help="POST a body of so many bytes")
    result.add_argument(
        "--stream", action="store_true", help="read one body piece by piece; count its megabytes"
    )
    return result


def body(options: Namespace) -> bytes | None:
    """What is sent, if anything."""
    return None if options.post is None else b"x" * options.post


def check(status: int, content: bytes, size: int = len(BODY)) -> None:
    """Raise if this is not the response that was asked for."""
    if status != 200 or len(content) != size:
        raise ValueError(f"unexpected response: status {status}, {len(content)} bytes")


def megabytes(options: Namespace) -> Iterator[tuple[dict[str, str], int]]:
    """Run a trial of streaming: give the header that asks for a length, and that length."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count in Trial(options.seconds):
        length = count * MEGABYTE
        yield {"Range": f"bytes=0-{length - 1}"}, length
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    if growth > FLAT:
        raise MemoryError(f"grew by {growth >> 10} MB while it streamed")


def check_length(received: int, length: int) -> None:
    """Raise if the body that was streamed was another one."""
    if received != length:
        raise ValueError(f"{received} bytes came, {length} were asked for")
