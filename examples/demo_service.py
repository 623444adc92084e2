"""The small web site that ``make demo`` fetches: several hundred pages, in a process of its own.

    python examples/demo_service.py --pages 400

It prints the loopback port it listens on, and ends when its standard input closes (so also when its
parent dies), or after ``--lifetime`` seconds. ``/`` links to the first pages, and each page to
others; ``/slow`` never answers; any other path is a 404. HTTP/1.1 with kept connections, on asyncio
alone: what coro is measured against must not be coro.
"""

import argparse
import asyncio
import contextlib
import os
import random
import threading

MAX_HEAD = 16384
"""Bytes of a request; a longer one ends its connection."""

WORDS = "a task waits for a future while the loop is free to run all other tasks".split()


def build_site(pages: int) -> dict[str, bytes]:
    """Return the paths with their bodies: every page can be reached from ``/``."""
    return {
        "/": page("coro's demo", [link(n) for n in (1, 2) if n <= pages], words=20),
        **{
            link(n): page(
                f"Page {n}",
                [link(child) for child in (2 * n + 1, 2 * n + 2) if child <= pages],
                words=random.Random(n).randrange(20, 4000),
            )
            for n in range(1, pages + 1)
        },
    }


def link(number: int) -> str:
    return f"/pages/{number}"


def page(title: str, links: list[str], words: int) -> bytes:
    """Return a page of about ``words`` words."""
    anchors = "\n".join(f'<li><a href="{target}">{target}</a></li>' for target in links)
    text = " ".join(WORDS[n % len(WORDS)] for n in range(words))
    return (
        f"<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n"
        f"<ul>\n{anchors}\n</ul>\n<p>{text}</p>\n"
    ).encode()


def response(status: str, body: bytes) -> tuple[bytes, bytes]:
    """Return head and body as they go over the wire."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


class Connection(asyncio.Protocol):
    """Answers the requests of one connection in their order."""

    NOT_FOUND = response("404 Not Found", b"<h1>No such page</h1>\n")
    NOT_ALLOWED = response("405 Method Not Allowed", b"<h1>GET or HEAD, please</h1>\n")

    def __init__(
        self, answers: dict[bytes, tuple[bytes, bytes]], standing: set[asyncio.Transport]
    ) -> None:
        self.answers = answers
        self.standing = standing
        self.received = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.standing.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.standing.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        *heads, self.received = (self.received + data).split(b"\r\n\r\n")
        for head in heads:
            self.answer(head)
        if len(self.received) > MAX_HEAD:
            self.transport.close()

    def answer(self, head: bytes) -> None:
        line, _, fields = head.partition(b"\r\n")
        method, _, rest = line.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path == b"/slow":
            return
        answer, body = self.answers.get(path, self.NOT_FOUND)
        if method == b"GET":
            self.transport.write(answer + body)
        elif method == b"HEAD":
            self.transport.write(answer)
        else:
            self.transport.write(b"".join(self.NOT_ALLOWED))
        if b"connection: close" in fields.lower():
            self.transport.close()


async def serve(site: dict[str, bytes], lifetime: float) -> None:
    """Serve a site until standard input closes, ``lifetime`` seconds at most."""
    loop = asyncio.get_running_loop()
    answers = {path.encode(): response("200 OK", body) for path, body in site.items()}
    orphaned = asyncio.Event()

    def watch_stdin() -> None:
        while os.read(0, 1024):
            pass
        with contextlib.suppress(RuntimeError):  # the loop's time was over just before
            loop.call_soon_threadsafe(orphaned.set)

    standing: set[asyncio.Transport] = set()
    server = await loop.create_server(
        lambda: Connection(answers, standing), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=watch_stdin, daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(lifetime):
            await orphaned.wait()
    server.close()
    for transport in list(standing):
        transport.abort()
    await asyncio.sleep(0)  # the turn in which they close


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="The web site that `make demo` fetches.")
    parser.add_argument("--pages", type=int, default=400, help="how many (default 400)")
    parser.add_argument("--lifetime", type=float, default=300, help="seconds (default 300)")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(build_site(arguments.pages), arguments.lifetime))


if __name__ == "__main__":
    main()
