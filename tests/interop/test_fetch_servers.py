"""``fetch`` against the servers that people run: each in a process of its own, one application.

``/echo`` gives back the body, ``/stream`` has one of unknown length, ``/redirect`` leads to
``/echo``.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from coro.errors import HTTPError
from coro.gen import coroutine
from coro.http import AsyncHTTPClient
from coro.loop import IOLoop
from tests.support.hosting import new_loop
from tests.support.needs import needs_module

ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    async def answer(status, headers, *pieces):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    if scope["path"] == "/echo":
        method = scope["method"].encode()
        length = str(len(body)).encode()
        await answer(200, [(b"content-length", length), (b"x-method", method)], body)
    elif scope["path"] == "/stream":
        await answer(200, [], *[b"%d," % number for number in range(1000)])
    elif scope["path"] == "/redirect":
        await answer(307, [(b"location", b"/echo")], b"")
    else:
        await answer(404, [(b"content-length", b"4")], b"none")
"""

SERVERS = {
    "uvicorn": ASGI
    + """
import socket, uvicorn
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error")).run([sock])
""",
    "hypercorn": ASGI
    + """
import asyncio, socket
from hypercorn.asyncio import serve
from hypercorn.config import Config
sock = socket.create_server(("127.0.0.1", 0))
config = Config()
config.bind = [f"fd://{sock.fileno()}"]
config.errorlog = None
print(sock.getsockname()[1], flush=True)
asyncio.run(serve(app, config))
""",
    "aiohttp": """
import asyncio
from aiohttp import web
async def echo(request):
    body = await request.read()
    return web.Response(body=body, headers={"X-Method": request.method})
async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(1000):
        await response.write(b"%d," % number)
    return response
async def redirect(request):
    raise web.HTTPTemporaryRedirect("/echo")
async def main():
    app = web.Application(client_max_size=10**8)
    app.add_routes([web.route("*", "/echo", echo), web.route("*", "/stream", stream),
                    web.route("*", "/redirect", redirect)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
""",
    "tornado": """
import asyncio, tornado.web, tornado.httpserver, tornado.netutil
class Handler(tornado.web.RequestHandler):
    async def get(self):
        path = self.request.path
        if path == "/echo":
            self.set_header("X-Method", self.request.method)
            self.write(self.request.body)
        elif path == "/stream":
            for number in range(1000):
                self.write(b"%d," % number)
                if number % 100 == 0:
                    await self.flush()
        elif path == "/redirect":
            self.redirect("/echo", status=307)
        else:
            self.set_status(404)
            self.write("none")
    post = put = delete = head = get
async def main():
    server = tornado.httpserver.HTTPServer(tornado.web.Application([("/.*", Handler)]))
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
""",
    "http.server": """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = PROTOCOL
    def log_message(self, *_):
        pass
    def answer(self, status, body, *fields):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if PROTOCOL == "HTTP/1.1":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    def do_GET(self):
        body = self.body()
        if self.path == "/echo":
            self.answer(200, body, ("X-Method", self.command))
        elif self.path == "/stream":
            self.answer(200, b"".join(b"%d," % number for number in range(1000)))
        elif self.path == "/redirect":
            self.answer(307, b"", ("Location", "/echo"))
        else:
            self.answer(404, b"none")
    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 200
server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
""",
}
SERVERS["http.server, HTTP/1.0"] = SERVERS["http.server"].replace("PROTOCOL", '"HTTP/1.0"')
SERVERS["http.server"] = SERVERS["http.server"].replace("PROTOCOL", '"HTTP/1.1"')

# Whoever is left behind ends by itself.
HEAD = "import signal\nsignal.alarm(300)\n"

STREAMED = b"".join(b"%d," % number for number in range(1000))


@pytest.fixture(scope="module", params=SERVERS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a running server, without a slash at the end."""
    name: str = request.param
    module = name.partition(",")[0]
    if module != "http.server":
        needs_module(module)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HEAD + textwrap.dedent(SERVERS[name])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().decode().strip()
        assert port, f"{name} did not start"
        yield f"http://127.0.0.1:{port}"
        process.kill()


@pytest.fixture
def loop() -> Iterator[IOLoop]:
    loop = new_loop()
    yield loop
    loop.close()
    IOLoop.clear_current()


@pytest.fixture
def client(loop: IOLoop) -> Iterator[AsyncHTTPClient]:
    client = AsyncHTTPClient(force_instance=True)
    yield client
    client.close()


@pytest.fixture
def fetch(loop: IOLoop, client: AsyncHTTPClient) -> Any:
    return lambda url, **options: loop.run_sync(functools.partial(client.fetch, url, **options))


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST", "PUT"])
def test_methods(fetch: Any, url: str, method: str) -> None:
    body = b"hello" if method in ("POST", "PUT") else None
    got = fetch(f"{url}/echo", method=method, body=body)
    assert (got.code, got.body, got.headers["X-Method"]) == (200, body or b"", method)


def test_a_connection_is_kept(
    fetch: Any, url: str, client: AsyncHTTPClient, request: pytest.FixtureRequest
) -> None:
    for _ in range(5):
        assert fetch(f"{url}/echo", method="POST", body=b"hello").body == b"hello"
    # HTTP/1.0 ends each response with its connection.
    ends = "HTTP/1.0" in request.node.name
    assert client.statistics()["opened"] == (5 if ends else 1)


def test_a_large_body(fetch: Any, url: str) -> None:
    data = bytes(range(256)) * 8000
    # As what it is: servers may read a form, which is POST's default.
    kind = {"Content-Type": "application/octet-stream"}
    got = fetch(f"{url}/echo", method="POST", body=data, headers=kind)
    assert hashlib.sha256(got.body).digest() == hashlib.sha256(data).digest()


def test_a_body_in_pieces(fetch: Any, url: str) -> None:
    pieces = [b"%d" % number * 1000 for number in range(50)]
    got = fetch(f"{url}/echo", method="POST", body=iter(pieces))
    assert got.body == b"".join(pieces)


def test_an_answer_in_pieces(fetch: Any, url: str) -> None:
    assert fetch(f"{url}/stream").body == STREAMED


def test_an_answer_that_is_pulled(loop: IOLoop, client: AsyncHTTPClient, url: str) -> None:
    @coroutine
    def main() -> Any:
        response: Any = yield client.fetch(f"{url}/stream", stream=True)
        return (yield response.read_all())

    assert loop.run_sync(main) == STREAMED


def test_a_redirect(fetch: Any, url: str) -> None:
    got = fetch(f"{url}/redirect", method="POST", body=b"hello")
    assert (got.effective_url, got.body) == (f"{url}/echo", b"hello")


def test_not_found(fetch: Any, url: str) -> None:
    with pytest.raises(HTTPError) as caught:
        fetch(f"{url}/nowhere")
    assert caught.value.code == 404


def test_the_body_is_expected(fetch: Any, url: str) -> None:
    got = fetch(f"{url}/echo", method="POST", body=b"hello", expect_100_continue=True)
    assert got.body == b"hello"


def test_many_side_by_side(loop: IOLoop, client: AsyncHTTPClient, url: str) -> None:
    @coroutine
    def main() -> Any:
        asked = [
            client.fetch(f"{url}/echo", method="POST", body=b"%d" % number) for number in range(200)
        ]
        return (yield asked)

    assert [got.body for got in loop.run_sync(main)] == [b"%d" % number for number in range(200)]
    assert client.statistics()["active"] == 0
