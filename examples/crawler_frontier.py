"""What the crawler knows: a database of pages, those fetched and those to be fetched.

A part of ``crawler.py``. Nothing here waits for the network; all of it runs in threads.
"""

import contextlib
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import unquote

from coro.http.urls import join, parse

ROBOTS_LIFETIME = 24 * 3600.0
"""Seconds for which a robots.txt is believed (RFC 9309 section 2.4)."""
MAX_LINKS = 1000
"""Links of one page that are followed."""
MAX_URL = 2000

SCHEMA = """
CREATE TABLE IF NOT EXISTS hosts (
    name TEXT PRIMARY KEY,            -- as in https://example.org
    robots TEXT,                      -- its robots.txt
    checked REAL                      -- when that was fetched
);
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    depth INTEGER NOT NULL,           -- links from the first page
    redirects INTEGER NOT NULL,       -- that led here
    state TEXT NOT NULL DEFAULT 'waiting',  -- or 'done', 'failed', 'skipped'
    tries INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,      -- not to be tried before
    fetched REAL, status INTEGER, type TEXT, title TEXT, body BLOB, note TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON pages (host, due, depth) WHERE state = 'waiting';
"""


class Page(NamedTuple):
    """A page that is to be fetched."""

    url: str
    host: str
    depth: int
    redirects: int
    tries: int
    due: float


class Outcome(NamedTuple):
    """What became of a page; what ``retry_in`` seconds may make better remains to be fetched."""

    state: str
    status: int | None = None
    type: str | None = None
    body: bytes | None = None
    note: str | None = None
    target: str | None = None
    retry_in: float | None = None


def normalise(url: str) -> str:
    """Return the one spelling of a URL under which it is known.

    Raises:
        ValueError: it is nothing to fetch.
    """
    target = parse(url)
    if target.username or target.password or len(target.url) > MAX_URL:
        raise ValueError(f"not a URL to crawl: {url[:MAX_URL]!r}")

    # RFC 3986 section 6.2.2: %7E is ~, and %2f is %2F.
    def spell(escape: re.Match[str]) -> str:
        meant = unquote(escape[0])
        return meant if re.fullmatch(r"[A-Za-z0-9._~-]", meant) else escape[0].upper()

    return re.sub("%[0-9A-Fa-f]{2}", spell, target.url)


def host_of(url: str) -> str:
    """Return what the limits are for."""
    target = parse(url)
    return f"{target.scheme}://{target.authority}"


class Links(HTMLParser):
    """Finds the title and the links of a page."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.title = ""
        self.found: dict[str, None] = {}
        self._base = url
        self._in_title = False
        self._follow = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_title = tag == "title"
        if tag == "base" and "href" in values:
            with contextlib.suppress(ValueError):
                self._base = join(self._base, values["href"])
        elif tag == "meta" and values.get("name", "").lower() == "robots":
            self._follow = not re.search("nofollow|none", values.get("content", "").lower())
        elif tag in ("a", "area") and "href" in values:
            if "nofollow" not in values.get("rel", "").lower().split():
                with contextlib.suppress(ValueError):  # mailto: and the like
                    self.found[normalise(join(self._base, values["href"]))] = None

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data

    @classmethod
    def of(cls, url: str, content_type: str, body: bytes) -> tuple[str, list[str]]:
        """Return the title and the links of what was fetched."""
        links = cls(url)
        if re.match("text/html|application/xhtml", content_type):
            charset = re.search(r"charset=[\"']?([\w-]+)", content_type)
            try:
                text = body.decode(charset[1] if charset else "utf-8", "replace")
            except (LookupError, UnicodeError):
                text = body.decode("utf-8", "replace")
            # Older versions of the parser fail at some declarations; what came before counts.
            with contextlib.suppress(AssertionError):
                links.feed(text)
                links.close()
        title = links.title.strip()[:200].encode("utf-8", "replace").decode()
        return title, list(links.found if links._follow else ())[:MAX_LINKS]


class Frontier:
    """The database. Its methods block: each is called in a thread, and is one transaction."""

    def __init__(self, path: str, all_hosts: bool, max_depth: int | None) -> None:
        self._all_hosts = all_hosts
        self._max_depth = max_depth
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False)
        # With WAL, what is committed stays if the program is killed, without an fsync for each.
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + SCHEMA)
        self._hosts = {name for (name,) in self._db.execute("SELECT name FROM hosts")}

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            yield self._db

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def counts(self) -> dict[str, int]:
        """Return how many pages are in each state."""
        with self._transaction() as db:
            return dict(db.execute("SELECT state, count(*) FROM pages GROUP BY state").fetchall())

    def waiting_hosts(self) -> list[str]:
        """Return the hosts that have pages to be fetched."""
        with self._transaction() as db:
            rows = db.execute("SELECT DISTINCT host FROM pages WHERE state = 'waiting'").fetchall()
        return [name for (name,) in rows]

    def begin(self, urls: list[str], again: bool) -> None:
        """Add the URLs to start with, whose hosts may be visited from now on."""
        with self._transaction() as db:
            for url in urls:
                self._hosts.add(host_of(url))
                self._add(db, url, 0, 0)
            if again:
                db.execute(
                    "UPDATE pages SET state = 'waiting', tries = 0, due = 0 WHERE state = 'failed'"
                )

    def _add(self, db: sqlite3.Connection, url: str, depth: int, redirects: int) -> str | None:
        """Add a page, unless it is known or out of bounds; return the host of a new one."""
        host = host_of(url)
        if host not in self._hosts:
            if not self._all_hosts:
                return None
            self._hosts.add(host)
        if self._max_depth is not None and depth > self._max_depth:
            return None
        db.execute("INSERT OR IGNORE INTO hosts (name) VALUES (?)", (host,))
        added = db.execute(
            "INSERT OR IGNORE INTO pages (url, host, depth, redirects) VALUES (?, ?, ?, ?)",
            (url, host, depth, redirects),
        )
        return host if added.rowcount else None

    def next(self, host: str, taken: Collection[str], limit: int) -> Page | None:
        """Return the page of a host that is due next, be it in the future."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT url, host, depth, redirects, tries, due FROM pages"
                " WHERE host = ? AND state = 'waiting' ORDER BY due, depth, rowid LIMIT ?",
                (host, limit),
            ).fetchall()
        return next((Page(*row) for row in rows if row[0] not in taken), None)

    def finish(self, page: Page, outcome: Outcome) -> Counter[str]:
        """Store what became of a page, and the pages it leads to; return how many by host."""
        title = ""
        links: list[str] = []
        if outcome.body is not None and outcome.type is not None:
            title, links = Links.of(page.url, outcome.type, outcome.body)
        added: Counter[str] = Counter()
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "UPDATE pages SET state = ?, tries = tries + 1, due = ?, fetched = ?, status = ?,"
                " type = ?, title = ?, body = ?, note = ? WHERE url = ?",
                (
                    *(outcome.state, now + (outcome.retry_in or 0.0), now, outcome.status),
                    *(outcome.type, title, outcome.body, outcome.note, page.url),
                ),
            )
            new = [self._add(db, link, page.depth + 1, 0) for link in links]
            if outcome.target is not None:
                new.append(self._add(db, outcome.target, page.depth, page.redirects + 1))
            added.update(host for host in new if host is not None)
        return added

    def robots(self, host: str) -> str | None:
        """Return a host's robots.txt, if it was fetched not long ago."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT robots FROM hosts WHERE name = ? AND checked > ?",
                (host, time.time() - ROBOTS_LIFETIME),
            ).fetchone()
        return None if row is None else str(row[0])

    def keep_robots(self, host: str, text: str) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE hosts SET robots = ?, checked = ? WHERE name = ?",
                (text, time.time(), host),
            )

    def give_up(self, host: str, note: str) -> int:
        """Let all pages of a host fail; return how many."""
        with self._transaction() as db:
            return db.execute(
                "UPDATE pages SET state = 'failed', note = ? WHERE host = ? AND state = 'waiting'",
                (note, host),
            ).rowcount
