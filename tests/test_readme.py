"""The README's programs run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import RawServerFactory
from tests.support.raw_server import answer

README = (Path(__file__).parent.parent / "README.md").read_text()
FIRST, SECOND, *_ = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n<title>Epoll, it says</title>"


def run(program: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout


def test_the_first_program_prints_what_is_shown() -> None:
    shown = re.search(r"It prints\n\n```text\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert run(FIRST) == shown[1]


def test_the_second_program_fetches(raw_server: RawServerFactory) -> None:
    server = raw_server(answer(PAGE))
    printed = run(SECOND, server.url("/one"), server.url("/two"))
    assert printed.count("Epoll, it says") == 2
