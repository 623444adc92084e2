"""``StaticFiles``: what is served and what is not, conditions, ranges, listings."""

from __future__ import annotations

import email
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from coro.gen import coroutine
from coro.http import AsyncHTTPClient, HTTPResponse, HTTPServer, Router, StaticFiles
from coro.loop import IOLoop
from coro.tcp import connect
from tests.support.leaks import count_fds

BIG = os.urandom(3_000_001)
DATE = 1_700_000_000
"""When all was modified."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with files; beside it lies a secret."""
    root = tmp_path / "root"
    (tmp_path / "secret.txt").write_text("secret")
    (root / "empty").mkdir(parents=True)
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".well-known").mkdir()
    for name, data in {
        "hello.txt": b"hello, world",
        "none.bin": b"",
        "big.bin": BIG,
        "page.html": b"<p>page</p>",
        "archive.tar.gz": b"\x1f\x8b",
        "a <b>&c.txt": b"odd",
        ".env": b"secret",
        ".git/config": b"secret",
        ".well-known/security.txt": b"contact",
        "sub/index.html": b"<p>index</p>",
        "sub/deep/leaf.txt": b"leaf",
    }.items():
        (root / name).write_bytes(data)
        os.utime(root / name, (DATE, DATE))
    (root / "inside.txt").symlink_to("hello.txt")
    (root / "outside.txt").symlink_to("../secret.txt")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = IOLoop()
    yield loop
    loop.close()
    IOLoop.clear_current()


Ask = Callable[..., HTTPResponse]


@pytest.fixture
def serve(loop: IOLoop) -> Iterator[Callable[[Any], str]]:
    """``serve(handler)`` gives the URL of a server."""
    servers: list[HTTPServer] = []

    def start(handler: Any) -> str:
        server = HTTPServer(handler)
        server.listen(0, "127.0.0.1")
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        loop.run_sync(functools.partial(server.shutdown, 0))


@pytest.fixture
def ask(loop: IOLoop, root: Path, serve: Callable[[Any], str]) -> Iterator[Ask]:
    """``ask(path, ...)``: what the server of ``root`` answers."""
    url = serve(StaticFiles(root))
    client = AsyncHTTPClient(force_instance=True)

    def ask(path: str, **headers: str) -> HTTPResponse:
        method = headers.pop("method", "GET")
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        fetch = functools.partial(
            client.fetch,
            url + path,
            method=method,
            headers=fields,
            raise_error=False,
            follow_redirects=False,
            allow_nonstandard_methods=True,
            decompress_response=False,
        )
        got: HTTPResponse = loop.run_sync(fetch)
        return got

    yield ask
    client.close()


class TestWhatIsServed:
    @pytest.mark.parametrize(
        ("path", "body", "kind"),
        [
            ("/hello.txt", b"hello, world", "text/plain; charset=utf-8"),
            ("/none.bin", b"", "application/octet-stream"),
            ("/big.bin", BIG, "application/octet-stream"),
            ("/page.html", b"<p>page</p>", "text/html; charset=utf-8"),
            ("/archive.tar.gz", b"\x1f\x8b", "application/gzip"),
            ("/a%20%3Cb%3E&c.txt", b"odd", "text/plain; charset=utf-8"),
            ("/inside.txt", b"hello, world", "text/plain; charset=utf-8"),
            ("/sub/", b"<p>index</p>", "text/html; charset=utf-8"),
            ("/sub/deep/leaf.txt", b"leaf", "text/plain; charset=utf-8"),
            ("/hello.txt?query", b"hello, world", "text/plain; charset=utf-8"),
            ("/.well-known/security.txt", b"contact", "text/plain; charset=utf-8"),
        ],
    )
    def test_files(self, ask: Ask, path: str, body: bytes, kind: str) -> None:
        got = ask(path)
        assert (got.code, got.body, got.headers["Content-Type"]) == (200, body, kind)
        assert got.headers["Last-Modified"] == formatdate(DATE, usegmt=True)
        assert got.headers["Accept-Ranges"] == "bytes"
        head = ask(path, method="HEAD")
        assert (head.code, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(body))
        assert head.headers["ETag"] == got.headers["ETag"]

    @pytest.mark.parametrize(
        "path",
        [
            "/nothing",
            "/hello.txt/",
            "/hello.txt/more",
            "/empty/",
            "/.env",
            "/.git/config",
            "/fifo",
            "/loop",
            "/outside.txt",
            "/up/secret.txt",
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/sub/../hello.txt",
            "/sub/%2E%2E/hello.txt",
            "/..%2fsecret.txt",
            "/sub%2findex.html",
            "/./hello.txt",
            "//hello.txt",
            "/sub//index.html",
            "/hello.txt%00",
            "/%00",
            "/%ff%fe",
            "/" + "a" * 5000,
            "/" + "%2e%2e/" * 30 + "etc/passwd",
            "/..\\secret.txt",
        ],
    )
    def test_nothing_else(
        self, loop: IOLoop, root: Path, serve: Callable[[Any], str], path: str
    ) -> None:
        """As it stands: a client of ours would tidy the path up."""
        port = int(serve(StaticFiles(root, listing=path != "/empty/")).rpartition(":")[2])

        @coroutine
        def main() -> Any:
            stream = yield connect("127.0.0.1", port)
            request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            yield stream.write(request.encode())
            return (yield stream.read_until_close())

        answer: Any = loop.run_sync(main)
        assert answer.startswith(b"HTTP/1.1 404 "), answer[:100]
        assert b"secret" not in answer

    def test_what_may_not_be_read(self, ask: Ask, root: Path) -> None:
        if os.geteuid() == 0:
            # Nothing is forbidden to root.
            os.unlink(root / "hello.txt")
        else:
            (root / "hello.txt").chmod(0)
        assert ask("/hello.txt").code == 404

    def test_a_directory_is_led_to_its_slash(self, ask: Ask) -> None:
        got = ask("/sub?a=b")
        assert (got.code, got.headers["Location"]) == (301, "./sub/?a=b")

    def test_a_name_does_not_pass_for_a_host(
        self, loop: IOLoop, root: Path, serve: Callable[[Any], str]
    ) -> None:
        (root / "\\evil.example").mkdir()
        (root / "https:").mkdir()
        port = int(serve(StaticFiles(root)).rpartition(":")[2])

        @coroutine
        def main() -> Any:
            stream = yield connect("127.0.0.1", port)
            for path in ("/\\evil.example", "/https:"):
                yield stream.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            heads = []
            for _ in range(2):
                heads.append((yield stream.read_until(b"\r\n\r\n")))
            stream.close()
            return b"".join(heads)

        heads: Any = loop.run_sync(main)
        assert re.findall(b"Location: (.*)\r\n", heads) == [b"./%5Cevil.example/", b"./https%3A/"]

    def test_methods(self, ask: Ask) -> None:
        got = ask("/hello.txt", method="DELETE")
        assert (got.code, got.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        got = ask("/hello.txt", method="OPTIONS")
        assert (got.code, got.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")

    def test_below_a_prefix(self, loop: IOLoop, root: Path, serve: Callable[[Any], str]) -> None:
        url = serve(StaticFiles(root, prefix="/static", max_age=60))
        client = AsyncHTTPClient(force_instance=True)

        def code(path: str) -> tuple[int, str]:
            got: Any = loop.run_sync(lambda: client.fetch(url + path, raise_error=False))
            return got.code, got.effective_url.removeprefix(url)

        assert code("/static/hello.txt") == (200, "/static/hello.txt")
        assert code("/static") == (404, "/static/")
        assert code("/static/sub") == (200, "/static/sub/")
        assert code("/hello.txt") == (404, "/hello.txt")
        assert code("/staticky/hello.txt") == (404, "/staticky/hello.txt")
        got: Any = loop.run_sync(lambda: client.fetch(f"{url}/static/hello.txt"))
        assert got.headers["Cache-Control"] == "public, max-age=60"
        client.close()

    def test_arguments_that_make_no_sense(self, root: Path) -> None:
        with pytest.raises(NotADirectoryError, match="nowhere"):
            StaticFiles(root / "nowhere")
        with pytest.raises(NotADirectoryError):
            StaticFiles(root / "hello.txt")
        for prefix in ("static", "/static/", "/"):
            with pytest.raises(ValueError, match="prefix"):
                StaticFiles(root, prefix=prefix)
        assert str(root) in repr(StaticFiles(root))


class TestConditions:
    @pytest.mark.parametrize("path", ["/hello.txt", "/big.bin"])
    def test_not_modified(self, ask: Ask, path: str) -> None:
        etag = ask(path).headers["ETag"]
        for value in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            got = ask(path, If_None_Match=value)
            assert (got.code, got.body, got.headers["ETag"]) == (304, b"", etag)
            assert "Content-Length" not in got.headers
        assert ask(path, If_None_Match='"x"').code == 200

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"If_Modified_Since": formatdate(DATE, usegmt=True)}, 304),
            ({"If_Modified_Since": formatdate(DATE - 1, usegmt=True)}, 200),
            ({"If_Modified_Since": "yesterday"}, 200),
            ({"If_Modified_Since": "Sun, 99 Nov 99999 08:49:37 GMT"}, 200),
            ({"If_Modified_Since": formatdate(DATE, usegmt=True), "If_None_Match": '"x"'}, 200),
            ({"If_Unmodified_Since": formatdate(DATE, usegmt=True)}, 200),
            ({"If_Unmodified_Since": formatdate(DATE - 1, usegmt=True)}, 412),
            ({"If_Match": "*"}, 200),
            ({"If_Match": '"x"'}, 412),
            ({"If_Match": 'W/"*"'}, 412),
            ({"If_Match": "*", "If_Unmodified_Since": formatdate(0, usegmt=True)}, 200),
        ],
    )
    def test_dates_and_tags(self, ask: Ask, fields: dict[str, str], code: int) -> None:
        assert ask("/hello.txt", **fields).code == code

    def test_a_tag_is_compared_strongly_where_a_change_would_matter(self, ask: Ask) -> None:
        etag = ask("/hello.txt").headers["ETag"]
        assert ask("/hello.txt", If_Match=etag).code == 200
        assert ask("/hello.txt", If_Match=f"W/{etag}").code == 412

    def test_a_changed_file_has_another_tag(self, ask: Ask, root: Path) -> None:
        etag = ask("/hello.txt").headers["ETag"]
        (root / "hello.txt").write_bytes(b"HELLO, WORLD")
        assert ask("/hello.txt", If_None_Match=etag).body == b"HELLO, WORLD"


class TestRanges:
    @pytest.mark.parametrize("path", ["/hello.txt", "/big.bin"])
    @pytest.mark.parametrize(
        ("wanted", "part"),
        [
            ("bytes=0-0", slice(0, 1)),
            ("bytes=1-3", slice(1, 4)),
            ("bytes=4-", slice(4, None)),
            ("bytes=-2", slice(-2, None)),
            ("bytes=-99999999", slice(None)),
            ("bytes=0-99999999", slice(None)),
            ("Bytes = 2-3 ", slice(2, 4)),
            ("bytes=100000000-, 5-6", slice(5, 7)),
        ],
    )
    def test_one_part(self, ask: Ask, path: str, wanted: str, part: slice) -> None:
        whole = ask(path).body
        got = ask(path, Range=wanted)
        assert (got.code, got.body) == (206, whole[part])
        start, stop, _ = part.indices(len(whole))
        assert got.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"

    @pytest.mark.parametrize("wanted", ["bytes=12-", "bytes=-0", "bytes=999-1000,12-13"])
    def test_no_part(self, ask: Ask, wanted: str) -> None:
        got = ask("/hello.txt", Range=wanted)
        assert (got.code, got.headers["Content-Range"]) == (416, "bytes */12")
        assert ask("/none.bin", Range="bytes=0-").code == 416

    @pytest.mark.parametrize(
        "wanted",
        [
            "bytes=",
            "bytes=-",
            "bytes=3-1",
            "bytes=a-b",
            "bytes=1",
            "lines=0-1",
            "bytes 0-1",
            "bytes=0-1,",
            "bytes=+1-2",
            "bytes=0-99999999999999999999",
            "bytes=" + ",".join(["0-0"] * 17),
            "bytes=0-11,0-11",
        ],
    )
    def test_the_whole_instead(self, ask: Ask, wanted: str) -> None:
        got = ask("/hello.txt", Range=wanted)
        assert (got.code, got.body) == (200, b"hello, world")

    @pytest.mark.parametrize("path", ["/hello.txt", "/big.bin"])
    def test_several_parts(self, ask: Ask, path: str) -> None:
        whole = ask(path).body
        far = len(whole) // 2
        got = ask(path, Range=f"bytes=0-1, {far}-, -1")
        assert got.code == 206
        kind = f"Content-Type: {got.headers['Content-Type']}\r\n\r\n".encode()
        parts: Any = email.message_from_bytes(kind + got.body).get_payload()
        assert [part["Content-Range"] for part in parts] == [
            f"bytes 0-1/{len(whole)}",
            f"bytes {far}-{len(whole) - 1}/{len(whole)}",
            f"bytes {len(whole) - 1}-{len(whole) - 1}/{len(whole)}",
        ]
        assert whole[:2] in got.body
        assert whole[far:] in got.body

    def test_only_if_it_is_the_same(self, ask: Ask) -> None:
        etag = ask("/hello.txt").headers["ETag"]
        date = formatdate(DATE, usegmt=True)
        for same in (etag, date):
            assert ask("/hello.txt", Range="bytes=0-0", If_Range=same).code == 206
        for other in ('"x"', f"W/{etag}", formatdate(DATE + 1, usegmt=True), "*", ""):
            assert ask("/hello.txt", Range="bytes=0-0", If_Range=other).code == 200

    def test_not_for_head(self, ask: Ask) -> None:
        got = ask("/hello.txt", method="HEAD", Range="bytes=0-0")
        assert (got.code, got.headers["Content-Length"]) == (200, "12")


class TestListing:
    def test_what_is_there_is_shown_and_can_be_followed(
        self, loop: IOLoop, root: Path, serve: Callable[[Any], str]
    ) -> None:
        url = serve(StaticFiles(root, listing=True))
        client = AsyncHTTPClient(force_instance=True)

        def page(url: str) -> str:
            got: Any = loop.run_sync(lambda: client.fetch(url))
            text: str = got.body.decode()
            return text

        shown = page(f"{url}/")
        links = re.findall('href="([^"]*)"', shown)
        assert links[:2] == ["./.well-known/", "./empty/"]
        assert "./a%20%3Cb%3E%26c.txt" in links
        assert "a &lt;b&gt;&amp;c.txt" in shown
        assert "secret" not in shown
        assert ".env" not in shown
        assert "outside.txt" not in shown
        assert page(f"{url}/{links[links.index('./hello.txt')]}") == "hello, world"
        # An index is shown instead.
        assert page(f"{url}/sub/") == "<p>index</p>"
        assert "leaf.txt" in page(f"{url}/sub/deep/")
        client.close()

    def test_a_name_that_is_no_text(
        self, loop: IOLoop, root: Path, serve: Callable[[Any], str]
    ) -> None:
        (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"found")
        url = serve(StaticFiles(root, listing=True))
        client = AsyncHTTPClient(force_instance=True)
        got: Any = loop.run_sync(lambda: client.fetch(f"{url}/"))
        assert "./%FF%FE" in got.body.decode()
        got = loop.run_sync(lambda: client.fetch(f"{url}/%FF%FE"))
        assert got.body == b"found"
        client.close()


class TestResources:
    def test_descriptors_are_given_back(self, ask: Ask) -> None:
        ask("/big.bin")
        before = count_fds()
        for path in ("/hello.txt", "/big.bin", "/fifo", "/sub/", "/nothing"):
            ask(path)
            ask(path, method="HEAD")
            ask(path, If_None_Match="*")
        assert count_fds() == before

    def test_a_client_that_leaves(
        self, loop: IOLoop, tmp_path: Path, serve: Callable[[Any], str]
    ) -> None:
        with (tmp_path / "huge.bin").open("wb") as file:
            file.truncate(1 << 34)
        port = int(serve(StaticFiles(tmp_path)).rpartition(":")[2])
        before = count_fds()

        @coroutine
        def main() -> Any:
            stream = yield connect("127.0.0.1", port)
            yield stream.write(b"GET /huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            yield stream.read_bytes(1_000_000)
            stream.abort()

        loop.run_sync(main)
        gone = threading.Event()

        def look() -> None:
            if count_fds() == before:
                gone.set()
                loop.stop()
            else:
                loop.call_later(0.01, look)

        loop.add_callback(look)
        loop.call_later(20, loop.stop)
        loop.start()
        assert gone.is_set()

    def test_a_file_that_is_cut_short_meanwhile(
        self, loop: IOLoop, tmp_path: Path, serve: Callable[[Any], str], caplog: Any
    ) -> None:
        """The client sees that something is missing."""
        file = tmp_path / "shrinks.bin"
        file.write_bytes(bytes(50_000_000))
        url = serve(StaticFiles(tmp_path))
        client = AsyncHTTPClient(force_instance=True)

        @coroutine
        def main() -> Any:
            response = yield client.fetch(f"{url}/shrinks.bin", stream=True)
            os.truncate(file, 1000)
            while (yield response.read()):
                pass

        with pytest.raises(Exception, match=r"closed|incomplete|reset|ended"):
            loop.run_sync(main)
        client.close()
        assert "announced length" in caplog.text

    def test_with_a_router_before_it(
        self, loop: IOLoop, root: Path, serve: Callable[[Any], str]
    ) -> None:
        router = Router()
        files = StaticFiles(root)
        router.add("GET", "/{name}", lambda request, name: files(request))
        client = AsyncHTTPClient(force_instance=True)
        url = serve(router)
        got: Any = loop.run_sync(lambda: client.fetch(f"{url}/hello.txt"))
        assert got.body == b"hello, world"
        client.close()
