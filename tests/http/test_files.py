"""``StaticFiles``: what a path leads to, and what it never leads to; conditions, ranges, pieces."""

from __future__ import annotations

import contextlib
import email
import functools
import gc
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coro.errors import StreamClosedError
from coro.http import HTTPHeaders, HTTPServer, Router, StaticFiles
from coro.http.files import MAX_LISTED, PIECE
from coro.loop import IOLoop
from coro.tcp import connect
from coro.threads import dummy_executor
from tests.support.hosting import of_the_system
from tests.support.leaks import count_fds
from tests.support.virtual import closing_loop, turns

BIG = bytes(range(256)) * (PIECE // 256) * 3 + b"end"
LONG_AGO = 1_000_000_000


class Answer:
    """A response, taken apart."""

    def __init__(self, heard: bytes) -> None:
        head, _, self.body = heard.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        self.status = int(line.split()[1])
        self.headers = HTTPHeaders.from_block(fields + b"\r\n")

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.headers!r} {self.body[:200]!r}>"


class Site:
    """A server of files, and a client that asks it for them."""

    def __init__(self, loop: IOLoop, handler: Any) -> None:
        self.loop = loop
        self.server = HTTPServer(handler)
        self.server.listen(0, "127.0.0.1")
        self.port = self.server.sockets[0].getsockname()[1]

    def get(self, target: str, method: str = "GET", **fields: str) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: a", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1")

        async def ask() -> bytes:
            async with await connect("127.0.0.1", self.port) as stream:
                await stream.write(request)
                heard: bytes = await stream.read_until_close()
                return heard

        return Answer(self.loop.run_sync(ask))


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    with closing_loop() as loop:
        loop.set_default_executor(dummy_executor)
        yield loop
        turns(loop, 3)
        left = loop.statistics()
        assert (left["handlers"], left["timers"], left["tasks"]) == (0, 0, 0)


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[..., Site]]:
    """``serve(handler)`` starts a server."""
    with contextlib.ExitStack() as stack:

        def start(handler: Any) -> Site:
            site = Site(loop, handler)
            stack.callback(loop.run_sync, functools.partial(site.server.shutdown, 0))
            return site

        yield start


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory to be served, with something beside it that is not to be."""
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "public-too").mkdir()
    (tmp_path / "public-too" / "secret.txt").write_text("secret")
    root = tmp_path / "public"
    root.mkdir()
    (root / "hello.txt").write_text("hello, world")
    (root / "big.bin").write_bytes(BIG)
    (root / "empty").write_bytes(b"")
    (root / ".hidden").write_text("secret")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / "docs").mkdir()
    (root / "docs" / "index.html").write_text("<p>index")
    (root / "plain").mkdir()
    (root / "plain" / "a&b <i>.txt").write_text("odd name")
    (root / "plain" / "javascript:alert(1)").write_text("odd name")
    for path in root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return root


@pytest.fixture
def site(serve: Callable[..., Site], root: Path) -> Site:
    return serve(StaticFiles(root))


class TestAFile:
    def test_a_small_one(self, site: Site) -> None:
        answer = site.get("/hello.txt")
        assert (answer.status, answer.body) == (200, b"hello, world")
        fields = dict(answer.headers.get_all())
        assert re.fullmatch(r'"[0-9a-f]+-c-[0-9a-f]+"', fields.pop("Etag"))
        assert fields.pop("Date")
        assert fields == {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": "12",
            "Last-Modified": "Sun, 09 Sep 2001 01:46:40 GMT",
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }

    def test_a_large_one(self, site: Site) -> None:
        answer = site.get("/big.bin")
        assert answer.body == BIG
        assert answer.headers["Content-Length"] == str(len(BIG))
        assert answer.headers["Content-Type"] == "application/octet-stream"

    @pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
    def test_sizes_about_a_piece(self, site: Site, root: Path, size: int) -> None:
        (root / "some").write_bytes(BIG[:size])
        assert site.get("/some").body == BIG[:size]

    def test_an_empty_one(self, site: Site) -> None:
        answer = site.get("/empty", Range="bytes=0-")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Content-Length"] == "0"

    @pytest.mark.parametrize("name", ["hello.txt", "big.bin", "empty"])
    def test_head(self, site: Site, name: str) -> None:
        whole, answer = site.get(f"/{name}"), site.get(f"/{name}", "HEAD")
        assert (answer.status, answer.body) == (200, b"")
        for header in (whole.headers, answer.headers):
            del header["Date"]
        assert answer.headers == whole.headers

    def test_other_methods(self, site: Site) -> None:
        answer = site.get("/hello.txt", "DELETE")
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        answer = site.get("/hello.txt", "OPTIONS")
        assert (answer.status, answer.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
        assert site.get("*", "OPTIONS").status == 204

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.html", "text/html; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("a.png", "image/png"),
            ("a.json", "application/json"),
            ("a.tar.gz", "application/gzip"),
            ("a.svgz", "application/gzip"),
            ("a.txt.Z", "application/octet-stream"),
            ("a.nothing-known", "application/octet-stream"),
            ("a", "application/octet-stream"),
            ("data:text,a", "application/octet-stream"),
        ],
    )
    def test_types(self, site: Site, root: Path, name: str, kind: str) -> None:
        (root / name).write_bytes(b"x")
        answer = site.get(f"/{name}")
        assert answer.headers["Content-Type"] == kind
        assert "Content-Encoding" not in answer.headers

    def test_cache_control(self, serve: Any, root: Path) -> None:
        site = serve(StaticFiles(root, cache_control="max-age=60"))
        assert site.get("/hello.txt").headers["Cache-Control"] == "max-age=60"

    def test_names_in_other_letters(self, site: Site, root: Path) -> None:
        (root / "größe 1%.txt").write_text("x")
        (root / os.fsdecode(b"\xff.txt")).write_text("y")
        assert site.get("/gr%C3%B6%C3%9Fe%201%25.txt").body == b"x"
        assert site.get("/%FF.txt").body == b"y"


NOWHERE = [
    "/missing",
    "/hello.txt/",
    "/hello.txt/more",
    "/hello.txt%00",
    "/%00",
    "//hello.txt",
    "/docs//index.html",
    "/../secret.txt",
    "/docs/../../secret.txt",
    "/docs/../hello.txt",
    "/./hello.txt",
    "/%2e%2e/secret.txt",
    "/%2E%2E%2Fsecret.txt",
    "/docs%2f..%2f..%2fsecret.txt",
    "/docs%2findex.html",
    "/..%5csecret.txt",
    "/..\\secret.txt",
    "/../public-too/secret.txt",
    "/%252e%252e/secret.txt",
    "/%c0%ae%c0%ae/secret.txt",
    "/.hidden",
    "/%2ehidden",
    "/.git/config",
    "/.git/",
    "/.git",
    "/" + "x" * 300,
    "/" + "x/" * 4000,
    "/plain/",
    "http://a/../secret.txt",
    "http://a",
]


class TestPaths:
    @pytest.mark.parametrize("target", NOWHERE, ids=lambda target: target[:40])
    def test_what_leads_nowhere(self, site: Site, target: str) -> None:
        answer = site.get(target)
        assert (answer.status, answer.body) == (404, b"404 Not Found\n")

    def test_an_absolute_target(self, site: Site) -> None:
        assert site.get("http://a/hello.txt?x").status == 200

    def test_links_within_are_followed_others_are_not(self, site: Site, root: Path) -> None:
        for name, target in {
            "within": "hello.txt",
            "docs/up": "../hello.txt",
            "whole": str(root / "hello.txt"),
            "out": "../secret.txt",
            "far": "/etc/passwd",
            "parent": "..",
            "beside": "../public-too",
            "dark": ".git/config",
            "circle": "circle",
            "dangling": "missing",
            ".link": "hello.txt",
        }.items():
            (root / name).symlink_to(target)
        for name in ("within", "docs/up", "whole"):
            assert site.get(f"/{name}").body == b"hello, world"
        for name in (
            *("out", "far", "parent/secret.txt", "beside/secret.txt", "dark", "circle"),
            *("dangling", ".link", "parent/", "beside/"),
        ):
            assert site.get(f"/{name}").status == 404, name

    def test_a_link_that_is_put_there_after_the_look(
        self, site: Site, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between resolving a path and opening it, somebody may exchange what it leads through."""
        resolve = os.path.realpath

        def exchange(path: str, **options: Any) -> str:
            found = resolve(path, **options)
            (root / "docs").rename(root / "docs-before")
            (root / "docs").symlink_to("../public-too")
            return found

        (root / "docs" / "secret.txt").write_text("fine")
        monkeypatch.setattr(os.path, "realpath", exchange)
        assert site.get("/docs/secret.txt").status == 404

    def test_a_root_that_is_a_link(self, serve: Any, root: Path) -> None:
        (root.parent / "link").symlink_to("public")
        assert serve(StaticFiles(root.parent / "link")).get("/hello.txt").status == 200

    def test_pipes_and_sockets_are_no_files(self, site: Site, root: Path) -> None:
        os.mkfifo(root / "pipe")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(root / "socket"))
            assert site.get("/pipe").status == 404
            assert site.get("/socket").status == 404

    def test_a_refusal_of_the_system(
        self, site: Site, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        answer = site.get("/hello.txt")
        monkeypatch.undo()
        assert answer.status == 403

    def test_hidden_ones_on_request(self, serve: Any, root: Path) -> None:
        site = serve(StaticFiles(root, hidden=True))
        assert site.get("/.hidden").body == b"secret"
        assert site.get("/.git/config").status == 200
        assert site.get("/%2e%2e/secret.txt").status == 404

    def test_a_prefix(self, serve: Any, root: Path) -> None:
        site = serve(StaticFiles(root, "/static/"))
        assert site.get("/static/hello.txt").status == 200
        for target in ("/hello.txt", "/static", "/statichello.txt", "/static/../hello.txt"):
            assert site.get(target).status == 404
        assert site.get("/static/docs").headers["Location"] == "/static/docs/"

    def test_mounted_in_a_router(self, serve: Any, root: Path) -> None:
        router = Router()
        router.mount("/", StaticFiles(root))
        router.mount("/static", StaticFiles(root, "/static"))
        router.add("GET", "/static/hello.txt", lambda _: "never")
        router._routes.clear()
        site = serve(router)
        for target in ("/static/hello.txt", "/hello.txt"):
            assert site.get(target).body == b"hello, world"
        assert site.get("/static/docs").headers["Location"] == "/static/docs/"

    def test_mistakes(self, root: Path) -> None:
        with pytest.raises(NotADirectoryError, match="missing"):
            StaticFiles(root / "missing")
        with pytest.raises(ValueError, match="slash"):
            StaticFiles(root, "static")


class TestDirectories:
    def test_the_index(self, site: Site) -> None:
        answer = site.get("/docs/")
        assert (answer.status, answer.body) == (200, b"<p>index")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"

    def test_a_directory_ends_with_a_slash(self, site: Site) -> None:
        answer = site.get("/docs?a=1")
        assert (answer.status, answer.headers["Location"]) == (301, "/docs/?a=1")

    def test_a_redirect_never_leads_to_another_host(self, serve: Any, root: Path) -> None:
        (root / "\\evil.com").mkdir()
        (root / "evil.com").mkdir()
        site = serve(StaticFiles(root))
        assert site.get("/\\evil.com").headers["Location"] == "/%5Cevil.com/"
        assert site.get("//evil.com").status == 404

    def test_no_index(self, serve: Any, root: Path) -> None:
        assert serve(StaticFiles(root, index=None)).get("/docs/").status == 404

    def test_an_index_that_is_none(self, serve: Any, root: Path) -> None:
        (root / "plain" / "index.html").symlink_to("../../secret.txt")
        assert serve(StaticFiles(root)).get("/plain/").status == 404

    def test_a_listing(self, serve: Any, root: Path) -> None:
        (root / "plain" / "sub").mkdir()
        (root / "plain" / ".dark").write_text("")
        (root / "plain" / os.fsdecode(b"\xff")).write_text("")
        site = serve(StaticFiles(root, listing=True))
        answer = site.get("/plain/")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        page = answer.body.decode()
        assert re.findall(r'<a href="(.*)">(.*)</a>', page) == [
            ("../", "../"),
            ("./sub/", "sub/"),
            ("./a%26b%20%3Ci%3E.txt", "a&amp;b &lt;i&gt;.txt"),
            ("./javascript%3Aalert%281%29", "javascript:alert(1)"),
            ("./%FF", "?"),
        ]
        assert site.get("/plain/a%26b%20%3Ci%3E.txt").body == b"odd name"
        top = site.get("/").body
        assert b"../" not in top
        assert b"hidden" not in top
        assert site.get("/docs/").body == b"<p>index"
        assert site.get("/plain/", "HEAD").body == b""

    def test_the_name_of_a_listed_directory_is_escaped(self, serve: Any, root: Path) -> None:
        (root / "<script>").mkdir()
        page = serve(StaticFiles(root, listing=True)).get("/%3Cscript%3E/").body
        assert b"<script>" not in page
        assert b"&lt;script&gt;" in page

    def test_a_listing_is_bounded(
        self, serve: Any, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert MAX_LISTED >= 1000
        monkeypatch.setattr("coro.http.files.MAX_LISTED", 3)
        site = serve(StaticFiles(root, listing=True))
        for count, end in ((3, False), (4, True)):
            directory = root / str(count)
            directory.mkdir()
            for number in range(count):
                (directory / f"f{number}").write_text("")
            page = site.get(f"/{count}/").body
            assert len(re.findall(rb">f[0-9]<", page)) == 3
            assert (b"<li>...</li>" in page) == end


class TestConditions:
    def test_not_modified(self, site: Site) -> None:
        whole = site.get("/hello.txt").headers
        for fields in (
            {"If_None_Match": whole["ETag"]},
            {"If_None_Match": "W/" + whole["ETag"]},
            {"If_Modified_Since": whole["Last-Modified"]},
        ):
            for method in ("GET", "HEAD"):
                answer = site.get("/hello.txt", method, **fields)
                assert (answer.status, answer.body) == (304, b"")
                assert answer.headers["ETag"] == whole["ETag"]
                assert "Content-Length" not in answer.headers
                assert "Content-Type" not in answer.headers

    def test_a_precondition_fails(self, site: Site) -> None:
        assert site.get("/hello.txt", If_Match='"other"').status == 412
        long_ago = "Sat, 01 Jan 2000 00:00:00 GMT"
        assert site.get("/hello.txt", If_Unmodified_Since=long_ago).status == 412

    def test_a_change_changes_the_tag(self, site: Site, root: Path) -> None:
        before = site.get("/hello.txt").headers["ETag"]
        os.utime(root / "hello.txt", ns=(LONG_AGO * 10**9, LONG_AGO * 10**9 + 1))
        after = site.get("/hello.txt").headers["ETag"]
        assert before != after
        assert site.get("/hello.txt", If_None_Match=before).status == 200

    def test_a_file_that_was_just_written_has_a_weak_tag(self, site: Site, root: Path) -> None:
        now = time.time() + 3
        os.utime(root / "hello.txt", (now, now))
        headers = site.get("/hello.txt").headers
        assert headers["ETag"].startswith('W/"')
        for validator in (headers["ETag"], headers["Last-Modified"]):
            answer = site.get("/hello.txt", Range="bytes=0-0", If_Range=validator)
            assert answer.status == 200


class TestRanges:
    @pytest.mark.parametrize("name", ["hello.txt", "big.bin"])
    def test_one(self, site: Site, name: str) -> None:
        whole = site.get(f"/{name}").body
        size = len(whole)
        for asked, first, last in (
            ("0-0", 0, 0),
            ("2-5", 2, 5),
            ("7-", 7, size - 1),
            ("-3", size - 3, size - 1),
            (f"0-{size}", 0, size - 1),
        ):
            answer = site.get(f"/{name}", Range=f"bytes={asked}")
            assert (answer.status, answer.body) == (206, whole[first : last + 1])
            assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
            assert answer.headers["Content-Length"] == str(last + 1 - first)

    def test_across_pieces(self, site: Site) -> None:
        answer = site.get("/big.bin", Range=f"bytes={PIECE - 5}-{2 * PIECE + 5}")
        assert answer.body == BIG[PIECE - 5 : 2 * PIECE + 6]

    @pytest.mark.parametrize("name", ["hello.txt", "big.bin"])
    def test_several(self, site: Site, name: str) -> None:
        whole = site.get(f"/{name}")
        size = len(whole.body)
        answer = site.get(f"/{name}", Range="bytes=-2,0-0,3-5")
        assert answer.status == 206
        assert "Content-Range" not in answer.headers
        assert answer.headers["Content-Length"] == str(len(answer.body))
        kind = answer.headers["Content-Type"]
        message = email.message_from_bytes(f"Content-Type: {kind}\n\n".encode() + answer.body)
        assert message.get_content_type() == "multipart/byteranges"
        parts: Any = message.get_payload()
        assert [(part["Content-Range"], part.get_payload(decode=True)) for part in parts] == [
            (f"bytes {size - 2}-{size - 1}/{size}", whole.body[-2:]),
            (f"bytes 0-0/{size}", whole.body[:1]),
            (f"bytes 3-5/{size}", whole.body[3:6]),
        ]
        assert all(part["Content-Type"] == whole.headers["Content-Type"] for part in parts)

    def test_none_of_it_is_there(self, site: Site) -> None:
        answer = site.get("/hello.txt", Range="bytes=12-")
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */12")

    def test_overlapping_ones_get_the_whole(self, site: Site) -> None:
        answer = site.get("/hello.txt", Range="bytes=0-,0-,0-,0-")
        assert (answer.status, answer.body) == (200, b"hello, world")

    def test_if_range(self, site: Site) -> None:
        etag = site.get("/hello.txt").headers["ETag"]
        assert site.get("/hello.txt", Range="bytes=0-0", If_Range=etag).status == 206
        assert site.get("/hello.txt", Range="bytes=0-0", If_Range='"old"').status == 200


class TestPieces:
    @of_the_system  # In simulation, turns do not tell how far a thread has come.
    def test_memory_is_bounded_by_a_client_that_reads_nothing(
        self, loop: IOLoop, serve: Any, root: Path
    ) -> None:
        with (root / "huge.bin").open("wb") as file:
            file.truncate(1 << 30)
        read: list[int] = []
        pread = os.pread

        site = serve(StaticFiles(root))
        stream = loop.run_sync(lambda: connect("127.0.0.1", site.port))

        def count(fd: int, size: int, place: int) -> bytes:
            read.append(size)
            return pread(fd, size, place)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pread", count)
            stream.write(b"GET /huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            turns(loop, 200)
            # What the system's buffers take, and a piece or two.
            assert 1 <= len(read) <= 100
            assert max(read) <= PIECE
            before = len(read)
            turns(loop, 50)
            assert len(read) == before
        stream.close()
        turns(loop, 5)

    @of_the_system  # As above.
    @pytest.mark.parametrize("name", ["big.bin", "huge.bin"])
    def test_a_client_that_goes_leaves_nothing_behind(
        self, loop: IOLoop, serve: Any, root: Path, name: str, no_collector: None
    ) -> None:
        with (root / "huge.bin").open("wb") as file:
            file.truncate(1 << 30)
        site = serve(StaticFiles(root))
        site.get("/hello.txt")
        fds = count_fds()
        gc.collect()

        async def ask_and_go() -> None:
            stream = await connect("127.0.0.1", site.port)
            await stream.write(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode())
            await stream.read_bytes(1000)
            stream.abort()

        loop.run_sync(ask_and_go)
        turns(loop, 10)
        assert site.server.statistics()["connections"] == 0
        assert count_fds() == fds
        assert gc.collect() == 0

    def test_a_file_that_shrinks_breaks_the_response(
        self, loop: IOLoop, serve: Any, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        site = serve(StaticFiles(root))
        with (root / "huge.bin").open("wb") as file:
            file.truncate(1 << 30)
        stream = loop.run_sync(lambda: connect("127.0.0.1", site.port))
        stream.write(b"GET /huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        loop.run_sync(lambda: stream.read_bytes(1000))
        os.truncate(root / "huge.bin", 10)
        with pytest.raises(StreamClosedError):
            loop.run_sync(lambda: stream.read_bytes(1 << 30))
        assert "became shorter" in caplog.text
        stream.close()
        turns(loop, 5)

    def test_descriptors_of_small_files_and_errors(self, site: Site) -> None:
        site.get("/hello.txt")
        before = count_fds()
        for target in ("/hello.txt", "/big.bin", "/docs/", "/docs", "/plain/", "/missing"):
            site.get(target)
            site.get(target, "HEAD")
            assert count_fds() == before, target

    @of_the_system  # A simulation has one thread.
    def test_in_threads(self, root: Path) -> None:
        with closing_loop() as loop:
            site = Site(loop, StaticFiles(root))
            threads = set()
            pread = os.pread

            def note(fd: int, size: int, place: int) -> bytes:
                threads.add(threading.current_thread())
                return pread(fd, size, place)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "pread", note)
                assert site.get("/hello.txt").body == b"hello, world"
                assert site.get("/big.bin").body == BIG
            assert threading.current_thread() not in threads
            loop.run_sync(functools.partial(site.server.shutdown, 0))
