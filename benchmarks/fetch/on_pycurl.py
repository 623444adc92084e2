"""libcurl's multi interface: one easy handle for each worker, used again and again."""

from argparse import Namespace
from io import BytesIO

import pycurl

from ..trial import Trial
from .subject import body, check, check_length, megabytes, parser

POLL = 1.0
"""Seconds to wait for libcurl's sockets at most."""


def main() -> None:
    """Run a trial."""
    options = parser().parse_args()
    multi = pycurl.CurlMulti()
    handles = [pycurl.Curl() for _ in range(options.workers)]
    sent = body(options)
    for handle in handles:
        handle.setopt(pycurl.URL, options.url)
        handle.setopt(pycurl.SSL_VERIFYPEER, False)
        handle.setopt(pycurl.SSL_VERIFYHOST, 0)
        if sent is not None:
            handle.setopt(pycurl.COPYPOSTFIELDS, sent)
            handle.setopt(pycurl.HTTPHEADER, ["Expect:"])
    if options.stream:
        stream(handles[0], options)
        return
    for count in Trial(options.seconds, unit=options.workers):
        fetch(multi, handles, count, options.size)


def stream(handle: pycurl.Curl, options: Namespace) -> None:
    """Read a body as its pieces come."""
    received = 0

    def take(piece: bytes) -> None:
        nonlocal received
        received += len(piece)

    handle.setopt(pycurl.WRITEFUNCTION, take)
    for headers, length in megabytes(options):
        received = 0
        handle.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
        handle.perform()
        check_length(received, length)


def fetch(multi: pycurl.CurlMulti, handles: list[pycurl.Curl], count: int, size: int) -> None:
    """GET ``count`` times, at most one at a time on each handle."""
    bodies: dict[pycurl.Curl, BytesIO] = {}

    def start(handle: pycurl.Curl) -> None:
        bodies[handle] = BytesIO()
        handle.setopt(pycurl.WRITEDATA, bodies[handle])
        multi.add_handle(handle)

    for handle in handles:
        start(handle)
    unstarted = count - len(handles)
    while count:
        multi.perform()
        queued = True
        while queued:
            queued, done, failures = multi.info_read()
            for _, code, message in failures:
                raise ConnectionError(f"libcurl error {code}: {message}")
            for handle in done:
                check(handle.getinfo(pycurl.RESPONSE_CODE), bodies[handle].getvalue(), size)
                multi.remove_handle(handle)
                count -= 1
                if unstarted:
                    unstarted -= 1
                    start(handle)
        multi.select(POLL)


if __name__ == "__main__":
    main()
