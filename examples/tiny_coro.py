"""The whole idea of coro in one page: a future, a task, a loop over epoll, and one fetch.

    python examples/tiny_coro.py http://127.0.0.1:8000/

Read it from the bottom: ``fetch`` yields futures, a ``Task`` waits for each of them and sends its
result back in, and the ``Loop`` sleeps in epoll until the kernel says which future is due. Nothing
of coro is imported; what coro adds is what a tool needs: errors, time limits, cancellation, TLS,
kept connections, speed.
"""

import select
import socket
import sys
from urllib.parse import urlsplit


class Future:
    """A result that comes later, and who waits for it."""

    def __init__(self):
        self.done, self.result, self.waiters = False, None, []

    def set_result(self, result):
        self.done, self.result = True, result
        loop.ready += self.waiters

    def then(self, callback):
        (loop.ready if self.done else self.waiters).append(callback)


class Task(Future):
    """Drives a generator: runs it to its ``yield``, waits for that future, sends the result in."""

    def __init__(self, generator):
        super().__init__()
        self.generator, self.awaited = generator, Future()
        self.awaited.then(self.step)
        self.awaited.set_result(None)  # a generator's first `send` must be None

    def step(self):
        try:
            self.awaited = self.generator.send(self.awaited.result)
            self.awaited.then(self.step)
        except StopIteration as end:
            self.set_result(end.value)  # what the generator returned


class Loop:
    """Runs what is ready; when nothing is, sleeps until a socket is."""

    def __init__(self):
        self.ready, self.waiting, self.epoll = [], {}, select.epoll()

    def until(self, sock, event):
        """Return a future that is done when ``event`` happens to ``sock``."""
        self.waiting[sock.fileno()] = future = Future()
        self.epoll.register(sock, event)
        return future

    def run(self, task):
        while not task.done:
            for fd, _ in self.epoll.poll(0 if self.ready else None):
                self.epoll.unregister(fd)
                self.waiting.pop(fd).set_result(None)
            turn, self.ready = self.ready, []  # what these add must wait for the next turn
            for callback in turn:
                callback()
        return task.result


def fetch(url):
    """Get a page. At each ``yield`` this task waits, and the loop is free for others."""
    place = urlsplit(url)
    host, port = place.hostname, place.port or 80
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex((host, port))  # only begins to connect
        print(f"connecting to {host}:{port}: the task waits until the socket can be written")
        yield loop.until(sock, select.EPOLLOUT)
        sock.send(f"GET {place.path or '/'} HTTP/1.0\r\nHost: {place.netloc}\r\n\r\n".encode())
        print("request sent: the task waits until the socket can be read")
        yield loop.until(sock, select.EPOLLIN)
        page = b""
        while piece := sock.recv(65536):
            page += piece
            print(f"{len(piece)} bytes came: the task waits for more")
            yield loop.until(sock, select.EPOLLIN)
        print("the server closed the connection: the page is whole")
        return page


def main(url):
    page = yield Task(fetch(url))  # a task is a future too, so coroutines call each other
    print(page.decode(errors="replace"))


loop = Loop()
loop.run(Task(main(sys.argv[1])))
