"""The commands: ``coro fetch URL...`` and ``coro serve TARGET``."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import resource
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import click

import coro
from coro.cli.display import Display
from coro.cli.fetching import LONGEST_DELAY, Fetcher, Options
from coro.cli.pipes import Source
from coro.cli.serving import Options as ServingOptions
from coro.cli.serving import find
from coro.cli.serving import serve as run_service
from coro.gen import Task
from coro.http import HTTPHeaders
from coro.http.cookies import CookieJar
from coro.http.headers import check_name
from coro.http.proxy import Proxy, parse_proxy
from coro.tls import client_context

__all__ = ["cli"]

LONGEST_LIMIT = 365 * 86400
"""Seconds; further ahead, no loop sets a timer."""

MAX_REDIRECTS = 10


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
  coro fetch -o . --continue --retry 5 https://example.org/big.iso
  coro fetch --proxy socks5h://localhost:9050 -v https://example.org/

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

    `coro fetch --help` tells all about fetching, `coro serve --help` about serving.
    """


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


def _parse_delay(_context: click.Context, _parameter: click.Parameter, seconds: float) -> float:
    if not 0 <= seconds <= LONGEST_DELAY:  # NaN is not
        raise click.BadParameter(
            f"{seconds:g} is not a number of seconds from 0 to {LONGEST_DELAY:g}"
        )
    return seconds


def _parse_mode(_context: click.Context, _parameter: click.Parameter, digits: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", digits):
        raise click.BadParameter(f"{digits!r} is not three octal digits, such as 660")
    return int(digits, 8)


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


def _parse_proxy(
    _context: click.Context, _parameter: click.Parameter, url: str | None
) -> Proxy | Literal[False] | None:
    """Return the proxy; False for an empty one: none, whatever the environment says."""
    if not url:
        return None if url is None else False
    try:
        return parse_proxy(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _load_cookies(file: str | None) -> tuple[Path | None, CookieJar | None]:
    """Return the file's path, and a jar with its cookies."""
    if file is None:
        return None, None
    path, jar = Path(file), CookieJar()
    try:
        jar.load(path)
    except FileNotFoundError:
        if not path.absolute().parent.is_dir():
            raise click.BadParameter(
                f"there is no directory {path.parent}", param_hint="--cookie-jar"
            ) from None
    except OSError as error:  # LoadError among them
        reason = error.strerror or error
        raise click.BadParameter(
            f"cannot read {file}: {reason}", param_hint="--cookie-jar"
        ) from error
    return path, jar


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
    "--proxy", metavar="URL", callback=_parse_proxy,
    help="Fetch by this proxy: http, https (TLS to the proxy), socks4, socks4a, socks5 or socks5h"
    " ('a', 'h': the proxy looks hosts up), with '://[USER:PASSWORD@]HOST[:PORT]'. By default what"
    " http_proxy, https_proxy, all_proxy and no_proxy in the environment say; '': none.",
)  # fmt: skip
@click.option(
    "--cookie-jar", "-b", metavar="FILE",
    help="Send the cookies in FILE, take in those that servers set, and save them all there in the"
    " end. The format is that of curl and browsers; the file need not exist.",
)  # fmt: skip
@click.option(
    "--compressed/--no-compressed", default=True, show_default=True,
    help="Ask for compressed bodies, and unpack them. Otherwise they are taken as they come.",
)  # fmt: skip
@click.option(
    "--max-redirs", metavar="N", type=click.IntRange(min=0), default=MAX_REDIRECTS,
    show_default=True,
    help="Follow at most N redirects of a URL. 0: a redirect is a result, and a failure.",
)  # fmt: skip
@click.option(
    "--continue", "-C", "resume", is_flag=True,
    help="With -o DIR: keep what has come of a body that did not become whole, and fetch only the"
    " rest the next time. If the server has another version by then, or does not do parts, it is"
    " fetched anew. Implies --no-compressed.",
)  # fmt: skip
@click.option(
    "--retry", "retries", metavar="N", type=click.IntRange(min=0), default=0, show_default=True,
    help="Try a fetch again, up to N times, if that may help: after a failure of the network or a"
    " time limit, and a status 408, 429, 500, 502, 503 or 504. A request that changes something,"
    " such as a POST, is repeated only where the server cannot have acted on it.",
)  # fmt: skip
@click.option(
    "--retry-delay", metavar="SECONDS", type=float, callback=_parse_delay, default=1,
    show_default=True,
    help="Wait so long before the first repetition, and twice as long before each further one, or"
    " as long as the server says by Retry-After; 10 minutes at most.",
)  # fmt: skip
@click.option(
    "--timings", is_flag=True,
    help="Tell on standard error, too, what time the phases of each fetch took.",
)  # fmt: skip
@click.option(
    "--verbose", "-v", is_flag=True,
    help="Show the exchange on standard error: connections (*), the heads of requests (>) and of"
    " responses (<). Passwords and cookies are not shown.",
)  # fmt: skip
@click.option(
    "--timeout", metavar="SECONDS", type=float, callback=_parse_seconds, default=0,
    help="Limit for a whole fetch; for each try of it, with --retry.  [default: none]",
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
    help="Trust the certificate authorities in FILE (PEM) instead of the system's, for servers and"
    " for a proxy.",
)  # fmt: skip
@click.option(
    "--insecure", is_flag=True,
    help="Do not check servers' certificates: whoever answers may read and change everything.",
)  # fmt: skip
def fetch(
    urls: tuple[str, ...],
    source: str | None,
    output: str | None,
    concurrency: int,
    method: str | None,
    headers: HTTPHeaders,
    data: str | None,
    proxy: Proxy | Literal[False] | None,
    cookie_jar: str | None,
    compressed: bool,
    max_redirs: int,
    resume: bool,
    retries: int,
    retry_delay: float,
    timings: bool,
    verbose: bool,
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
    # Failures are told once, as results. What coro itself does wrong (coro.application) is not.
    logging.getLogger("coro.general").addHandler(logging.NullHandler())
    if not urls and source is None:
        raise click.UsageError("Nothing to fetch: give URLs, or --input FILE.")
    if source == "-" and data == "@-":
        raise click.UsageError("--input and --data cannot both read standard input.")
    if source == "-" and sys.stdin is None:
        raise click.UsageError("Standard input is closed.")
    if sys.stdout is None:
        raise click.UsageError("Standard output is closed.")
    if resume and output in (None, "-"):
        raise click.UsageError("--continue needs a directory: -o DIR.")
    cookie_file, jar = _load_cookies(cookie_jar)
    _allow_descriptors(concurrency)
    options = Options(
        method=method or ("GET" if data is None else "POST"),
        headers=headers,
        body=_read_data(data),
        concurrency=1 if output == "-" else concurrency,
        directory=_directory(output) if output not in (None, "-") else None,
        bodies_to_stdout=output == "-",
        resume=resume,
        retries=retries,
        retry_delay=retry_delay,
        show_timings=timings,
        show_exchange=verbose,
        cookie_file=cookie_file,
        cookie_jar=jar,
        defaults={
            "request_timeout": timeout,
            "connect_timeout": connect_timeout,
            "inactivity_timeout": inactivity_timeout,
            "max_redirects": max_redirs,
            "decompress_response": compressed and not resume,
            "proxy": proxy,
            "trust_env": True,
            "cookie_jar": jar,
            "allow_nonstandard_methods": True,
            "ca_certs": ca,
            "proxy_ssl_options": None if ca is None else client_context(ca_certs=ca),
            "validate_cert": not insecure,
        },
    )
    if insecure:
        Display().tell("coro: warning: --insecure: anybody may pose as the server")
    with _opened(source) as fd:
        status = coro.run(functools.partial(_run, urls, fd, options))
    sys.exit(status)


_SERVE_EPILOG = """\
\b
Examples:
  coro serve .                                 the files here
  coro serve app:app                           an ASGI application: app in app.py
  coro serve mysite.asgi:application --port 80 --host '' --workers 4
  coro serve app:handler --no-access-log       a handler of coro's, for HTTPServer
  coro serve app:app --certfile server.pem     TLS
  coro serve app:app --unix /run/app.sock --trust-proxy unix

\b
Exit status:
  0    a signal ended it
  1    the second signal did, or it could not listen
  2    the command was called wrongly
  3    the application said that it cannot start
"""


@cli.command(epilog=_SERVE_EPILOG, short_help="Serve an application, or files.")
@click.argument("target")
@click.option(
    "--host", metavar="ADDRESS", default="127.0.0.1", show_default=True,
    help="Address to listen on; '': all.",
)  # fmt: skip
@click.option(
    "--port", "-p", metavar="N", type=click.IntRange(0, 65535), default=8000, show_default=True,
    help="Port to listen on; 0: any that is free.",
)  # fmt: skip
@click.option("--unix", metavar="PATH", help="Listen on this unix socket instead.")
@click.option(
    "--unix-mode", metavar="OCTAL", callback=_parse_mode, default="600", show_default=True,
    help="Who may connect to it: the permissions of its file.",
)  # fmt: skip
@click.option(
    "--fd", metavar="N", type=click.IntRange(0),
    help="Listen on this descriptor instead, a socket that listens already: 3 is the one that"
    " systemd hands over.",
)  # fmt: skip
@click.option(
    "--workers", "-w", metavar="N", type=click.IntRange(1, 1024), default=1, show_default=True,
    help="Processes that share the port. One that dies is replaced.",
)  # fmt: skip
@click.option("--certfile", metavar="FILE", help="Serve TLS with this certificate (PEM).")
@click.option("--keyfile", metavar="FILE", help="Its key, if that is not in the same file.")
@click.option(
    "--interface", type=click.Choice(["asgi", "handler"]),
    help="What TARGET is, if it cannot be told from what it takes.",
)  # fmt: skip
@click.option(
    "--access-log/--no-access-log", default=True, show_default=True,
    help="Write a line for each request to standard error.",
)  # fmt: skip
@click.option("--compress", is_flag=True, help="Compress responses; not those of ASGI.")
@click.option("--listing", is_flag=True, help="Of a directory without index, show what it holds.")
@click.option(
    "--trust-proxy", "trusted", metavar="ADDRESS", multiple=True,
    help="Take the client's address and protocol from the X-Forwarded fields of requests that come"
    " from this address or network; 'unix': by a unix socket. May be given several times.",
)  # fmt: skip
@click.option(
    "--root-path", metavar="PATH", default="",
    help="Where a proxy has mounted an ASGI application, as in /app.",
)  # fmt: skip
@click.option(
    "--max-body", metavar="BYTES", type=click.IntRange(0), default=100 << 20, show_default=True,
    help="The largest body of a request.",
)  # fmt: skip
@click.option(
    "--grace", metavar="SECONDS", type=float, callback=_parse_seconds, default=10,
    show_default=True,
    help="What requests under way have to finish, after a signal. 0: as long as they take.",
)  # fmt: skip
def serve(target: str, interface: str | None, listing: bool, **options: Any) -> None:
    """Serve TARGET by HTTP/1.1: a directory's files, or MODULE:ATTRIBUTE.

    The attribute is an ASGI application (of Starlette, FastAPI, Django, Quart, ...) or a handler of
    coro's: a function of one request, that returns a Response. Ctrl-C or SIGTERM ends it in order:
    no request is lost.
    """
    if options["keyfile"] is not None and options["certfile"] is None:
        raise click.UsageError("--keyfile is for a --certfile.")
    if options["unix"] is not None and options["fd"] is not None:
        raise click.UsageError("--unix and --fd exclude each other.")
    service = find(target, interface, listing=listing)
    sys.exit(run_service(service, ServingOptions(**options)))


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
