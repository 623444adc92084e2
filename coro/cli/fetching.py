"""Many URLs side by side.

A number of workers, all alike, draw URLs from one source: a worker fetches, writes its line, and
draws again. So whatever the length of the list, memory holds one chunk of the input, one fetch for
each worker, and the lines that standard output did not take yet, at most one for each worker.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from coro.cli.display import BarDisplay, Display, Tally, one_line, same_terminal
from coro.cli.exchange import Exchange
from coro.cli.files import BusyError, Download, ResumableDownload, SaveError, file_name
from coro.cli.pipes import LONGEST_URL, Abort, Output, Source
from coro.errors import (
    CancelledError,
    HTTPClosedError,
    HTTPConnectError,
    HTTPResolveError,
    HTTPTimeoutError,
    ProxyError,
    RequestError,
)
from coro.gen import Task, coroutine, current_task, sleep
from coro.http import AsyncHTTPClient, HTTPHeaders, HTTPRequest, HTTPResponse
from coro.http.cookies import CookieJar
from coro.http.outgoing import IDEMPOTENT
from coro.http.urls import Target, parse
from coro.loop import IOLoop

__all__ = ["Fetcher", "Options"]

PAINT_SECONDS = 0.1
"""Between two paintings of the progress bar."""


RETRIED_CODES = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be others after a while."""

_REFUSALS = frozenset({429, 503})
"""Those by which a server says that it did nothing."""

LONGEST_DELAY = 600.0
"""Seconds before a fetch is tried again; a server that wants more is not waited for."""


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
    # Whether downloads go on where they ended.
    resume: bool
    # How often a fetch that failed is tried again, and after how many seconds at first.
    retries: int
    retry_delay: float
    show_timings: bool
    show_exchange: bool
    # Where cookies come from, and go to in the end.
    cookie_file: Path | None
    cookie_jar: CookieJar | None
    # For the client: limits in seconds (None: no limit), redirects, TLS, proxy, cookies.
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
        begin: told the status and the fields of a page that was found, before its first piece.

    Attributes:
        fetch: the fetch; what these two raise ends it, and is in ``error`` then.
    """

    def __init__(
        self,
        tally: Tally,
        keep: Callable[[bytes], Any] | None,
        begin: Callable[[int, HTTPHeaders], None] | None = None,
    ) -> None:
        self.size = 0
        self.kept = 0
        self._tally = tally
        self._keep = keep
        self._begin = begin
        self._code = 0
        self._found = False
        self._headers = HTTPHeaders()
        self.fetch: Task[HTTPResponse] | None = None
        self.error: Exception | None = None

    def take_header(self, line: str) -> None:
        """Look at a line of the head."""
        if line.startswith("HTTP/"):
            self._code = int(line.split(" ")[1])
            self._found = 200 <= self._code < 300
            self._headers = HTTPHeaders()
            return
        name, _, value = line.rstrip("\r\n").partition(":")
        if name:
            self._headers.add(name, value.strip(" \t"))
            return
        length = self._headers.get("Content-Length")
        self._tally.expected = None if length is None else int(length)
        if "Content-Encoding" in self._headers:
            self._tally.expected = 0
        if self._found and self._begin is not None:
            try:
                self._begin(self._code, self._headers)
            except Exception as error:
                self._fail(error)

    def take(self, piece: bytes) -> Any:
        """Take a piece."""
        self.size += len(piece)
        self._tally.size += len(piece)
        if not self._found or self._keep is None or self.error is not None:
            return None
        self.kept += len(piece)
        return self._store(piece, self._keep)

    @coroutine
    def _store(self, piece: bytes, keep: Callable[[bytes], Any]) -> Generator[Any, Any, None]:
        try:
            waiting = keep(piece)
            if waiting is not None:
                yield waiting
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = error
        assert self.fetch is not None, "it has begun"
        self.fetch.cancel()

    def forget(self) -> None:
        """It does not count: the fetch begins anew."""
        self._tally.size -= self.size
        self._tally.expected = None


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
        self._numbers = itertools.count(1)
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
            saved = self._save_cookies()
        if self._abort is None:
            return 1 if self.tally.failed or not saved else 0
        if self._abort.message is not None:
            Display().tell(f"coro: {self._abort.message}")
        return self._abort.status

    def _save_cookies(self) -> bool:
        """Write the cookies to their file; tell if that fails."""
        file, jar = self._options.cookie_file, self._options.cookie_jar
        if file is None or jar is None:
            return True
        try:
            jar.save(file)
        except OSError as error:
            Display().tell(f"coro: cannot save the cookies in {file}: {error.strerror}")
            return False
        return True

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
        if self._options.show_timings and result.timings:
            self._display.tell(f"coro: {one_line(result.url)}: {_describe_timings(result.timings)}")
        if self._options.bodies_to_stdout:
            return
        if self._lines_above_bar:
            self._display.tell(result.to_json().decode().rstrip())
        else:
            yield self._output.write(result.to_json())

    def _fetch(self, url: str) -> Generator[Any, Any, Result]:
        """Fetch one URL, again if that may help; whatever goes wrong concerns this one only."""
        retries = self._options.retries
        tries = 0
        while True:
            tries += 1
            result = Result(url)
            delay = yield from self._try(result, tries)
            if delay is None or tries > retries:
                return result
            self._display.tell(
                f"coro: {one_line(url)}: {one_line(result.error or '')}; "
                f"again in {delay:g} s ({tries} of {retries})"
            )
            yield sleep(delay)

    def _try(self, result: Result, tries: int) -> Generator[Any, Any, float | None]:
        """Fetch; return the seconds after which to try again, or None."""
        options = self._options
        download: Download | None = None
        keep: Callable[[bytes], Any] | None = None
        try:
            target = parse(complete_url(result.url))
            if options.bodies_to_stdout:
                keep = self._output.write
            elif options.directory is not None:
                download = self._download(options.directory, target)
                keep = download.write
            response, body = yield from self._exchange(target, keep, download)
            if isinstance(download, ResumableDownload) and response.code == 416:
                if download.is_whole(response.headers):
                    response.error = None
                    response.code = 200
                else:
                    body.forget()
                    download.restart()
                    response, body = yield from self._exchange(target, keep, download)
            self._judge(result, response, body)
            if result.error is None:
                if download is not None:
                    download.finish()
                    result.file = str(download.path)
                return None
            delay = self._delay(response, body, tries)
            if delay is not None and tries <= options.retries:
                body.forget()
            return delay
        except Abort:
            raise
        except (ValueError, SaveError) as error:
            result.error = str(error)
        except Exception as error:
            result.error = f"{type(error).__name__}: {error}"
        finally:
            if download is not None:
                download.discard()
        return None

    def _exchange(
        self, target: Target, keep: Callable[[bytes], Any] | None, download: Download | None
    ) -> Generator[Any, Any, tuple[HTTPResponse, _Body]]:
        """Send the request once; return its response."""
        self.tally.before = 0 if download is None else download.already
        body = _Body(self.tally, keep, None if download is None else download.begin)
        body.fetch = self._client.fetch(self._request(target, body, download), raise_error=False)
        try:
            response: HTTPResponse = yield body.fetch
        except CancelledError:
            if body.error is None:
                raise
            raise body.error from None
        return response, body

    def _download(self, directory: Path, target: Target) -> Download:
        name = file_name(target)
        if self._options.resume:
            try:
                return ResumableDownload(directory, name, target.url)
            except BusyError:
                pass
        return Download(directory, name)

    def _request(self, target: Target, body: _Body, download: Download | None) -> HTTPRequest:
        options = self._options
        fields = {} if download is None else download.fields()
        headers = options.headers
        if fields:
            headers = headers.copy()
            headers.update(fields)
        return HTTPRequest(
            target.url,
            options.method,
            headers or None,
            options.body,
            streaming_callback=body.take,
            header_callback=body.take_header if self._looks_at_heads else None,
            trace=self._trace(target) if options.show_exchange else None,
        )

    def _trace(self, target: Target) -> Exchange:
        """Return what shows a fetch; where there are several, it begins with its URL."""
        if self._source.total == 1:
            return Exchange(self._display.tell)
        number = next(self._numbers)
        self._display.tell(f"[{number}] * {one_line(target.url)}")
        return Exchange(self._display.tell, f"[{number}] ")

    def _judge(self, result: Result, response: HTTPResponse, body: _Body) -> None:
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
            result.error = str(error)

    def _delay(self, response: HTTPResponse, body: _Body, tries: int) -> float | None:
        """Return the seconds after which a failure may be another result, or None: it would not."""
        options = self._options
        if options.bodies_to_stdout and body.kept:
            return None
        error = response.error
        repeatable = options.method in IDEMPOTENT
        if isinstance(error, RequestError):
            status = error.status if isinstance(error, ProxyError) else None
            passing = status is None or status in RETRIED_CODES
            if not (
                isinstance(error, _PASSING) and passing and (repeatable or error.safe_to_retry)
            ):
                return None
        elif response.code not in RETRIED_CODES or not (repeatable or response.code in _REFUSALS):
            return None
        delay = min(options.retry_delay * 2.0 ** (tries - 1), LONGEST_DELAY)
        wanted = _retry_after(response.headers)
        if wanted > LONGEST_DELAY:
            return None
        return max(delay, wanted)


_PASSING = (
    HTTPClosedError,
    HTTPConnectError,
    HTTPResolveError,
    HTTPTimeoutError,
    ProxyError,
)
"""Failures that may not happen again."""


def _describe_timings(timings: dict[str, float]) -> str:
    """Write the seconds by phase for people; what took no time was not needed."""
    parts = [f"{phase} {seconds * 1e3:.1f} ms" for phase, seconds in timings.items() if seconds]
    return ", ".join(parts)


def _retry_after(headers: HTTPHeaders) -> float:
    """Return the seconds that a server wants to be left alone for (RFC 9110 section 10.2.3)."""
    text = headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def complete_url(url: str) -> str:
    """Return a URL with its scheme: people leave ``http://`` out."""
    if len(url) > LONGEST_URL:
        raise ValueError(f"a URL of more than {LONGEST_URL} characters")
    return url if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) else f"http://{url}"
