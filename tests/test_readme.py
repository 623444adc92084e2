"""The README's programs run as they stand there."""

import re
import urllib.request
from pathlib import Path

from tests.conftest import RawServerFactory
from tests.support.documents import programs, run
from tests.support.raw_server import answer
from tests.support.serving import coro_serve

FIRST, SECOND, THIRD = programs("README.md")
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n<title>Epoll, it says</title>"


def test_the_first_program_prints_what_is_shown() -> None:
    assert run(FIRST.source) == FIRST.printed


def test_the_second_program_fetches(raw_server: RawServerFactory) -> None:
    server = raw_server(answer(PAGE))
    printed = run(SECOND.source, server.url("/one"), server.url("/two"))
    assert printed.count("Epoll, it says") == 2


def test_the_third_program_is_a_service(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(THIRD.source)
    with (
        coro_serve("app:router", "--port", 0, "--workers", 2, cwd=tmp_path) as served,
        urllib.request.urlopen(f"{served.url}/hello/Ada") as response,
    ):
        assert response.read() == b"Hello, Ada!\n"


def test_each_example_is_listed() -> None:
    root = Path(__file__).parent.parent
    listed = re.findall(
        r"^- \[`\w+\.py`\]\(([^)]+)\)", (root / "README.md").read_text(), re.MULTILINE
    )
    # ``make demo`` is a target, and parts of other examples are not begun with.
    parts = {"demo.py", "demo_service.py", "crawler_frontier.py"}
    there = {path.name for path in (root / "examples").glob("*.py")} - parts
    assert sorted(listed) == sorted(f"examples/{name}" for name in there)
