"""A polite crawler that can be killed at any time, and goes on where it was.

    python examples/crawler.py --database pages.db https://example.org/
    python examples/crawler.py --database pages.db              # goes on
    sqlite3 pages.db 'select status, title, url from pages'

It asks each host for its robots.txt first and keeps to it, has so many connections to a host and so
many seconds between requests, waits longer when a host says so, and tries again what may go better
the next time. It stays on the hosts that it was started with, unless told otherwise.

All it knows is in one SQLite database: what was fetched, and what is still to be fetched (see
``crawler_frontier.py``). A page and the links found on it are stored in one transaction, so that
after ``kill -9`` nothing is lost, and nothing is fetched again but what was under way.
"""

import argparse
import contextlib
import fcntl
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TextIO
from urllib.robotparser import RobotFileParser

from crawler_frontier import Frontier, Outcome, Page, normalise

from coro import IOLoop, TaskGroup, coroutine, run, to_thread
from coro.errors import RequestError, TimeoutError
from coro.gen import timeout
from coro.http import AsyncHTTPClient, HTTPHeaders
from coro.http.urls import join
from coro.locks import Event
from coro.loop import PeriodicCallback
from coro.queues import Queue

MAX_ROBOTS = 500 * 1024
"""Bytes of a robots.txt that are looked at (RFC 9309 section 2.5)."""
MAX_REDIRECTS = 5
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses that may be others the next time."""
LONGEST_WAIT = 3600.0
GRACE = 5.0
"""Seconds that requests under way have when the crawler is told to stop."""


class Host:
    """A host, and how to behave there.

    Attributes:
        rules: its robots.txt, once it is known.
        delay: seconds between requests.
        free_at: when the next request may be sent, in the loop's time.
        parked: turns that wait for something to do.
        news: there may be something new to do.
    """

    def __init__(self, name: str, delay: float) -> None:
        self.name = name
        self.delay = delay
        self.rules: RobotFileParser | None = None
        self.tries = 0
        self.free_at = 0.0
        self.parked = 0
        self.news = False


class Crawler:
    """Fetches all that the frontier has.

    A host has as many turns as it may have connections. A turn goes into the queue, a worker takes
    it, fetches a page of that host, and puts it back. So the hosts take turns, and no host can keep
    all workers.
    """

    def __init__(self, frontier: Frontier, options: argparse.Namespace) -> None:
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self.under_way: set[str] = set()
        self._frontier = frontier
        self._options = options
        self._left = options.pages
        self._hosts: dict[str, Host] = {}
        self._turns: Queue[Host | None] = Queue()
        self._over = Event()
        self._client = AsyncHTTPClient(
            force_instance=True,
            max_clients=options.workers,
            defaults={
                "user_agent": options.agent,
                "connect_timeout": 10.0,
                "request_timeout": options.timeout,
            },
        )

    @coroutine
    def crawl(self) -> Generator[Any, Any, None]:
        """Work until nothing is left, or ``stop`` is called."""
        self.counts.update((yield to_thread(self._frontier.counts)))
        for name in (yield to_thread(self._frontier.waiting_hosts)):
            self._wake(name)
        self._look_for_the_end()
        with TaskGroup() as group:
            workers = [group.create_task(self._work) for _ in range(self._options.workers)]
            yield self._over.wait()
            for _ in workers:
                self._turns.put_nowait(None)
            try:
                with timeout(GRACE):
                    yield group.join()
            except TimeoutError:
                # What they fetch stays in the frontier.
                pass
        self._client.close()

    def stop(self) -> None:
        """Begin nothing new."""
        self._over.set()

    def _wake(self, name: str) -> None:
        """Let a host's turns come, for it has something to do."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(name, self._options.delay)
            host.parked = 1  # the others come when its robots.txt is known
        host.news = True
        for _ in range(host.parked):
            self._turns.put_nowait(host)
        host.parked = 0

    def _park(self, host: Host) -> None:
        """Keep a turn back until there is something to do, unless that came meanwhile."""
        if host.news:
            self._turns.put_nowait(host)
        else:
            host.parked += 1

    def _look_for_the_end(self) -> None:
        if not self.counts["waiting"] or not (self._left or self.under_way):
            self.stop()

    @coroutine
    def _work(self) -> Generator[Any, Any, None]:
        """Take one turn after the other."""
        while True:
            host = yield self._turns.get()
            if self._over.is_set():
                return
            if host.rules is None:
                yield self._learn_rules(host)
            else:
                yield self._take_turn(host)

    @coroutine
    def _take_turn(self, host: Host) -> Generator[Any, Any, None]:
        loop = IOLoop.current()
        host.news = False
        page = yield to_thread(
            self._frontier.next, host.name, frozenset(self.under_way), self._options.per_host + 1
        )
        if page is None or not self._left:
            self._park(host)
            return
        wait = max(page.due - time.time(), host.free_at - loop.time())
        if page.url in self.under_way or wait > 0:
            # Not yet; or another worker has taken it meanwhile.
            loop.call_later(wait, self._turns.put_nowait, host)
            return
        self.under_way.add(page.url)
        self._left -= 1
        try:
            assert host.rules is not None
            if host.rules.can_fetch(self._options.agent, page.url):
                host.free_at = loop.time() + host.delay
                outcome = yield self._fetch(page, host)
            else:
                outcome = Outcome("skipped", note="robots.txt")
            added = yield to_thread(self._frontier.finish, page, outcome)
        finally:
            self.under_way.discard(page.url)
        self._left += outcome.state == "waiting"
        self.counts["waiting"] += added.total() - (outcome.state != "waiting")
        self.counts[outcome.state] += outcome.state != "waiting"
        for name in added:
            self._wake(name)
        self._turns.put_nowait(host)
        self._look_for_the_end()

    @coroutine
    def _fetch(self, page: Page, host: Host) -> Generator[Any, Any, Outcome]:
        """Fetch a page; tell what became of it."""
        response = yield self._client.fetch(
            page.url, stream=True, raise_error=False, follow_redirects=False
        )
        if isinstance(response.error, RequestError):
            return self._later(page, host, str(response.error))
        status, headers = response.code, response.headers
        kind = headers.get("Content-Type", "")
        with response:
            if status < 300 and not kind.startswith(tuple(self._options.types)):
                return Outcome("skipped", status, kind, note="type")
            try:
                body = yield response.read_all(self._options.max_bytes)
            except RequestError as error:
                return self._later(page, host, str(error), status)
            except ValueError:
                return Outcome("skipped", status, kind, note="size")
        self.bytes += len(body)
        if status < 300:
            return Outcome("done", status, kind, body)
        if status in PASSING:
            return self._later(page, host, f"HTTP {status}", status, retry_after(headers))
        if status < 400 and "Location" in headers:
            return self._redirect(page, status, headers["Location"])
        return Outcome("failed", status, kind, note=f"HTTP {status} {response.reason}")

    def _redirect(self, page: Page, status: int, location: str) -> Outcome:
        """What it leads to is a page like any other: known already, perhaps, or not allowed."""
        try:
            target = normalise(join(page.url, location))
        except ValueError as error:
            return Outcome("failed", status, note=str(error))
        if page.redirects >= MAX_REDIRECTS:
            return Outcome("failed", status, note=f"more than {MAX_REDIRECTS} redirects")
        return Outcome("done", status, note=f"to {target}", target=target)

    def _later(
        self, page: Page, host: Host, note: str, status: int | None = None, wanted: float = 0.0
    ) -> Outcome:
        """It may go better another time, if there was not enough of that."""
        if wanted:
            host.free_at = max(host.free_at, IOLoop.current().time() + wanted)
        if page.tries + 1 >= self._options.tries:
            return Outcome("failed", status, note=note)
        wait = max(wanted, self._back_off(page.tries))
        return Outcome("waiting", status, note=note, retry_in=wait)

    def _back_off(self, tries: int) -> float:
        """Return the seconds to wait after so many tries more than one."""
        # At random, so that what failed together does not come again together.
        wait: float = self._options.back_off * 2.0**tries * random.uniform(0.5, 1.5)
        return min(wait, LONGEST_WAIT)

    @coroutine
    def _learn_rules(self, host: Host) -> Generator[Any, Any, None]:
        """Find out what a host allows; until then it has one turn."""
        text = yield to_thread(self._frontier.robots, host.name)
        if text is None:
            text = yield self._fetch_robots(host)
            if text is None:
                yield self._cannot_learn(host)
                return
            yield to_thread(self._frontier.keep_robots, host.name, text)
        rules = RobotFileParser()
        rules.parse(text.splitlines())
        wanted = float(rules.crawl_delay(self._options.agent) or 0)
        host.delay = min(max(host.delay, wanted), LONGEST_WAIT)
        host.rules = rules
        for _ in range(self._options.per_host):
            self._turns.put_nowait(host)

    @coroutine
    def _fetch_robots(self, host: Host) -> Generator[Any, Any, str | None]:
        """Return the text of a robots.txt; None if nobody can tell (RFC 9309 section 2.3.1)."""
        host.free_at = IOLoop.current().time() + host.delay
        response = yield self._client.fetch(
            f"{host.name}/robots.txt", stream=True, raise_error=False
        )
        if isinstance(response.error, RequestError):
            return None
        body = b""
        with response:
            if response.code == 429 or response.code >= 500:
                return None
            if response.code >= 300:
                return ""
            try:
                while len(body) < MAX_ROBOTS and (piece := (yield response.read())):
                    body += piece
            except RequestError:
                return None
        return body[:MAX_ROBOTS].decode("utf-8-sig", "replace")

    @coroutine
    def _cannot_learn(self, host: Host) -> Generator[Any, Any, None]:
        host.tries += 1
        if host.tries < self._options.tries:
            wait = self._back_off(host.tries - 1)
            IOLoop.current().call_later(wait, self._turns.put_nowait, host)
            return
        host.tries = 0
        host.news = False
        failed = yield to_thread(self._frontier.give_up, host.name, "no answer for robots.txt")
        self.counts["waiting"] -= failed
        self.counts["failed"] += failed
        self._park(host)
        self._look_for_the_end()


def retry_after(headers: HTTPHeaders) -> float:
    """Return the seconds that a server wants to be left alone for (RFC 9110 section 10.2.3)."""
    text = headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", text):
        return min(float(text), LONGEST_WAIT)
    try:
        wait = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(0.0, wait), LONGEST_WAIT)


class Display:
    """A line that tells how far it has come, where a person watches; with rich, a bar."""

    def __init__(self, crawler: Crawler, out: TextIO) -> None:
        self._crawler = crawler
        self._out = out
        self._bar: Any = None
        self._ticks = PeriodicCallback(self._paint, 200)

    def __enter__(self) -> None:
        if self._out.isatty():
            with contextlib.suppress(ModuleNotFoundError):
                self._bar = rich_bar()
                self._bar.start()
            self._ticks.start()

    def __exit__(self, *_: object) -> None:
        self._ticks.stop()
        if self._out.isatty():
            self._paint()
            if self._bar is not None:
                self._bar.stop()
            else:
                self._out.write("\n")

    def line(self) -> str:
        """Return what there is to tell."""
        counts = self._crawler.counts
        states = ", ".join(
            f"{counts[state]} {state}" for state in ("done", "failed", "skipped", "waiting")
        )
        return f"{states}; {self._crawler.bytes / 1e6:.1f} MB"

    def _paint(self) -> None:
        counts = self._crawler.counts
        if self._bar is None:
            self._out.write(f"\r\x1b[K{self.line()}")
            self._out.flush()
        else:
            total = counts.total()
            self._bar.update(
                self._bar.task_ids[0],
                completed=total - counts["waiting"],
                total=total,
                description=self.line(),
                refresh=True,
            )


def rich_bar() -> Any:
    """Return a bar on standard error.

    Raises:
        ModuleNotFoundError: rich is not installed: pip install 'coro-loop[cli]'.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (BarColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
    bar.add_task("", total=None)
    return bar


@coroutine
def main(frontier: Frontier, options: argparse.Namespace) -> Generator[Any, Any, bool]:
    """Crawl until the end, or Ctrl-C; return whether it was the end."""
    yield to_thread(frontier.begin, options.urls, options.again)
    crawler = Crawler(frontier, options)
    loop = IOLoop.current()
    stopped = []

    def stop(number: int) -> None:
        # The second one ends the program at once, which does no harm.
        signal.signal(number, signal.SIG_DFL)
        stopped.append(number)
        crawler.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    display = Display(crawler, sys.stderr)
    with display:
        yield crawler.crawl()
    print(display.line())
    return not stopped


@contextlib.contextmanager
def alone(database: str) -> Iterator[None]:
    """Keep a second crawler away from a database."""
    with open(f"{database}-crawler", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"a crawler is at work on {database}")
        yield


def start_url(text: str) -> str:
    """Read a URL of the command line."""
    try:
        return normalise(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def number(kind: type[int] | type[float], least: float) -> Any:
    """Return what reads a number of the command line."""

    def read(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"at least {least}, not {text}")
        return value

    read.__name__ = kind.__name__  # argparse shows it
    return read


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A polite crawler that can be killed at any time, and goes on where it was."
    )
    parser.add_argument("urls", nargs="*", type=start_url, metavar="URL", help="none: go on")

    def option(name: str, kind: Any, default: Any, meaning: str) -> None:
        parser.add_argument(
            name, type=kind, default=default, help=f"{meaning} (default %(default)s)"
        )

    option("--database", str, "crawl.db", "what it knows")
    option("--agent", str, "coro-crawler/0.1", "who it is; add (+URL) that tells more")
    option("--pages", number(int, 1), 10_000, "how many pages to visit this time")
    option("--workers", number(int, 1), 50, "how many requests at a time")
    option("--per-host", number(int, 1), 2, "how many of them to one host")
    option("--delay", number(float, 0), 1.0, "seconds between requests to a host")
    option("--tries", number(int, 1), 4, "how often to try a page")
    option("--back-off", number(float, 0), 2.0, "seconds before the second try, twice as many then")
    option("--timeout", number(float, 0.001), 30.0, "seconds for a page")
    option("--max-bytes", number(int, 1), 2_000_000, "of a page; larger ones are skipped")
    parser.add_argument("--depth", type=number(int, 0), help="links to follow from a start")
    parser.add_argument(
        "--types",
        nargs="+",
        default=["text/", "application/xhtml"],
        help="what Content-Type begins with; others are skipped (default text/ application/xhtml)",
    )
    parser.add_argument("--all-hosts", action="store_true", help="also those not started with")
    parser.add_argument("--again", action="store_true", help="try anew what failed")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = read_arguments()
    with (
        alone(arguments.database),
        contextlib.closing(
            Frontier(arguments.database, arguments.all_hosts, arguments.depth)
        ) as opened,
    ):
        if not run(main, opened, arguments):
            print(f"stopped; to go on: {sys.argv[0]} --database {arguments.database}")
            sys.exit(130)
