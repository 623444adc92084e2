"""Many URLs side by side.

A number of workers, all alike, draw URLs from one source: a worker fetches, writes its line, and
draws again. So whatever the length of the list, memory holds one chunk of the input, one fetch for
each worker, and the lines that standard output did not take yet, at most one for each worker.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coro.cli.display import BarDisplay, Display, Tally, one_line, same_terminal
from coro.cli.files import Download, SaveError, file_name
from coro.cli.pipes import LONGEST_URL, Abort, Output, Source
from coro.errors import CancelledError, RequestError
from coro.gen import Task, coroutine, current_task, sleep
from coro.http import AsyncHTTPClient, HTTPHeaders, HTTPRequest, HTTPResponse
from coro.http.urls import Target, parse
from coro.loop import IOLoop

__all__ = ["Fetcher", "Options"]

MAX_REDIRECTS = 10

PAINT_SECONDS = 0.1
"""Between two paintings of the progress bar."""


@dataclass
class Options:
    """What the command line asks for, besides the URLs."""

    method: str
    headers: HTTPHeaders
    body: bytes | None
    concurrency: int
    # Where bodies go: a directory, or standard output, or nowhere.
    directory: Path | None
    bodies_to_stdout: bool
    # For the client: limits in seconds (None: no limit), TLS.
    defaults: dict[str, Any]


@dataclass
class Result:
    """What became of a URL: the JSON line."""

    url: str
    code: int = 599
    size: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    phase: str | None = None
    effective_url: str | None = None
    file: str | None = None

    def to_json(self) -> bytes:
        """Return the line."""
        record: dict[str, Any] = {
            "url": self.url,
            "code": self.code,
            "bytes": self.size,
            "timings": {key: round(seconds, 6) for key, seconds in self.timings.items()},
            "error": self.error,
        }
        for key in ("phase", "effective_url", "file"):
            value = getattr(self, key)
            if value is not None:
                record[key] = value
        return json.dumps(record).encode() + b"\n"


class _Body:
    """Takes the body of one response: counts all of it, and keeps that of a page that was found.

    Arguments:
        tally: counts the bytes too.
        keep: what to do with a piece; may return something to wait for.
    """

    def __init__(self, tally: Tally, keep: Callable[[bytes], Any] | None) -> None:
        self.size = 0
        self._tally = tally
        self._keep = keep
        self._found = False

    def take_header(self, line: str) -> None:
        """Look at a line of the head."""
        if line.startswith("HTTP/"):
            self._found = line.split(" ")[1].startswith("2")
            self._tally.expected = None
            return
        name, _, value = line.partition(":")
        name = name.lower()
        if name == "content-length" and self._tally.expected is None:
            self._tally.expected = int(value)
        elif name == "content-encoding":
            self._tally.expected = 0

    def take(self, piece: bytes) -> Any:
        """Take a piece."""
        self.size += len(piece)
        self._tally.size += len(piece)
        return self._keep(piece) if self._found and self._keep is not None else None


class Fetcher:
    """Fetches all that a source has.

    Arguments:
        source: the URLs.
        options: how.
    Attributes:
        tally: what was done so far.
    """

    def __init__(self, source: Source, options: Options) -> None:
        self.tally = Tally()
        self._source = source
        self._options = options
        self._output = Output(1)
        shares_terminal = same_terminal()
        show_bar = (
            sys.stderr is not None
            and sys.stderr.isatty()
            and not (options.bodies_to_stdout and shares_terminal)
        )
        self._display = BarDisplay(self.tally, source) if show_bar else Display()
        # Lines that go to the bar's terminal go there through the bar.
        self._lines_above_bar = show_bar and shares_terminal
        self._looks_at_heads = show_bar or options.bodies_to_stdout or options.directory is not None
        self._client: AsyncHTTPClient
        self._main: Task[Any] | None = None
        self._abort: Abort | None = None

    @coroutine
    def run(self) -> Generator[Any, Any, int]:
        """Fetch; return the exit status."""
        options = self._options
        self._main = current_task()
        self._client = AsyncHTTPClient(
            force_instance=True, max_clients=options.concurrency, defaults=options.defaults
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                IOLoop.current().add_signal_handler(number, self._interrupt, number)
        self._display.begin()
        painter = self._paint()
        try:
            yield [self._work() for _ in range(options.concurrency)]
        except CancelledError:
            if self._abort is None:
                raise
        finally:
            painter.cancel()
            self._display.end()
            self._client.close()
        if self._abort is None:
            return 1 if self.tally.failed else 0
        if self._abort.message is not None:
            Display().tell(f"coro: {self._abort.message}")
        return self._abort.status

    def _interrupt(self, number: int) -> None:
        """End in order; the next such signal ends at once."""
        IOLoop.current().remove_signal_handler(number)
        self._end(Abort(f"ended by {signal.Signals(number).name}", 128 + number))

    def _end(self, abort: Abort) -> None:
        if self._abort is None:
            self._abort = abort
            assert self._main is not None
            self._main.cancel()

    @coroutine
    def _paint(self) -> Generator[Any, Any, None]:
        while isinstance(self._display, BarDisplay):
            self._display.paint()
            yield sleep(PAINT_SECONDS)

    @coroutine
    def _work(self) -> Generator[Any, Any, None]:
        """Fetch one URL after the other."""
        try:
            while (url := (yield from self._source.draw())) is not None:
                result = yield from self._fetch(url)
                yield from self._tell(result)
        except Abort as abort:
            self._end(abort)

    def _tell(self, result: Result) -> Generator[Any, Any, None]:
        """Count and report what became of a URL."""
        self.tally.done += 1
        if result.error is not None:
            self.tally.failed += 1
            self._display.tell(f"coro: {one_line(result.url)}: {one_line(result.error)}")
        if self._options.bodies_to_stdout:
            return
        if self._lines_above_bar:
            self._display.tell(result.to_json().decode().rstrip())
        else:
            yield self._output.write(result.to_json())

    def _fetch(self, url: str) -> Generator[Any, Any, Result]:
        """Fetch one URL; whatever goes wrong concerns this one only."""
        result = Result(url)
        download: Download | None = None
        keep: Callable[[bytes], Any] | None = None
        try:
            target = parse(complete_url(url))
            if self._options.bodies_to_stdout:
                keep = self._output.write
            elif self._options.directory is not None:
                download = Download(self._options.directory, file_name(target))
                keep = download.write
            body = _Body(self.tally, keep)
            response: HTTPResponse = yield self._client.fetch(
                self._request(target, body), raise_error=False
            )
            self._judge(result, response, body)
            if download is not None and result.error is None:
                download.finish()
                result.file = str(download.path)
        except Abort:
            raise
        except (ValueError, SaveError) as error:
            result.error = str(error)
        except Exception as error:
            result.error = f"{type(error).__name__}: {error}"
        finally:
            if download is not None:
                download.discard()
        return result

    def _request(self, target: Target, body: _Body) -> HTTPRequest:
        options = self._options
        return HTTPRequest(
            target.url,
            options.method,
            options.headers or None,
            options.body,
            streaming_callback=body.take,
            header_callback=body.take_header if self._looks_at_heads else None,
        )

    @staticmethod
    def _judge(result: Result, response: HTTPResponse, body: _Body) -> None:
        """Fill in what a response says; any status but 2xx is a failure."""
        result.code = response.code
        result.size = body.size
        result.timings = response.time_info
        if response.effective_url != response.request.url:
            result.effective_url = response.effective_url
        error = response.error
        if isinstance(error, RequestError):
            result.error = error.message
            result.phase = error.phase
        elif error is not None:
            result.error = f"HTTP {response.code}: {response.reason}"
            if 300 <= response.code < 400 and "Location" in response.headers:
                result.error += f" (after {MAX_REDIRECTS} redirects)"


def complete_url(url: str) -> str:
    """Return a URL with its scheme: people leave ``http://`` out."""
    if len(url) > LONGEST_URL:
        raise ValueError(f"a URL of more than {LONGEST_URL} characters")
    return url if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) else f"http://{url}"
