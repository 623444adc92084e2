"""``examples/chat.py``, used as people use it: in a browser, by WebSocket, by events, by curl."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator

import httpx
import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from tests.support.browser import Browser, Page, chromium
from tests.test_examples import serving


@pytest.fixture
def url() -> Iterator[str]:
    with serving("chat.py") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def socket(url: str, room: str = "lobby") -> websockets.sync.client.ClientConnection:
    return websockets.sync.client.connect(f"ws{url.removeprefix('http')}socket/{room}")


def post(url: str, text: str, name: str = "form", room: str = "lobby") -> int:
    form = urllib.parse.urlencode({"name": name, "text": text}).encode()
    with urllib.request.urlopen(f"{url}say/{room}", form, timeout=20) as response:
        status: int = response.status
        return status


def said(page: Page) -> list[str]:
    """The lines that the page shows."""
    script = "JSON.stringify([...document.querySelectorAll('#said li')].map(e => e.innerText))"
    lines: list[str] = json.loads(page.run(script))
    return lines


class TestByPrograms:
    def test_all_hear_what_one_says(self, url: str) -> None:
        with socket(url) as one, socket(url) as two, socket(url, "other") as other:
            one.send(json.dumps({"name": "Ann", "text": "hello"}))
            for each in (one, two):
                assert json.loads(each.recv(20)) == {"number": 1, "name": "Ann", "text": "hello"}
            assert post(url, "from a form") == 204
            assert json.loads(two.recv(20))["text"] == "from a form"
            post(url, "elsewhere", room="other")
            assert json.loads(other.recv(20))["text"] == "elsewhere"

    def test_who_comes_later_is_told_what_was_said(self, url: str) -> None:
        for number in range(60):
            post(url, f"{number}")
        with socket(url) as late:
            assert [json.loads(late.recv(20))["text"] for _ in range(50)] == [
                f"{number}" for number in range(10, 60)
            ]
        with socket(url, "lobby?after=58") as again:
            assert json.loads(again.recv(20))["number"] == 59

    def test_events(self, url: str) -> None:
        post(url, "first")
        with httpx.stream("GET", f"{url}events/lobby", timeout=20) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            lines = response.iter_lines()
            assert next(lines) == "id: 1"
            assert json.loads(next(lines).removeprefix("data: "))["text"] == "first"
            post(url, "second")
            assert [next(lines) for _ in range(2)] == ["", "id: 2"]
        headers = {"Last-Event-ID": "1"}
        with httpx.stream("GET", f"{url}events/lobby", headers=headers, timeout=20) as response:
            assert next(response.iter_lines()) == "id: 2"
        # What is no number, or none that ever was, is from the beginning.
        headers = {"Last-Event-ID": "9" * 5000}
        with httpx.stream("GET", f"{url}events/lobby", headers=headers, timeout=20) as response:
            assert next(response.iter_lines()) == "id: 1"

    @pytest.mark.parametrize(
        ("message", "code"),
        [("no JSON", "1003"), ("[" * 50_000, "1003"), ("{}", "1003"), ("x" * 70_000, "1009")],
    )
    def test_what_is_no_message(self, url: str, message: str, code: str) -> None:
        with socket(url) as one:
            one.send(message)
            with pytest.raises(ConnectionClosed, match=code):
                one.recv(20)
        answer = httpx.post(f"{url}say/lobby", data={"name": "x", "text": " "})
        assert answer.status_code == 400

    def test_the_end(self, url: str) -> None:
        """Members are sent away when the chat stops; the fixture sees how it ends."""
        with socket(url) as one:
            one.send(json.dumps({"name": "Ann", "text": "hello"}))
            one.recv(20)


class TestInABrowser:
    def test_two_windows(self, url: str, browser: Browser) -> None:
        one, two = browser.open(f"{url}#tea"), browser.open(f"{url}#tea")
        for page in (one, two):
            page.wait("document.getElementById('state').innerText === 'connected'")
        one.run(
            "document.getElementById('name').value = 'Ann';"
            "document.getElementById('text').value = '<b onclick=alert(1)>hello</b> & more';"
            "document.querySelector('button').click()"
        )
        for page in (one, two):
            page.wait("document.querySelectorAll('#said li').length === 1")
            assert said(page) == ["Ann<b onclick=alert(1)>hello</b> & more"]
        with socket(url, "tea") as program:
            program.recv(20)
            program.send(json.dumps({"name": "program", "text": "at your service"}))
        two.wait("document.getElementById('said').innerText.includes('at your service')")

    def test_by_events(self, url: str, browser: Browser) -> None:
        page = browser.open(f"{url}?events")
        page.wait("document.getElementById('state').innerText === 'connected by events'")
        post(url, "to a listener")
        page.wait("document.getElementById('said').innerText.includes('to a listener')")
        page.run(
            "document.getElementById('text').value = 'by a form';"
            "document.querySelector('button').click()"
        )
        page.wait("document.getElementById('said').innerText.includes('by a form')")
