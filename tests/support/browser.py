"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import websockets.sync.client

from tests.support.needs import needs_command

LIMIT = 30.0
"""Seconds that a step may take."""


class BrowserError(Exception):
    """A method failed."""


class Browser:
    """A running browser: ``open(url)`` gives a page."""

    def __init__(self, socket: websockets.sync.client.ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method; return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(LIMIT))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> Page:
        """Open a page."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        return Page(self, attached["sessionId"])


class Page:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page, a promise to its end; return its value."""
        got = self._browser.call(
            "Runtime.evaluate",
            self._session,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression holds in the page."""
        script = """new Promise((resolve, reject) => {
            const end = Date.now() + %d;
            const look = () => {
                let holds = false;
                try { holds = (%s); } catch (error) {}
                if (holds) resolve(true);
                else if (Date.now() > end) reject(new Error(document.body.innerText));
                else setTimeout(look, 10);
            };
            look();
        })"""
        while True:
            try:
                assert self.run(script % (LIMIT * 1000 - 5000, condition))
                return
            except BrowserError as error:
                # What was open gave way to what is being opened.
                if "context was destroyed" not in str(error):
                    raise


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser for the length of the block, or skip the test."""
    command = needs_command("chromium", "apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="coro-browser-") as home:
        process = subprocess.Popen(
            [
                *("timeout", "--kill-after=5", "120", command, "--headless=new", "--no-sandbox"),
                *("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--remote-debugging-port=0"),
                *("--disable-background-timer-throttling", f"--user-data-dir={home}/profile"),
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HOME": home},
        )
        with process:
            try:
                assert process.stderr is not None
                said = ""
                for line in process.stderr:
                    said += line
                    if found := re.search(r"DevTools listening on (ws://\S+)", line):
                        break
                else:
                    raise RuntimeError(f"chromium did not start: {said[-2000:]}")
                with websockets.sync.client.connect(found[1], max_size=None) as socket:
                    yield Browser(socket)
            finally:
                process.terminate()
                process.communicate()
