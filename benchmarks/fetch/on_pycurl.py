"""libcurl's multi interface: one easy handle for each worker, used again and again."""

from io import BytesIO

import pycurl

from ..trial import Trial
from .subject import check, parser

POLL = 1.0
"""Seconds to wait for libcurl's sockets at most."""


def main() -> None:
    """Run a trial."""
    options = parser().parse_args()
    multi = pycurl.CurlMulti()
    handles = [pycurl.Curl() for _ in range(options.workers)]
    for handle in handles:
        handle.setopt(pycurl.URL, options.url)
    for count in Trial(options.seconds):
        fetch(multi, handles, count)


def fetch(multi: pycurl.CurlMulti, handles: list[pycurl.Curl], count: int) -> None:
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
                check(handle.getinfo(pycurl.RESPONSE_CODE), bodies[handle].getvalue())
                multi.remove_handle(handle)
                count -= 1
                if unstarted:
                    unstarted -= 1
                    start(handle)
        multi.select(POLL)


if __name__ == "__main__":
    main()
