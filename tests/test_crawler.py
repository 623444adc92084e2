"""The crawler, as a program of its own, at a site that counts what is asked of it."""

import os
import pty
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import coro
from coro import IOLoop, coroutine, sleep
from coro.http import HTTPServer, HTTPServerRequest, Response
from coro.locks import Event
from tests.test_examples import LIMIT, command, running

HOSTS = 2


class Site:
    """Two hosts in a thread, which note each request.

    Attributes:
        hosts: where they are, as in http://127.0.0.1:1234.
        pages: what they answer, by path: text, a response, or a function that returns one.
        asked: how often for which path, robots.txt included, by host.
        busiest: how many requests to one host were under way at once.
    """

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages = pages
        self.hosts: list[str] = []
        self.asked: list[Counter[str]] = [Counter() for _ in range(HOSTS)]
        self.busiest = 0
        self._under_way = [0] * HOSTS
        self._more = threading.Condition()
        self._stop: Callable[[], None]

    @property
    def total(self) -> int:
        """How many requests there were, those for robots.txt not included."""
        return sum(asked.total() - asked["/robots.txt"] for asked in self.asked)

    def await_requests(self, count: int) -> None:
        """Wait until there were so many."""
        with self._more:
            assert self._more.wait_for(lambda: self.total >= count, LIMIT)

    def _answer(self, host: int) -> Callable[[HTTPServerRequest], Any]:
        @coroutine
        def answer(request: HTTPServerRequest) -> Generator[Any, Any, Response]:
            self._under_way[host] += 1
            self.busiest = max(self.busiest, self._under_way[host])
            with self._more:
                self.asked[host][request.uri] += 1
                self._more.notify_all()
            yield sleep(0.003)  # so that requests may meet
            self._under_way[host] -= 1
            page = self.pages.get(request.uri, Response("nothing here", 404))
            page = page(self.asked[host][request.uri]) if callable(page) else page
            return Response.html(page) if isinstance(page, str) else page

        return answer

    @coroutine
    def serve(self, ready: threading.Event) -> Generator[Any, Any, None]:
        """Serve until ``stop``."""
        servers = [HTTPServer(self._answer(host)) for host in range(HOSTS)]
        for server in servers:
            server.listen(0, "127.0.0.1")
            self.hosts.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        stopped, loop = Event(), IOLoop.current()
        self.stop = lambda: loop.add_callback(stopped.set)
        ready.set()
        yield stopped.wait()
        yield [server.shutdown(0) for server in servers]


@contextmanager
def serving(pages: dict[str, Any]) -> Iterator[Site]:
    site, ready = Site(pages), threading.Event()
    thread = threading.Thread(target=coro.run, args=(site.serve, ready))
    thread.start()
    assert ready.wait(LIMIT)
    try:
        yield site
    finally:
        site.stop()
        thread.join()


def links(*targets: str) -> str:
    return "".join(f'<a href="{target}">there</a>' for target in targets)


class Crawl:
    """Calls of the crawler on one database."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "crawl.db"

    def arguments(self, *arguments: str) -> list[str]:
        fast = ("--delay", "0", "--back-off", "0.01", "--workers", "8")
        return [*fast, "--database", str(self.database), *arguments]

    def run(self, *arguments: str) -> str:
        """Crawl to the end; return what was printed."""
        done = subprocess.run(
            command("crawler.py", *self.arguments(*arguments)),
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def pages(self, columns: str) -> list[Any]:
        """Return a row for each page."""
        database = sqlite3.connect(self.database)
        try:
            return database.execute(f"SELECT {columns} FROM pages ORDER BY url").fetchall()
        finally:
            database.close()


@pytest.fixture
def crawl(tmp_path: Path) -> Crawl:
    return Crawl(tmp_path)


def tree(size: int) -> dict[str, str]:
    """A site where each page can be reached by one link only."""
    return {
        "/": links("/1"),
        **{f"/{n}": links(f"/{2 * n}", f"/{2 * n + 1}") for n in range(1, size) if 2 * n < size},
        **{f"/{n}": "a leaf" for n in range(1, size) if 2 * n >= size},
    }


class TestWhatIsFetched:
    def test_each_page_once_in_whatever_spelling(self, crawl: Crawl) -> None:
        pages = {
            "/": "<title> The first </title>"
            + links("a", "/a", "./x/../a", "/a#part", "/%61", "HTTP:a", "mailto:me@x.test", "//["),
            "/a": "<base href='/deep/'>" + links("b?q=%c3%a4&r", "/c%2fd"),
            "/deep/b?q=%C3%A4&r": links("/", "c", "http://elsewhere.test/"),
            "/deep/c": "",
            "/c%2Fd": "",
        }
        with serving(pages) as site:
            printed = crawl.run(site.hosts[0])
            assert site.asked[0] == dict.fromkeys([*pages, "/robots.txt"], 1)
            assert not site.asked[1]
        assert printed.startswith("5 done, 0 failed, 0 skipped, 0 waiting;")
        url, *rest = crawl.pages("url, status, state, type, title, body, depth")[0]
        assert url == f"{site.hosts[0]}/"
        assert rest == [
            *(200, "done", "text/html; charset=utf-8", "The first", pages["/"].encode(), 0)
        ]

    def test_what_is_not_wanted(self, crawl: Crawl) -> None:
        pages: dict[str, Any] = {
            "/robots.txt": "User-agent: coro-crawler\nDisallow: /private\n\n"
            "User-agent: *\nDisallow: /",
            "/": links("/private/x", "/big", "/image", "/quiet", "/missing")
            + '<a rel="external nofollow" href="/not-this">',
            "/big": "x" * 5000,
            "/image": Response(b"\x89PNG", content_type="image/png"),
            "/quiet": '<meta name="robots" content="noindex, nofollow">' + links("/nor-this"),
        }
        with serving(pages) as site:
            crawl.run("--max-bytes", "4000", site.hosts[0])
            assert set(site.asked[0]) == {*pages, "/missing"}
        assert [row[1:] for row in crawl.pages("url, state, status, note")] == [
            ("done", 200, None),
            ("skipped", 200, "size"),
            ("skipped", 200, "type"),
            ("failed", 404, "HTTP 404 Not Found"),
            ("skipped", None, "robots.txt"),
            ("done", 200, None),
        ]

    def test_redirects_are_pages_and_counted(self, crawl: Crawl) -> None:
        pages: dict[str, Any] = {
            "/": links("/moved", "/loop", "/0", "/away", "/bad"),
            "/moved": Response.redirect("/there"),
            "/there": "",
            "/loop": Response.redirect("/loop"),
            "/away": Response.redirect("http://elsewhere.test/"),
            "/bad": Response.redirect("http://[/"),
            **{f"/{n}": Response.redirect(f"/{n + 1}") for n in range(10)},
        }
        with serving(pages) as site:
            crawl.run(site.hosts[0])
            assert max(site.asked[0].values()) == 1
        found = {
            url.removeprefix(site.hosts[0]): rest
            for url, *rest in crawl.pages("url, state, redirects, note")
        }
        assert found["/there"] == ["done", 1, None]
        assert found["/5"] == ["failed", 5, "more than 5 redirects"]
        assert found["/away"] == ["done", 0, "to http://elsewhere.test/"]
        assert found["/bad"][0] == "failed"
        assert "/6" not in found
        assert len(found) == 12

    def test_pages_that_nobody_can_read(self, crawl: Crawl) -> None:
        odd = "<title>\\ud800</title><a href='/there\\ud800'></a><a href='//[x'></a>"
        kinds = [f"text/html; charset={name}" for name in ("unicode_escape", "idna", "rot13", "-")]
        pages: dict[str, Any] = {
            "/": links("/0", "/1", "/2", "/3", "/declared", "/bytes"),
            **{f"/{n}": Response(odd, content_type=kind) for n, kind in enumerate(kinds)},
            "/declared": links("/there") + "<![foo[ x ]]><![if x",
            "/bytes": Response(bytes(range(256)) * 10, content_type="text/html"),
            "/there": "",
        }
        with serving(pages) as site:
            assert crawl.run(site.hosts[0]).startswith("8 done")

    def test_bounds(self, crawl: Crawl) -> None:
        with serving(tree(64)) as site:
            assert crawl.run("--depth", "2", site.hosts[0]).startswith("4 done")
            assert crawl.run("--pages", "3", f"{site.hosts[1]}/1").startswith("7 done")
            assert site.total == 7

    def test_other_hosts_on_request(self, crawl: Crawl) -> None:
        pages = tree(8)
        with serving(pages) as site:
            pages["/7"] = links(f"{site.hosts[1]}/")
            crawl.run(site.hosts[0])
            assert not site.asked[1]
            crawl.database.unlink()
            crawl.run("--all-hosts", site.hosts[0])
            assert site.asked[1] == dict.fromkeys(["/robots.txt", *pages], 1)


class TestManners:
    def test_connections_to_a_host(self, crawl: Crawl) -> None:
        pages = {"/": links(*(f"/{n}" for n in range(40))), **{f"/{n}": "" for n in range(40)}}
        with serving(pages) as site:
            crawl.run("--per-host", "2", *site.hosts)
            assert site.busiest == 2
            assert site.total == 82

    @pytest.mark.parametrize("by_host", [False, True])
    def test_seconds_between_requests(self, crawl: Crawl, by_host: bool) -> None:
        pages = tree(8)
        delay = 0.05
        if by_host:
            pages["/robots.txt"] = "User-agent: *\nCrawl-delay: 1\nDisallow: /2\nDisallow: /3"
            delay = 1.0
        with serving(pages) as site:
            began = time.monotonic()
            crawl.run("--delay", "0.05", "--per-host", "3", site.hosts[0])
            # It cannot be faster, whatever else the machine does.
            assert time.monotonic() - began >= delay * (site.total - 1)

    def test_what_passes_is_tried_again(self, crawl: Crawl) -> None:
        def flaky(time: int) -> Response:
            return Response("later", 503) if time < 3 else Response.html("at last")

        def busy(time: int) -> Response:
            return Response("", 429, {"Retry-After": "1"}) if time == 1 else Response.html("")

        pages = {
            "/": links("/flaky", "/busy", "/down"),
            "/flaky": flaky,
            "/busy": busy,
            "/down": Response("never", 500),
        }
        with serving(pages) as site:
            began = time.monotonic()
            crawl.run(site.hosts[0])
            assert time.monotonic() - began >= 1.0
            assert site.asked[0] == {"/": 1, "/robots.txt": 1, "/flaky": 3, "/busy": 2, "/down": 4}
            rows = crawl.pages("state, status, tries, note")
            assert rows == [
                ("done", 200, 1, None),
                ("done", 200, 2, None),
                ("failed", 500, 4, "HTTP 500"),
                ("done", 200, 3, None),
            ]
            pages["/down"] = "up"
            crawl.run()
            assert site.asked[0]["/down"] == 4
            crawl.run("--again")
            assert site.asked[0]["/down"] == 5

    @pytest.mark.parametrize("status", [500, 429])
    def test_a_host_without_an_answer_for_robots_is_left_alone(
        self, crawl: Crawl, status: int
    ) -> None:
        with serving({"/robots.txt": Response("", status), "/": ""}) as site:
            printed = crawl.run("--tries", "2", site.hosts[0])
            assert site.asked[0] == {"/robots.txt": 2}
        assert printed.startswith("0 done, 1 failed")

    def test_a_host_that_is_not_there(self, crawl: Crawl, refused_port: int) -> None:
        printed = crawl.run(f"http://127.0.0.1:{refused_port}/")
        assert printed.startswith("0 done, 1 failed")


class TestDisplay:
    @pytest.mark.parametrize("rich", [True, False])
    def test_a_person_sees_how_far_it_is(self, crawl: Crawl, tmp_path: Path, rich: bool) -> None:
        if not rich:
            (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('rich')")
        path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
        master, terminal = pty.openpty()
        try:
            with serving(tree(40)) as site:
                done = subprocess.run(
                    command("crawler.py", *crawl.arguments(site.hosts[0])),
                    env=os.environ | {"PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "120"},
                    stdout=subprocess.PIPE,
                    stderr=terminal,
                    check=True,
                    timeout=LIMIT,
                )
            seen = os.read(master, 65536).decode()
        finally:
            os.close(master)
            os.close(terminal)
        assert done.stdout == b"40 done, 0 failed, 0 skipped, 0 waiting; 0.0 MB\n"
        assert "40 done, 0 failed, 0 skipped, 0 waiting" in seen
        assert ("━" in seen) is rich


class TestItsEnd:
    def test_killed_again_and_again_it_loses_nothing(self, crawl: Crawl) -> None:
        pages = tree(300)
        kills = (5, 60, 61, 150, 290)
        with serving(pages) as site:
            urls = site.hosts
            for count in kills:
                with running("crawler.py", *crawl.arguments(*urls)) as process:
                    site.await_requests(count + site.total // 50)
                    process.kill()
                    process.wait(LIMIT)
                urls = []
            crawl.run()
            for asked in site.asked:
                assert asked.keys() == {"/robots.txt", *pages}
                assert asked["/robots.txt"] == 1
            # What was under way when it was killed is fetched again, and nothing else.
            assert site.total <= HOSTS * len(pages) + len(kills) * 2 * HOSTS
        assert {state for (state,) in crawl.pages("state")} == {"done"}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stopped_it_finishes_what_is_under_way(
        self, crawl: Crawl, number: signal.Signals
    ) -> None:
        pages = tree(200)
        with serving(pages) as site:
            with running("crawler.py", *crawl.arguments(*site.hosts)) as process:
                site.await_requests(20)
                process.send_signal(number)
                printed, complaints = process.communicate(timeout=LIMIT)
                assert (process.returncode, complaints) == (130, "")
                assert "to go on: " in printed
            assert site.total < HOSTS * len(pages)
            crawl.run()
            assert all(asked == dict.fromkeys([*pages, "/robots.txt"], 1) for asked in site.asked)

    def test_the_second_ctrl_c_ends_it_at_once(self, crawl: Crawl) -> None:
        released = threading.Event()

        def held(_time: int) -> Response:
            released.wait(LIMIT)
            return Response("")

        with serving({"/": held}) as site:
            with running("crawler.py", *crawl.arguments(site.hosts[0])) as process:
                site.await_requests(1)
                process.send_signal(signal.SIGINT)
                while process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.01)
                assert process.returncode == -signal.SIGINT
            released.set()

    def test_one_at_a_time(self, crawl: Crawl) -> None:
        with (
            serving(tree(10)) as site,
            running("crawler.py", *crawl.arguments("--delay", "1", site.hosts[0])),
        ):
            site.await_requests(1)
            second = subprocess.run(
                command("crawler.py", *crawl.arguments()),
                capture_output=True,
                text=True,
                check=False,
                timeout=LIMIT,
            )
        assert second.returncode == 1
        assert second.stderr == f"a crawler is at work on {crawl.database}\n"

    @pytest.mark.parametrize("wrong", ["ftp://x.test/", "http://me:pw@x.test/", "--delay=-1"])
    def test_a_wrong_call(self, crawl: Crawl, wrong: str) -> None:
        done = subprocess.run(
            command("crawler.py", *crawl.arguments(wrong)),
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        assert done.returncode == 2
        assert "usage:" in done.stderr
