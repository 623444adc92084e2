"""``coro serve`` with the frameworks that people use, and behind what they put before it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import textwrap
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import websockets.sync.client

from coro.gen import coroutine
from coro.http import fetch
from coro.main import run
from tests.support.authority import Authority
from tests.support.daemons import free_ports, run_daemon
from tests.support.leaks import count_fds
from tests.support.needs import needs_command, needs_module
from tests.support.serving import Served, coro_serve

STARLETTE = """
import contextlib
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

later = []

@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"began": True}

async def echo(request):
    body = await request.body()
    return JSONResponse({"size": len(body), "began": request.state.began,
                         "query": request.query_params.get("q")})

async def upload(request):
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return JSONResponse({"size": size})

async def stream(request):
    async def pieces():
        for number in range(1000):
            yield f"{number},"
    return StreamingResponse(pieces(), media_type="text/plain")

async def fail(request):
    raise ZeroDivisionError("on purpose")

async def work(request):
    async def do():
        later.append("done")
    return PlainTextResponse(",".join(later), background=BackgroundTask(do))

async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("you said " + await websocket.receive_text())
    await websocket.close()

app = Starlette(lifespan=lifespan, routes=[
    Route("/echo", echo, methods=["GET", "POST"]), Route("/upload", upload, methods=["POST"]),
    Route("/stream", stream), Route("/fail", fail), Route("/work", work),
    WebSocketRoute("/socket", socket),
])
"""

FASTAPI = """
import contextlib
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

later = []
state = {}

@contextlib.asynccontextmanager
async def lifespan(app):
    state["began"] = True
    yield
app = FastAPI(lifespan=lifespan)

@app.api_route("/echo", methods=["GET", "POST"])
async def echo(request: Request, q: str | None = None):
    return {"size": len(await request.body()), "began": state["began"], "query": q}

@app.post("/upload")
async def upload(request: Request):
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return {"size": size}

@app.get("/stream")
def stream():
    return StreamingResponse((f"{n}," for n in range(1000)), media_type="text/plain")

@app.get("/fail")
def fail():
    raise ZeroDivisionError("on purpose")

@app.get("/work", response_class=PlainTextResponse)
async def work(tasks: BackgroundTasks):
    tasks.add_task(later.append, "done")
    return ",".join(later)

@app.websocket("/socket")
async def socket(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text("you said " + await websocket.receive_text())
    await websocket.close()
"""

QUART = """
from quart import Quart, request, websocket

app = Quart(__name__)
app.config["MAX_CONTENT_LENGTH"] = None
later = []
state = {}

@app.before_serving
async def begin():
    state["began"] = True

@app.route("/echo", methods=["GET", "POST"])
async def echo():
    body = await request.get_data()
    return {"size": len(body), "began": state["began"], "query": request.args.get("q")}

@app.post("/upload")
async def upload():
    size = 0
    async for piece in request.body:
        size += len(piece)
    return {"size": size}

@app.get("/stream")
async def stream():
    async def pieces():
        for number in range(1000):
            yield f"{number},".encode()
    return pieces(), 200, {"Content-Type": "text/plain"}

@app.get("/fail")
async def fail():
    raise ZeroDivisionError("on purpose")

@app.get("/work")
async def work():
    async def do():
        later.append("done")
    answer = ",".join(later)
    app.add_background_task(do)
    return answer

@app.websocket("/socket")
async def socket():
    await websocket.send("you said " + await websocket.receive())
"""

DJANGO = """
import django
from django.conf import settings
settings.configure(
    DEBUG=False, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="a secret",
    DATA_UPLOAD_MAX_MEMORY_SIZE=None, MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

later = []

async def echo(request):
    return JsonResponse({"size": len(request.body), "began": True, "query": request.GET.get("q")})

def upload(request):
    size = 0
    while piece := request.read(65536):
        size += len(piece)
    return JsonResponse({"size": size})

async def stream(request):
    async def pieces():
        for number in range(1000):
            yield f"{number},"
    return StreamingHttpResponse(pieces(), content_type="text/plain")

async def fail(request):
    raise ZeroDivisionError("on purpose")

def work(request):
    answer = ",".join(later)
    later.append("done")
    return HttpResponse(answer)

urlpatterns = [path("echo", echo), path("upload", upload), path("stream", stream),
               path("fail", fail), path("work", work)]
app = get_asgi_application()
"""

FRAMEWORKS = {"starlette": STARLETTE, "fastapi": FASTAPI, "quart": QUART, "django": DJANGO}
STREAMED = "".join(f"{number}," for number in range(1000))


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    name: str = request.param
    needs_module(name)
    site = tmp_path_factory.mktemp(name)
    (site / "app.py").write_text(FRAMEWORKS[name])
    with coro_serve("app:app", "-p", 0, cwd=site, dev=False, fails=True) as served:
        yield served
    # Django tells its administrators instead.
    assert name == "django" or "on purpose" in served.log


class TestFrameworks:
    def test_requests_and_their_bodies(self, framework: Served) -> None:
        with httpx.Client(base_url=framework.url) as client:
            got = client.get("/echo", params={"q": "ä & b"}).json()
            assert got == {"size": 0, "began": True, "query": "ä & b"}
            assert client.post("/echo", content=b"x" * 100_000).json()["size"] == 100_000
            pieces = (b"y" * 10_000 for _ in range(300))
            assert client.post("/upload", content=pieces).json() == {"size": 3_000_000}
            assert client.get("/none").status_code == 404

    def test_a_streamed_response(self, framework: Served) -> None:
        with httpx.Client(base_url=framework.url) as client:
            for _ in range(3):
                assert client.get("/stream").text == STREAMED

    def test_a_failure_is_a_500_and_no_more(self, framework: Served) -> None:
        with httpx.Client(base_url=framework.url) as client:
            assert client.get("/fail").status_code == 500
            assert client.get("/echo").status_code == 200

    def test_work_after_the_response(self, framework: Served) -> None:
        with httpx.Client(base_url=framework.url) as client:
            client.get("/work")
            until = 200
            while "done" not in client.get("/work").text:
                until -= 1
                assert until

    def test_a_client_that_goes(self, framework: Served) -> None:
        with socket.create_connection(("127.0.0.1", framework.port)) as sock:
            sock.sendall(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nxyz")
        with httpx.Client(base_url=framework.url) as client:
            assert client.get("/echo").status_code == 200

    def test_many_side_by_side(self, framework: Served) -> None:
        def ask() -> None:
            with httpx.Client(base_url=framework.url) as client:
                answers.extend(client.get("/echo").status_code for _ in range(20))

        answers: list[int] = []
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 160

    def test_a_websocket(self, framework: Served, request: pytest.FixtureRequest) -> None:
        if "django" in request.node.name:
            # It has none without further packages.
            return
        url = framework.url.replace("http", "ws", 1) + "/socket"
        with websockets.sync.client.connect(url) as socket:
            socket.send("hello")
            assert socket.recv() == "you said hello"


NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 100m;
    upstream app {{ server {upstream}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto https;
        location / {{ proxy_pass http://app; }}
        location /unbuffered/ {{
            proxy_pass http://app/;
            proxy_request_buffering off;
            proxy_buffering off;
        }}
        location /old/ {{ proxy_pass http://app/; proxy_http_version 1.0; }}
        location /socket {{
            proxy_pass http://app;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
    }}
}}
"""

APP = """
from coro.http import Response, Router

router = Router()
connections = set()


@router.route("GET", "/who")
def who(request):
    connections.add(id(request.connection))
    return Response.json({"ip": request.remote_ip, "protocol": request.protocol,
                          "host": request.host, "connections": len(connections)})


@router.route("POST", "/size")
def size(request):
    return Response(str(len(request.body)))


@router.route("GET", "/stream")
def stream(request):
    return Response(f"{number},".encode() for number in range(1000))
"""


@pytest.fixture(scope="module", params=["port", "unix"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an nginx before ``coro serve``."""
    nginx = needs_command("nginx", "apt-get install nginx-light")
    site = tmp_path_factory.mktemp("behind")
    (site / "app.py").write_text(textwrap.dedent(APP))
    options: tuple[Any, ...] = ("-p", 0, "--trust-proxy", "127.0.0.1")
    if request.param == "unix":
        options = ("--unix", site / "socket", "--trust-proxy", "unix")
    with coro_serve("app:router", *options, cwd=site) as served, ExitStack() as stack:
        upstream = served.url.removeprefix("http://")
        (port,) = free_ports(1)
        configuration = site / "nginx.conf"
        configuration.write_text(
            NGINX.format(
                directory=site,
                port=port,
                upstream=f"unix:{upstream}" if request.param == "unix" else upstream,
                user="user root;" if os.geteuid() == 0 else "",
            )
        )
        log = site / "error.log"
        command = [nginx, "-e", str(log), "-c", str(configuration)]
        run_daemon(stack, command, port, log)
        yield f"http://127.0.0.1:{port}"


class TestBehindNginx:
    def test_the_client_is_known_and_connections_are_kept(self, url: str) -> None:
        with httpx.Client(base_url=url) as client:
            for _ in range(10):
                told = client.get("/who", headers={"X-Forwarded-For": "198.51.100.9"}).json()
                assert (told["ip"], told["protocol"]) == ("127.0.0.1", "https")
            assert told["connections"] == 1

    @pytest.mark.parametrize("way", ["", "/unbuffered", "/old"])
    def test_bodies_both_ways(self, url: str, way: str) -> None:
        with httpx.Client(base_url=url + way) as client:
            for size in (0, 1000, 5_000_000):
                assert client.post("/size", content=b"x" * size).text == str(size)
            pieces = (b"x" * 1000 for _ in range(100))
            assert client.post("/size", content=pieces).text == "100000"
            assert client.get("/stream").text == STREAMED

    def test_what_waits_for_100(self, url: str) -> None:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection):
            headers = {"Expect": "100-continue"}
            connection.request("POST", "/unbuffered/size", b"x" * 100_000, headers)
            assert connection.getresponse().read() == b"100000"


def by_http_client(url: str, body: bytes, context: ssl.SSLContext) -> int:
    """It sends all before it looks for an answer."""
    place = url.partition("//")[2]
    connection = (
        http.client.HTTPSConnection(place, timeout=20, context=context)
        if url.startswith("https")
        else http.client.HTTPConnection(place, timeout=20)
    )
    with contextlib.closing(connection):
        connection.request("POST", "/", body)
        return connection.getresponse().status


def by_httpx(url: str, body: bytes, context: ssl.SSLContext) -> int:
    return httpx.post(url, content=body, verify=context, trust_env=False).status_code


def by_aiohttp(url: str, body: bytes, context: ssl.SSLContext) -> int:
    async def ask() -> int:
        before = count_fds()
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=io.BytesIO(body), ssl=context) as response,
        ):
            status = response.status
        # Its connections end some time after its session, and nothing tells when.
        while count_fds() > before:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return status

    return asyncio.run(ask())


def by_coro(url: str, body: bytes, context: ssl.SSLContext) -> int:
    @coroutine
    def ask() -> Generator[Any, Any, int]:
        response = yield fetch(
            url, method="POST", body=body, ssl_options=context, raise_error=False
        )
        return int(response.code)

    return int(run(ask))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_refusal_reaches_who_is_sending(tmp_path: Path, ca: Authority, tls: bool) -> None:
    """Not a reset instead, whoever the client is (RFC 9112 section 9.6)."""
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    options = ("--certfile", ca.issue()) if tls else ()
    body = bytes(10_000_000)
    with coro_serve(
        "app:router", "-p", 0, "--max-body", 1_000_000, *options, cwd=tmp_path
    ) as served:
        url = served.url.replace("127.0.0.1", "localhost")
        for ask in (by_http_client, by_httpx, by_coro, by_aiohttp):
            got = [ask(url, body, ca.client_context()) for _ in range(10)]
            assert got == [413] * 10, ask
    assert served.log.count("413") == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_so_does_that_of_a_head(tmp_path: Path, ca: Authority, tls: bool) -> None:
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    options = ("--certfile", ca.issue()) if tls else ()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 900_000 + b"\r\n\r\n"
    with coro_serve("app:router", "-p", 0, *options, cwd=tmp_path) as served:
        for _ in range(10):
            with ExitStack() as stack:
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
                if tls:
                    context = ca.client_context()
                    sock = stack.enter_context(
                        context.wrap_socket(sock, server_hostname="localhost")
                    )
                sock.sendall(head)
                assert sock.recv(1000).startswith(b"HTTP/1.1 431 ")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    site = tmp_path_factory.mktemp("load")
    (site / "page.txt").write_text("of the page\n" * 50)
    with coro_serve(".", "-p", 0, "--no-access-log", cwd=site, dev=False) as served:
        yield served


class TestLoad:
    """Clients that are made to press hard: not one request may fail."""

    def test_wrk(self, files: Served) -> None:
        command = needs_command("wrk", "apt-get install wrk")
        said = subprocess.run(
            [command, "-d1", "-c50", "-t1", f"{files.url}/page.txt"],
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        assert re.search(r"[1-9]\d+ requests in", said), said
        assert "errors" not in said
        assert "Non-2xx" not in said

    @pytest.mark.parametrize("options", [[], ["-k"]], ids=["once", "keep-alive"])
    def test_ab(self, files: Served, options: list[str]) -> None:
        command = needs_command("ab", "apt-get install apache2-utils")
        said = subprocess.run(
            [command, "-q", "-n", "1000", "-c", "20", *options, f"{files.url}/page.txt"],
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        assert re.search(r"Complete requests: +1000\b", said), said
        assert re.search(r"Failed requests: +0\b", said), said
        assert "Non-2xx" not in said

    def test_curl(self, files: Served, tmp_path: Path) -> None:
        command = needs_command("curl", "apt-get install curl")
        url = f"{files.url}/page.txt"
        said = subprocess.run(
            [command, "-sS", "--fail", "-w", "%{num_connects}\n", "-o", "/dev/null", url]
            + ["-o", "/dev/null", url] * 5,
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        assert said.split() == ["1", "0", "0", "0", "0", "0"]
        whole = tmp_path / "whole.txt"
        part = tmp_path / "part.txt"
        subprocess.run([command, "-sS", "-o", whole, url], check=True, timeout=60)
        shutil.copy(whole, part)
        os.truncate(part, 100)
        subprocess.run([command, "-sS", "-C", "-", "-o", part, url], check=True, timeout=60)
        assert part.read_bytes() == whole.read_bytes()
