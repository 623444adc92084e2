"""A chat: rooms over WebSockets, and over Server-Sent Events for who cannot or need not have those.

    python examples/chat.py --port 8080        # and open http://127.0.0.1:8080/ in two windows
    curl -N http://127.0.0.1:8080/events/lobby                     # listen
    curl -d 'name=curl' -d 'text=hello' http://127.0.0.1:8080/say/lobby

A room remembers its last messages, for who comes later or comes again. Nobody holds up the others:
each member has a queue of its own, and one that does not keep up is sent away. Needs the extra
"websocket": pip install 'coro-loop[websocket]'.
"""

import argparse
import json
import logging
import signal
from collections import deque
from collections.abc import Generator
from typing import Any

from coro import IOLoop, TaskGroup, coroutine, run
from coro.errors import WebSocketClosedError
from coro.http import HTTPServer, HTTPServerRequest, Response, Router
from coro.http.events import Event, EventStream
from coro.http.server import log_access
from coro.http.websocket import WebSocketConnection, WebSocketHandler
from coro.locks import Event as Signal
from coro.queues import Queue, QueueFull

GRACE = 5.0
"""Seconds that members have to leave when the chat stops."""
REMEMBERED = 50
"""Messages that a room shows to who comes."""
BEHIND = 100
"""Messages that a member may be behind before it is sent away."""
LONGEST = 2000
"""Characters of a message."""
MOST_ROOMS = 1000

Message = dict[str, Any]
Coroutine = Generator[Any, Any, Any]


class Room:
    """Who is in it, and what was said last."""

    def __init__(self) -> None:
        self.members: set[Queue[Message | None]] = set()
        self.said: deque[Message] = deque(maxlen=REMEMBERED)
        self._count = 0

    def enter(self, after: int = 0) -> "Queue[Message | None]":
        """Add a member; its queue has what was said since a message, and ends with None."""
        queue: Queue[Message | None] = Queue(BEHIND)
        for message in self.said:
            if message["number"] > after:
                queue.put_nowait(message)
        self.members.add(queue)
        return queue

    def leave(self, queue: "Queue[Message | None]") -> None:
        """Take a member out."""
        self.members.discard(queue)

    def say(self, name: str, text: str) -> None:
        """Tell everybody."""
        name, text = name.strip()[:50] or "somebody", text.strip()[:LONGEST]
        if not text:
            return
        self._count += 1
        message = {"number": self._count, "name": name, "text": text}
        self.said.append(message)
        for queue in list(self.members):
            try:
                queue.put_nowait(message)
            except QueueFull:
                self.send_away(queue)

    def send_away(self, queue: "Queue[Message | None]") -> None:
        """End a member's queue, whatever it has not taken yet."""
        self.leave(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


class Chat:
    """The rooms, and what answers requests."""

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self.router = Router()
        self.router.add("GET", "/", self.page)
        sockets = WebSocketHandler(self.talk, max_message_size=64 * 1024)
        self.router.add("GET", "/socket/{room}", sockets)
        self.router.add("GET", "/events/{room}", self.listen)
        self.router.add("POST", "/say/{room}", self.say)

    def room(self, name: str) -> Room:
        """Return a room, made if it is new; an empty one makes place for it if need be."""
        if name not in self._rooms and len(self._rooms) >= MOST_ROOMS:
            empty = [each for each, room in self._rooms.items() if not room.members]
            if not empty:
                return Room()
            del self._rooms[empty[0]]
        return self._rooms.setdefault(name, Room())

    def page(self, _request: HTTPServerRequest) -> Response:
        """The page, for browsers."""
        return Response.html(PAGE)

    @coroutine
    def talk(self, connection: WebSocketConnection, room: str) -> Coroutine:
        """Serve a member by WebSocket: it says what it likes, and hears all."""
        assert connection.request is not None
        place = self.room(room)
        after = connection.request.query_arguments.get("after", [b""])[-1]
        queue = place.enter(_number(after.decode("latin-1")))
        try:
            with TaskGroup() as group:
                group.create_task(self._tell, connection, queue)
                while (said := (yield connection.read_message())) is not None:
                    try:
                        message = json.loads(said)
                        place.say(str(message["name"]), str(message["text"]))
                    except (ValueError, KeyError, TypeError, RecursionError):
                        yield connection.close(1003, 'write {"name": ..., "text": ...}')
                place.send_away(queue)
                yield group.join()
        finally:
            place.leave(queue)

    @coroutine
    def _tell(self, connection: WebSocketConnection, queue: "Queue[Message | None]") -> Coroutine:
        try:
            while (message := (yield queue.get())) is not None:
                yield connection.write_message(message)
        except WebSocketClosedError:
            return  # it has gone
        yield connection.close(1013, "too far behind, or the chat ends")

    @coroutine
    def listen(self, request: HTTPServerRequest, room: str) -> Coroutine:
        """Serve a member by events: it only hears."""
        place = self.room(room)
        with EventStream(request) as events:
            queue = place.enter(_number(events.last_event_id or ""))
            gone = request.disconnected()
            gone.add_done_callback(lambda _: place.send_away(queue))
            try:
                while (message := (yield queue.get())) is not None:
                    yield events.send(Event(json.dumps(message), id=str(message["number"])))
            finally:
                place.leave(queue)

    def say(self, request: HTTPServerRequest, room: str) -> Response:
        """Take a message by POST."""
        said = {
            name: values[-1].decode("utf-8", "replace")
            for name, values in request.body_arguments.items()
        }
        if not said.get("text", "").strip():
            return Response("a form with 'name' and 'text' is wanted\n", 400)
        self.room(room).say(said.get("name", ""), said["text"])
        return Response(status=204)

    def end(self) -> None:
        """Send everybody away."""
        for room in self._rooms.values():
            for queue in list(room.members):
                room.send_away(queue)


def _number(text: str) -> int:
    """Read the number of a message; it comes from outside, and may be anything."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Chat</title>
<style>
  body { font-family: sans-serif; max-width: 40em; margin: 2em auto; padding: 0 1em }
  #said { list-style: none; padding: 0; min-height: 10em }
  #said b { margin-right: .5em }
  form { display: flex; gap: .5em }
  #text { flex: 1 }
</style>
</head>
<body>
<h1>Room <span id="room"></span></h1>
<p id="state">connecting</p>
<ul id="said"></ul>
<form id="form">
  <input id="name" placeholder="name" size="10">
  <input id="text" placeholder="message" autocomplete="off">
  <button>say</button>
</form>
<script>
"use strict";
const room = encodeURIComponent(location.hash.slice(1) || "lobby");
const element = (id) => document.getElementById(id);
let last = 0, socket = null;
element("room").textContent = decodeURIComponent(room);

function show(message) {
  last = message.number;
  const line = document.createElement("li"), name = document.createElement("b");
  name.textContent = message.name;
  line.append(name, message.text);   // as text: nobody can put a script here
  element("said").append(line);
}

function begin() {
  if (location.search === "?events") {
    const source = new EventSource("/events/" + room);
    source.onopen = () => { element("state").textContent = "connected by events"; };
    source.onmessage = (event) => show(JSON.parse(event.data));
    return;
  }
  const scheme = location.protocol === "https:" ? "wss://" : "ws://";
  socket = new WebSocket(scheme + location.host + "/socket/" + room + "?after=" + last);
  socket.onopen = () => { element("state").textContent = "connected"; };
  socket.onmessage = (event) => show(JSON.parse(event.data));
  socket.onclose = () => {
    element("state").textContent = "connecting again";
    setTimeout(begin, 1000);
  };
}

element("form").onsubmit = (event) => {
  event.preventDefault();
  const message = { name: element("name").value, text: element("text").value };
  element("text").value = "";
  if (socket !== null && socket.readyState === WebSocket.OPEN)
    socket.send(JSON.stringify(message));
  else
    fetch("/say/" + room, { method: "POST", body: new URLSearchParams(message) });
};
window.onhashchange = () => location.reload();
begin();
</script>
</body>
</html>
"""


@coroutine
def main(host: str, port: int) -> Coroutine:
    """Serve until a signal comes."""
    loop = IOLoop.current()
    stop = Signal()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    chat = Chat()
    server = HTTPServer(chat.router, on_request_end=log_access)
    server.listen(port, host)
    print("http://{}:{}/".format(*server.sockets[0].getsockname()[:2]), flush=True)
    yield stop.wait()
    chat.end()
    yield server.shutdown(GRACE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat over WebSockets and events.")
    parser.add_argument("--host", default="127.0.0.1", help='address ("" for all)')
    parser.add_argument("--port", type=int, default=8080, help="0: any free one (default 8080)")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(main, given.host, given.port)
