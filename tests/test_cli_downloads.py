"""The command's downloads that go on where they ended, and its fetches that are tried again."""

from __future__ import annotations

import fcntl
import gzip
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest

import coro
from coro.cli import cli
from coro.cli.display import BarDisplay, Tally
from coro.cli.fetching import Fetcher
from coro.cli.pipes import Source
from coro.gen import coroutine, moment
from tests.conftest import RawServerFactory
from tests.support.command import LIMIT, ended, run, running
from tests.support.raw_server import RawServer, read_request, stay_silent
from tests.support.zstandard import zstd

BODY = bytes(range(256)) * 4
FIRST = 300

FAR = "Fri, 31 Dec 2100 23:59:59 GMT"
NEVER = "Thu, 01 Jan 1970 00:00:00 GMT"
DATE = "Date: Mon, 23 Nov 2026 20:00:00 GMT"


def whole(*fields: str, body: bytes = BODY) -> bytes:
    """A response with all of the body."""
    return _head("200 OK", f"Content-Length: {len(body)}", *fields) + body


def broken(*fields: str, size: int = FIRST) -> bytes:
    """A response that ends in the middle."""
    return _head("200 OK", f"Content-Length: {len(BODY)}", *fields) + BODY[:size]


def rest(start: int = FIRST, *fields: str, end: int | None = None) -> bytes:
    """The rest of it, or a part of that."""
    span = f"Content-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}"
    length = f"Content-Length: {len(BODY) - start}"
    return _head("206 Partial Content", span, length, *fields) + BODY[start:end]


def _head(status: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "Connection: close", "", ""]).encode()


class Scripted:
    """A server that gives one answer to each connection, and keeps what it was asked."""

    def __init__(self, raw_server: RawServerFactory, *answers: bytes) -> None:
        self.requests: list[dict[str, str]] = []
        left = list(answers)

        def script(conn: socket.socket) -> None:
            head = read_request(conn).decode("latin-1")
            pairs = [line.partition(": ")[::2] for line in head.split("\r\n")[1:]]
            self.requests.append(dict(pairs))
            conn.sendall(left.pop(0))

        self.server: RawServer = raw_server(script)
        self.url = self.server.url("/file.bin")


class ByPath:
    """A server with answers of its own for each path, so that one command tries many cases."""

    def __init__(self, raw_server: RawServerFactory, answers: dict[str, list[bytes]]) -> None:
        self.requests: dict[str, list[bytes]] = {path: [] for path in answers}

        def script(conn: socket.socket) -> None:
            request = read_request(conn)
            path = request.split()[1].decode()[1:]
            number = len(self.requests[path])
            self.requests[path].append(request)
            conn.sendall(answers[path][number])

        self.server = raw_server(script)
        self.urls = [self.server.url(f"/{path}") for path in answers]

    @property
    def counts(self) -> dict[str, int]:
        return {path: len(requests) for path, requests in self.requests.items()}


@pytest.fixture
def scripted(raw_server: RawServerFactory) -> Callable[..., Scripted]:
    return lambda *answers: Scripted(raw_server, *answers)


class TestContinue:
    @pytest.mark.parametrize(
        ("fields", "validator"),
        [
            (['ETag: "v1"'], '"v1"'),
            (['ETag: W/"weak"', f"Last-Modified: {NEVER}", DATE], NEVER),
        ],
    )
    def test_the_rest_is_fetched(
        self, scripted: Any, tmp_path: Path, fields: list[str], validator: str
    ) -> None:
        server = scripted(broken(*fields), rest())
        first = run("fetch", "-o", tmp_path, "--continue", server.url)
        assert first.status == 1
        assert sorted(file.name[0] for file in tmp_path.iterdir()) == [".", "."]
        second = run("fetch", "-o", tmp_path, "--continue", server.url)
        assert second.status == 0, second
        (file,) = tmp_path.iterdir()
        assert str(file) == second.lines[0]["file"]
        assert file.read_bytes() == BODY
        assert second.lines[0]["bytes"] == len(BODY) - FIRST
        assert second.lines[0]["code"] == 206
        assert "Range" not in server.requests[0]
        assert server.requests[1]["Range"] == f"bytes={FIRST}-"
        assert server.requests[1]["If-Range"] == validator
        # What is compressed anew each time has no parts.
        assert all("Accept-Encoding" not in request for request in server.requests)

    def test_it_may_end_more_than_once(self, scripted: Any, tmp_path: Path) -> None:
        server = scripted(broken('ETag: "v1"'), rest(end=500), rest(500, end=500), rest(500))
        statuses = [run("fetch", "-o", tmp_path, "-C", server.url).status for _ in range(4)]
        assert statuses == [1, 1, 1, 0]
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == BODY
        assert [request.get("Range") for request in server.requests] == [
            None, "bytes=300-", "bytes=500-", "bytes=500-",
        ]  # fmt: skip

    def test_a_server_that_sends_all_of_it(self, scripted: Any, tmp_path: Path) -> None:
        """It knows no ranges, or has another version."""
        new = BODY[::-1] + b"longer"
        server = scripted(broken('ETag: "v1"'), whole(body=new))
        run("fetch", "-o", tmp_path, "-C", server.url)
        ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert (ran.status, ran.lines[0]["code"]) == (0, 200)
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == new

    def test_another_version_may_break_off_as_well(self, scripted: Any, tmp_path: Path) -> None:
        server = scripted(broken('ETag: "v1"'), broken('ETag: "v2"', size=200), rest(200))
        for _ in range(3):
            ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert ran.status == 0
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == BODY
        assert server.requests[2]["If-Range"] == '"v2"'
        assert server.requests[2]["Range"] == "bytes=200-"

    def test_what_cannot_be_told_from_other_versions(
        self, raw_server: RawServerFactory, tmp_path: Path
    ) -> None:
        cases: dict[str, list[str]] = {
            "nothing": [],
            "weak": ['ETag: W/"weak"'],
            "unquoted": ["ETag: unquoted"],
            "undated": [f"Last-Modified: {NEVER}"],
            "just-now": [f"Last-Modified: {DATE[6:]}", DATE],
            "malformed": ["Last-Modified: yesterday", DATE],
        }
        server = ByPath(raw_server, {name: [broken(*f), whole()] for name, f in cases.items()})
        run("fetch", "-o", tmp_path, "-C", *server.urls)
        assert list(tmp_path.iterdir()) == []
        assert run("fetch", "-o", tmp_path, "-C", *server.urls).status == 0
        assert not any(b"Range" in requests[1] for requests in server.requests.values())

    def test_a_server_that_sends_another_part(self, scripted: Any, tmp_path: Path) -> None:
        server = scripted(broken('ETag: "v1"'), rest(200), rest())
        run("fetch", "-o", tmp_path, "-C", server.url)
        ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert ran.status == 1
        assert "another part" in ran.stderr
        assert run("fetch", "-o", tmp_path, "-C", server.url).status == 0
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == BODY

    def test_there_is_no_rest(self, scripted: Any, tmp_path: Path) -> None:
        """All came, but the command was killed before the file got its name."""
        refusal = _head("416 Range Not Satisfiable", "Content-Range: bytes */1024")
        server = scripted(broken('ETag: "v1"'), refusal)
        run("fetch", "-o", tmp_path, "-C", server.url)
        (part,) = tmp_path.glob("*.part")
        part.write_bytes(BODY)
        ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert ran.status == 0, ran
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == BODY

    @pytest.mark.parametrize("span", ["Content-Range: bytes */77", "X: y"])
    def test_a_range_that_is_none(self, scripted: Any, tmp_path: Path, span: str) -> None:
        refusal = _head("416 Range Not Satisfiable", span)
        server = scripted(broken('ETag: "v1"'), refusal, whole())
        run("fetch", "-o", tmp_path, "-C", server.url)
        ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert (ran.status, ran.lines[0]["code"]) == (0, 200)
        assert "Range" not in server.requests[2]
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == BODY

    def test_a_failure_keeps_what_there_is(self, scripted: Any, tmp_path: Path) -> None:
        server = scripted(broken('ETag: "v1"'), _head("503 Later"), rest())
        for _ in range(3):
            ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert ran.lines[0]["code"] == 206

    @pytest.mark.parametrize("note", ["[]", '{"url": "http://other/", "validator": "x"}'])
    def test_a_note_that_tells_nothing(self, scripted: Any, tmp_path: Path, note: str) -> None:
        server = scripted(broken('ETag: "v1"'), whole())
        run("fetch", "-o", tmp_path, "-C", server.url)
        (file,) = tmp_path.glob("*.json")
        file.write_text(note)
        assert run("fetch", "-o", tmp_path, "-C", server.url).status == 0
        assert "Range" not in server.requests[1]

    def test_a_part_that_somebody_else_writes(self, scripted: Any, tmp_path: Path) -> None:
        server = scripted(broken('ETag: "v1"'), whole())
        run("fetch", "-o", tmp_path, "-C", server.url)
        (part,) = tmp_path.glob("*.part")
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            ran = run("fetch", "-o", tmp_path, "-C", server.url)
        assert ran.status == 0
        assert Path(ran.lines[0]["file"]).read_bytes() == BODY
        assert part.read_bytes() == BODY[:FIRST]
        assert "Range" not in server.requests[1]

    def test_ctrl_c_keeps_what_came(self, raw_server: RawServerFactory, tmp_path: Path) -> None:
        begun = threading.Event()

        def script(conn: socket.socket) -> None:
            read_request(conn)
            conn.sendall(b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: 99999999\r\n\r\n')
            conn.sendall(bytes(20_000_000))
            begun.set()
            stay_silent(conn)

        server = raw_server(script)
        with running("fetch", "-o", tmp_path, "-C", server.url()) as process:
            assert begun.wait(LIMIT)
            process.terminate()
            assert ended(process)[0] == 143
        (part,) = tmp_path.glob("*.part")
        assert 0 < part.stat().st_size <= 20_000_000

    def test_it_needs_a_directory(self) -> None:
        for arguments in ([], ["-o", "-"]):
            ran = run("fetch", "-C", *arguments, "h")
            assert (ran.status, "--continue needs a directory" in ran.stderr) == (2, True)


class TestCompressed:
    @pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
    def test_by_default(self, scripted: Any, tmp_path: Path, coding: str) -> None:
        encoders: dict[str, Any] = {
            "gzip": gzip.compress,
            "br": brotli.compress,
            "zstd": zstd.compress,
        }
        server = scripted(whole(f"Content-Encoding: {coding}", body=encoders[coding](BODY)))
        ran = run("fetch", "-o", tmp_path, server.url)
        assert coding in server.requests[0]["Accept-Encoding"].split(", ")
        assert Path(ran.lines[0]["file"]).read_bytes() == BODY

    def test_not_at_all(self, scripted: Any, tmp_path: Path) -> None:
        packed = gzip.compress(BODY)
        server = scripted(whole("Content-Encoding: gzip", body=packed))
        ran = run("fetch", "--no-compressed", "-o", tmp_path, server.url)
        assert "Accept-Encoding" not in server.requests[0]
        assert Path(ran.lines[0]["file"]).read_bytes() == packed


class TestRetry:
    def fetch(self, server: Scripted, *arguments: object, retries: int = 3) -> Any:
        return run("fetch", "--retry", retries, "--retry-delay", 0, *arguments, server.url)

    def test_statuses(self, raw_server: RawServerFactory) -> None:
        codes = ("408", "429", "500", "502", "503", "504")
        later = {code: [_head(f"{code} Later")] * 2 + [whole()] for code in codes}
        server = ByPath(raw_server, later)
        ran = run("fetch", "--retry", 3, "--retry-delay", 0, *server.urls)
        assert (ran.status, len(ran.lines)) == (0, 6)
        assert {line["bytes"] for line in ran.lines} == {len(BODY)}
        told = [line.rpartition("; ")[2] for line in ran.stderr.splitlines()]
        assert sorted(told) == ["again in 0 s (1 of 3)"] * 6 + ["again in 0 s (2 of 3)"] * 6

    def test_statuses_that_stay(self, raw_server: RawServerFactory) -> None:
        codes = ("301", "400", "401", "404", "501")
        server = ByPath(raw_server, {code: [_head(f"{code} No")] for code in codes})
        ran = run("fetch", "--retry", 3, "--retry-delay", 0, *server.urls)
        assert sorted(str(line["code"]) for line in ran.lines) == sorted(codes)
        assert set(server.counts.values()) == {1}

    def test_an_end_to_it(self, scripted: Any) -> None:
        server = scripted(*[_head("503 Later")] * 3)
        ran = self.fetch(server, retries=2)
        assert (ran.status, ran.lines[0]["code"], len(server.requests)) == (1, 503, 3)

    def test_not_without_being_told_to(self, scripted: Any) -> None:
        server = scripted(_head("503 Later"))
        assert run("fetch", server.url).status == 1
        assert len(server.requests) == 1

    def test_connections_that_end(self, raw_server: RawServerFactory, tmp_path: Path) -> None:
        ends = {"at-once": b"", "in-the-head": b"HTTP/1.1 2", "in-the-body": broken()}
        server = ByPath(raw_server, {name: [end, whole()] for name, end in ends.items()})
        ran = run("fetch", "--retry", 1, "--retry-delay", 0, "-o", tmp_path, *server.urls)
        assert ran.status == 0, ran
        assert [file.read_bytes() for file in tmp_path.iterdir()] == [BODY] * 3
        assert {line["bytes"] for line in ran.lines} == {len(BODY)}

    def test_with_continue_the_rest_suffices(self, scripted: Any, tmp_path: Path) -> None:
        server = scripted(broken('ETag: "v1"'), rest())
        ran = self.fetch(server, "-o", tmp_path, "-C")
        assert ran.status == 0, ran
        (file,) = tmp_path.iterdir()
        assert file.read_bytes() == BODY
        assert server.requests[1]["Range"] == f"bytes={FIRST}-"

    def test_what_was_written_out_is_not_repeated(self, scripted: Any) -> None:
        server = scripted(broken())
        ran = self.fetch(server, "-o", "-")
        assert (ran.status, ran.stdout) == (1, BODY[:FIRST])
        server = scripted(_head("503 Later"), whole())
        ran = self.fetch(server, "-o", "-")
        assert (ran.status, ran.stdout) == (0, BODY)

    def test_refused_connections(self, refused_port: int) -> None:
        url = f"http://127.0.0.1:{refused_port}/"
        ran = run("fetch", "--retry", 2, "--retry-delay", 0, url)
        assert (ran.status, len(ran.stderr.splitlines())) == (1, 3)

    def test_what_is_no_http_stays_so(self, scripted: Any) -> None:
        server = scripted(b"SSH-2.0\r\n")
        assert self.fetch(server).status == 1
        assert len(server.requests) == 1

    def test_a_request_that_changes_something(self, raw_server: RawServerFactory) -> None:
        answers = {
            "gone": b"",
            "500": _head("500 Oops"),
            "503": _head("503 Later"),
            "429": _head("429 Slow"),
        }
        server = ByPath(raw_server, {path: [first, whole()] for path, first in answers.items()})
        run("fetch", "--retry", 3, "--retry-delay", 0, "-d", "x", *server.urls)
        assert server.counts == {"gone": 1, "500": 1, "503": 2, "429": 2}

    def test_a_request_that_changes_something_and_did_not_arrive(self, refused_port: int) -> None:
        url = f"http://127.0.0.1:{refused_port}/"
        ran = run("fetch", "-d", "x", "--retry", 1, "--retry-delay", 0, url)
        assert len(ran.stderr.splitlines()) == 2

    def test_a_server_says_when(self, raw_server: RawServerFactory) -> None:
        cases = {
            "now": "0", "past": NEVER, "nonsense": "soon",
            "much-too-late": "999999999", "too-late": "601", "far": FAR,
        }  # fmt: skip
        server = ByPath(
            raw_server,
            {name: [_head("503 Later", f"Retry-After: {v}"), whole()] for name, v in cases.items()},
        )
        run("fetch", "--retry", 3, "--retry-delay", 0, *server.urls)
        assert list(server.counts.values()) == [2, 2, 2, 1, 1, 1]

    @pytest.mark.parametrize("delay", ["-1", "nan", "601"])
    def test_delays_that_are_none(self, delay: str) -> None:
        assert run("fetch", "--retry", 1, "--retry-delay", delay, "h").status == 2


class TestRedirects:
    @pytest.fixture
    def server(self, raw_server: RawServerFactory) -> RawServer:
        def script(conn: socket.socket) -> None:
            for n in itertools.count(1):
                read_request(conn)
                conn.sendall(
                    b"HTTP/1.1 302 Found\r\nLocation: /%d\r\nContent-Length: 0\r\n\r\n" % n
                    if n <= 2
                    else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
                )

        return raw_server(script)

    def test_so_many_and_no_more(self, server: RawServer) -> None:
        assert run("fetch", "--max-redirs", 2, server.url()).status == 0
        ran = run("fetch", "--max-redirs", 1, server.url())
        assert ran.status == 1
        assert "redirect" in ran.lines[0]["error"]

    def test_none(self, server: RawServer) -> None:
        (line,) = run("fetch", "--max-redirs", 0, server.url()).lines
        assert (line["code"], line["error"]) == (302, "HTTP 302: Found")


def test_timings(scripted: Any) -> None:
    server = scripted(whole())
    ran = run("fetch", "--timings", server.url)
    assert re.fullmatch(
        rf"coro: {server.url}: (\w+ [0-9.]+ ms, )+total [0-9.]+ ms\n", ran.stderr
    ), ran.stderr
    assert json.loads(ran.stdout)["timings"]["total"] > 0


@pytest.mark.parametrize(("before", "shown"), [(0, (100, 700)), (300, (400, 1000))])
def test_the_bar_counts_what_was_there(before: int, shown: tuple[int, int]) -> None:
    @coroutine
    def paint() -> Any:
        tally = Tally(size=100, expected=700, before=before)
        display = BarDisplay(tally, Source(("http://h/",), None))
        display.paint()
        (task,) = display._bar.tasks
        assert (task.completed, task.total) == shown
        yield moment

    coro.run(paint)


def test_a_try_that_failed_does_not_count(
    scripted: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted(broken(), whole())
    fetchers: list[Fetcher] = []
    init = Fetcher.__init__

    def remember(self: Fetcher, *arguments: Any) -> None:
        init(self, *arguments)
        fetchers.append(self)

    monkeypatch.setattr(Fetcher, "__init__", remember)
    with pytest.raises(SystemExit) as ended:
        cli(["fetch", "--proxy", "", "--retry", "1", "--retry-delay", "0", server.url])
    assert ended.value.code == 0
    assert json.loads(capfd.readouterr().out)["bytes"] == len(BODY)
    assert (fetchers[0].tally.size, fetchers[0].tally.failed) == (len(BODY), 0)
