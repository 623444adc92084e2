"""The command: ``coro fetch URL...`` fetches many URLs side by side.

A number of workers, all alike, draw URLs from one source: a worker fetches, writes its line, and
draws again. So whatever the length of the list, memory holds one chunk of the input, one fetch for
each worker, and the lines that standard output did not take yet, at most one for each worker.

Standard input and output may be pipes whose other end is slow. The loop waits for them as it waits
for sockets, so they stop no fetch under way. They stay in blocking mode (which belongs to all who
share the pipe): a read follows only when the loop says "readable", and a write is no longer than
what a pipe that is "writable" is bound to take.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from select import PIPE_BUF  # noqa: TID251  (a number; who polls is the loop)
from typing import Any, BinaryIO

import click

import coro
from coro.errors import CancelledError, RequestError
from coro.future import Future
from coro.gen import Task, coroutine, current_task, sleep
from coro.http import AsyncHTTPClient, HTTPHeaders, HTTPRequest, HTTPResponse
from coro.http.headers import check_name
from coro.http.urls import Target, parse
from coro.loop import IOLoop
from coro.tls import client_context

__all__ = ["cli"]

LONGEST_URL = 65536
"""Bytes; a longer line of the input is an error."""

CHUNK = 65536
"""Bytes of the input that are read at once."""

MAX_REDIRECTS = 10

LONGEST_LIMIT = 365 * 86400
"""Seconds; further ahead, no loop sets a timer."""

PAINT_SECONDS = 0.1
"""Between two paintings of the progress bar."""

_STATUS_PIPE_CLOSED = 128 + signal.SIGPIPE


# --- waiting for pipes ---------------------------------------------------------------------


def _until(fd: int, event: int) -> Future[None]:
    """Return a future that is done when a descriptor is ready; a file on a disk always is."""
    loop = IOLoop.current()
    future: Future[None] = Future()

    def on_event(_fd: int, _events: int) -> None:
        loop.remove_handler(fd)
        if not future.done():
            future.set_result(None)

    try:
        loop.add_handler(fd, on_event, event)
    except PermissionError:  # what epoll says of files on a disk
        future.set_result(None)
    return future


class Source:
    """URLs one by one: those of the command line, then the lines of the input.

    Arguments:
        urls: those of the command line.
        fd: the input; None if there is none.
    Attributes:
        drawn: how many URLs were drawn.
        ended: nothing more will be read.
    """

    def __init__(self, urls: Iterable[str], fd: int | None) -> None:
        self.drawn = 0
        self.ended = fd is None
        self._fd = fd
        self._urls = deque(urls)
        # The beginning of a line whose end was not read yet, cut off where it is too long anyway.
        self._partial = b""
        # All workers that find no URL wait for the one reading.
        self._reading: Task[None] | None = None

    @property
    def total(self) -> int | None:
        """How many URLs there are in all; None while nobody knows."""
        return self.drawn + len(self._urls) if self.ended else None

    def draw(self) -> Generator[Any, Any, str | None]:
        """Return the next URL, None at the end: ``url = yield from source.draw()``."""
        while not self._urls:
            if self.ended:
                return None
            if self._reading is None or self._reading.done():
                self._reading = self._read()
            yield self._reading
        self.drawn += 1
        return self._urls.popleft()

    @coroutine
    def _read(self) -> Generator[Any, Any, None]:
        """Read one chunk; keep the URLs that are whole."""
        assert self._fd is not None
        yield _until(self._fd, IOLoop.READ)
        try:
            chunk = os.read(self._fd, CHUNK)
        except BlockingIOError:  # another process was faster
            return
        except OSError as error:
            raise _Abort(f"cannot read the list of URLs: {error.strerror}") from error
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._partial = self._partial[: LONGEST_URL + 1]
        if not chunk:
            self.ended = True
            lines.append(self._partial)
        for line in lines:
            # Some editors begin a file with the mark U+FEFF. What is not UTF-8 fails as a URL.
            url = line.decode(errors="surrogateescape").strip().removeprefix("\ufeff")
            if url and not url.startswith("#"):
                self._urls.append(url)


class Output:
    """Standard output; ``yield output.write(data)`` waits until it has taken all."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self._flushing: Task[None] | None = None

    def write(self, data: bytes) -> Task[None]:
        """Write in the order of the calls."""
        self._waiting += data
        if self._flushing is None or self._flushing.done():
            self._flushing = self._flush()
        return self._flushing

    @coroutine
    def _flush(self) -> Generator[Any, Any, None]:
        while self._waiting:
            yield _until(self._fd, IOLoop.WRITE)
            try:
                written = os.write(self._fd, self._waiting[:PIPE_BUF])
            except BlockingIOError:  # somebody made it non-blocking, and filled it meanwhile
                continue
            except BrokenPipeError as error:
                raise _Abort(None, _STATUS_PIPE_CLOSED) from error
            except OSError as error:
                raise _Abort(f"cannot write to standard output: {error.strerror}") from error
            del self._waiting[:written]


# --- files ---------------------------------------------------------------------------------


def file_name(target: Target) -> str:
    """Return the name of the file for a URL's body: always the same one, and for this URL only.

    It is host and path with ``_`` for ``/``, if no other URL could lead to that; else whatever is
    not a letter, a digit, ``.`` or ``-`` becomes ``_`` as well, and ``~`` with 60 bits of a hash
    tells URLs apart. So a name has no directory in it and never begins with a dot.
    """
    name = re.sub(r"[^A-Za-z0-9.-]", "_", target.authority + target.path)
    if (
        "https://" + name.replace("_", "/") == target.url
        and len(name) <= 200
        and not name.startswith(".")
    ):
        return name
    digest = hashlib.sha256(target.url.encode()).digest()
    mark = base64.b32encode(digest).decode().lower()[:12]
    suffix = PurePosixPath(target.path.partition("?")[0]).suffix
    if not re.fullmatch(r"\.[A-Za-z0-9]{1,10}", suffix):
        suffix = ""
    return f"{name.removesuffix(suffix).lstrip('.')[:150]}~{mark}{suffix}"


class Download:
    """A body on its way into a file, which has a temporary name until the body is whole.

    Arguments:
        directory: where the file is to be.
        name: its name.
    """

    _numbers = itertools.count(1)

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / name
        self._temporary = directory / f".coro-{os.getpid()}-{next(self._numbers)}.part"
        self._file: BinaryIO | None = None

    def write(self, piece: bytes) -> None:
        """Write a piece of the body.

        Raises:
            SaveError: the system refuses.
        """
        with self._naming_errors():
            self._open().write(piece)

    def finish(self) -> None:
        """The body is whole: give the file its name, in place of an older one."""
        with self._naming_errors():
            self._open().close()
            self._temporary.replace(self.path)
            self._file = None

    def discard(self) -> None:
        """Leave nothing of a body that did not become whole."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = self._temporary.open("xb")
        return self._file

    @contextlib.contextmanager
    def _naming_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise SaveError(f"cannot write {self.path}: {error.strerror}") from error


class SaveError(Exception):
    """A body cannot be written to its file."""


# --- what a person sees --------------------------------------------------------------------


@dataclass
class Tally:
    """What was done so far."""

    done: int = 0
    failed: int = 0
    size: int = 0
    # Bytes that the present response announced, if there is only one; 0: unknown once unpacked.
    expected: int | None = None


class Display:
    """For a file or a pipe: failures, and nothing else."""

    def tell(self, text: str) -> None:
        """Write a line that is for people."""
        # Nobody may listen any longer; the exit status will tell.
        with contextlib.suppress(OSError):
            click.echo(text, err=True)

    def begin(self) -> None:
        """The work begins."""

    def paint(self) -> None:
        """Show how far it has come."""

    def end(self) -> None:
        """The work has ended."""


class BarDisplay(Display):
    """For a terminal: a bar, and lines above it."""

    def __init__(self, tally: Tally, source: Source) -> None:
        # Only here: it takes as long to import as all the rest, and scripts have no terminal.
        from rich.console import Console  # noqa: PLC0415
        from rich.filesize import decimal  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._tally = tally
        self._source = source
        self._decimal = decimal
        self._lines: list[str] = []
        self._started = 0.0
        self._console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(complete_style="cyan", finished_style="green", pulse_style="cyan"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            # A thread of its own would compete with the loop.
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None)

    def tell(self, text: str) -> None:
        """Write a line above the bar, when that is painted next."""
        self._lines.append(text)

    def begin(self) -> None:
        """Show the bar."""
        self._started = IOLoop.current().time()
        self._bar.start()

    def end(self) -> None:
        """Paint it for the last time; it stays."""
        self.paint()
        self._bar.stop()

    def paint(self) -> None:
        """Write the lines that were told, and the bar below them."""
        lines, self._lines = self._lines, []
        if lines:
            self._console.print(
                "\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True
            )
        tally, total = self._tally, self._source.total
        elapsed = IOLoop.current().time() - self._started
        rate = tally.size / elapsed if elapsed > 0 else 0.0
        by_bytes = total == 1 and not tally.done and bool(tally.expected)
        parts = [
            f"{tally.done}/{'?' if total is None else total}",
            f"{tally.failed} failed" if tally.failed else "",
            self._decimal(tally.size),
            f"of {self._decimal(tally.expected or 0)}" if by_bytes else "",
            f"{self._decimal(int(rate))}/s",
        ]
        self._bar.update(
            self._task,
            completed=tally.size if by_bytes else tally.done,
            total=tally.expected if by_bytes else total,
            description=" ".join(filter(None, parts)),
            refresh=True,
        )


def _one_line(text: str) -> str:
    """Make text from elsewhere fit for a line on a terminal: no control characters, no secrets."""
    text = re.sub(r"(?<=//)[^/?#\s]*@", "***@", text)
    if len(text) > 500:
        text = f"{text[:500]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _same_terminal() -> bool:
    """Whether standard output and standard error are one terminal."""
    try:
        return os.ttyname(1) == os.ttyname(2)
    except OSError:
        return False


# --- fetching ------------------------------------------------------------------------------


class _Abort(Exception):
    """Nothing more can be done: what to say (None: nothing), and the exit status."""

    def __init__(self, message: str | None, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


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
        shares_terminal = _same_terminal()
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
        self._abort: _Abort | None = None

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
        self._end(_Abort(f"ended by {signal.Signals(number).name}", 128 + number))

    def _end(self, abort: _Abort) -> None:
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
        except _Abort as abort:
            self._end(abort)

    def _tell(self, result: Result) -> Generator[Any, Any, None]:
        """Count and report what became of a URL."""
        self.tally.done += 1
        if result.error is not None:
            self.tally.failed += 1
            self._display.tell(f"coro: {_one_line(result.url)}: {_one_line(result.error)}")
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
            target = parse(_complete(url))
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
        except _Abort:
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


def _complete(url: str) -> str:
    """Return a URL with its scheme: people leave ``http://`` out."""
    if len(url) > LONGEST_URL:
        raise ValueError(f"a URL of more than {LONGEST_URL} characters")
    return url if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) else f"http://{url}"


# --- the command line ----------------------------------------------------------------------

_EPILOG = """\
\b
Examples:
  coro fetch https://example.org/                    is it there, how fast?
  coro fetch -o - https://example.org/ | less        the page itself
  coro fetch -o pages/ --input urls.txt              a file for each line
  grep -o 'https://[^"]*' x.html | coro fetch --input - --concurrency 50
  coro fetch --input urls.txt | jq -r 'select(.error) | .url'
  coro fetch -X PUT -d @new.json -H 'Content-Type: application/json' URL
  coro fetch --ca our-ca.pem https://intranet.example/

\b
Exit status:
  0    all were fetched
  1    some failed
  2    the command was called wrongly
  130  ended by Ctrl-C (141: nobody reads the output any longer)
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(coro.__version__, prog_name="coro", message="%(prog)s %(version)s")
def cli() -> None:
    """coro: generator coroutines on an epoll loop of their own, at your command.

    `coro fetch --help` tells all about fetching.
    """
    # Failures are told once, as results. What coro itself does wrong (coro.application) is not.
    logging.getLogger("coro.general").addHandler(logging.NullHandler())


def _parse_headers(
    _context: click.Context, _parameter: click.Parameter, lines: tuple[str, ...]
) -> HTTPHeaders:
    headers = HTTPHeaders()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise click.BadParameter(f"{line!r} is not of the form 'Name: value'")
        try:
            headers.add(name.strip(), value.strip())
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return headers


def _read_data(data: str | None) -> bytes | None:
    """Return what ``--data`` means."""
    if data is None or not data.startswith("@"):
        return None if data is None else os.fsencode(data)
    try:
        return sys.stdin.buffer.read() if data == "@-" else Path(data[1:]).read_bytes()
    except OSError as error:
        raise click.BadParameter(
            f"cannot read {data[1:]}: {error.strerror}", param_hint="--data"
        ) from error


def _parse_seconds(
    _context: click.Context, _parameter: click.Parameter, seconds: float
) -> float | None:
    """Return a limit; None for 0."""
    if not 0 <= seconds <= LONGEST_LIMIT:  # NaN is not
        raise click.BadParameter(f"{seconds:g} is not a number of seconds from 0 to a year")
    return seconds or None


def _parse_method(
    _context: click.Context, _parameter: click.Parameter, method: str | None
) -> str | None:
    if method is None:
        return None
    try:
        check_name(method)  # methods and field names are both tokens (RFC 9110 section 9.1)
    except ValueError:
        raise click.BadParameter(f"{method!r} is not a method such as GET") from None
    return method.upper()


def _parse_ca(_context: click.Context, _parameter: click.Parameter, file: str | None) -> str | None:
    if file is not None:
        try:
            client_context(ca_certs=file)
        except OSError as error:  # ssl.SSLError among them
            reason = error.strerror or error
            raise click.BadParameter(f"{file} is no file of certificates: {reason}") from error
    return file


@cli.command(epilog=_EPILOG, short_help="Fetch many URLs side by side.")
@click.argument("urls", nargs=-1, metavar="URL...")
@click.option(
    "--input", "-i", "source", metavar="FILE",
    help="Fetch also the URLs in FILE, one a line; '-': standard input. Empty lines and lines that"
    " begin with '#' are skipped. It is read as the fetches go on, and may be endless.",
)  # fmt: skip
@click.option(
    "--output", "-o", metavar="DIR",
    help="Save each body in a file under DIR, named after its URL; the JSON line tells the name as"
    " 'file'. '-': write the bodies to standard output instead of JSON lines, one by one.",
)  # fmt: skip
@click.option(
    "--concurrency", "-c", metavar="N", type=click.IntRange(min=1), default=20, show_default=True,
    help="How many fetches may be under way at once.",
)  # fmt: skip
@click.option(
    "--method", "-X", metavar="METHOD", callback=_parse_method,
    help="The request's method.  [default: GET; POST with --data]",
)  # fmt: skip
@click.option(
    "--header", "-H", "headers", metavar="'NAME: VALUE'", multiple=True, callback=_parse_headers,
    help="Send this header field too. May be given several times.",
)  # fmt: skip
@click.option(
    "--data", "-d", metavar="DATA",
    help="Send this as the request's body; '@FILE': what FILE contains, '@-': standard input.",
)  # fmt: skip
@click.option(
    "--timeout", metavar="SECONDS", type=float, callback=_parse_seconds, default=0,
    help="Limit for a whole fetch.  [default: none]",
)  # fmt: skip
@click.option(
    "--connect-timeout", metavar="SECONDS", type=float, callback=_parse_seconds, default=20,
    show_default=True,
    help="Limit for finding the host, connecting and the TLS handshake. 0: none.",
)  # fmt: skip
@click.option(
    "--inactivity-timeout", metavar="SECONDS", type=float, callback=_parse_seconds, default=30,
    show_default=True,
    help="Limit for the time in which nothing comes, before the response or within it. 0: none.",
)  # fmt: skip
@click.option(
    "--ca", metavar="FILE", callback=_parse_ca,
    help="Trust the certificate authorities in FILE (PEM) instead of the system's.",
)  # fmt: skip
@click.option(
    "--insecure", is_flag=True,
    help="Do not check certificates: whoever answers may read and change everything.",
)  # fmt: skip
def fetch(
    urls: tuple[str, ...],
    source: str | None,
    output: str | None,
    concurrency: int,
    method: str | None,
    headers: HTTPHeaders,
    data: str | None,
    timeout: float | None,
    connect_timeout: float | None,
    inactivity_timeout: float | None,
    ca: str | None,
    insecure: bool,
) -> None:
    """Fetch URLs side by side, over connections that are kept for the next one.

    'http://' may be left out. Redirects are followed, compressed bodies unpacked.

    Standard output gets a JSON line for each URL, in the order in which they end: url, code (599 if
    no response came), bytes (of the body, unpacked), timings (seconds: queue, dns, connect, tls,
    sent, first_byte; total), error (null if there is none). After a redirect, effective_url tells
    where the body came from; without a response, phase tells how far the fetch came.

    Fetched means: a whole response with a status 2xx. Any other is a failure, and its body is not
    saved. Standard error gets a line for each failure, and a progress bar if it is a terminal.
    """
    if not urls and source is None:
        raise click.UsageError("Nothing to fetch: give URLs, or --input FILE.")
    if source == "-" and data == "@-":
        raise click.UsageError("--input and --data cannot both read standard input.")
    if source == "-" and sys.stdin is None:
        raise click.UsageError("Standard input is closed.")
    if sys.stdout is None:
        raise click.UsageError("Standard output is closed.")
    _allow_descriptors(concurrency)
    options = Options(
        method=method or ("GET" if data is None else "POST"),
        headers=headers,
        body=_read_data(data),
        concurrency=1 if output == "-" else concurrency,
        directory=_directory(output) if output not in (None, "-") else None,
        bodies_to_stdout=output == "-",
        defaults={
            "request_timeout": timeout,
            "connect_timeout": connect_timeout,
            "inactivity_timeout": inactivity_timeout,
            "max_redirects": MAX_REDIRECTS,
            "allow_nonstandard_methods": True,
            "ca_certs": ca,
            "validate_cert": not insecure,
        },
    )
    if insecure:
        Display().tell("coro: warning: --insecure: anybody may pose as the server")
    with _opened(source) as fd:
        status = coro.run(functools.partial(_run, urls, fd, options))
    sys.exit(status)


def _run(urls: tuple[str, ...], fd: int | None, options: Options) -> Task[int]:
    return Fetcher(Source(urls, fd), options).run()


def _directory(name: str | None) -> Path:
    """Return the directory for the bodies, made if it is not there."""
    directory = Path(name or ".")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(
            f"cannot make the directory {directory}: {error.strerror}", param_hint="--output"
        ) from error
    return directory


@contextlib.contextmanager
def _opened(source: str | None) -> Generator[int | None]:
    """Open the list of URLs for the length of the block."""
    if source is None or source == "-":
        yield None if source is None else 0
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(source, "rb", buffering=0))
        except OSError as error:
            raise click.BadParameter(
                f"cannot read {source}: {error.strerror}", param_hint="--input"
            ) from error
        yield file.fileno()


def _allow_descriptors(concurrency: int) -> None:
    """Make use of as many descriptors as this process may have.

    A fetch needs two sockets while addresses race, and a file; kept connections come on top.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3 * concurrency + 32
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.BadParameter(
            f"{concurrency} fetches need {needed} descriptors; {hard} is the limit (ulimit -n)",
            param_hint="--concurrency",
        )
    wanted = max(needed, 65536) if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
