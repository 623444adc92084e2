"""The programs that stand in a document, and what it says that they print."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_PROGRAM = re.compile(
    r"^```python\n(?P<source>.*?)^```\n"
    r"(?:\s*(?:It prints\n\s*)?^```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Program:
    """A block of Python in a document.

    Attributes:
        line: where it begins in the document.
        source: the program.
        printed: what it prints, as the document shows it; None where it shows nothing.
    """

    line: int
    source: str
    printed: str | None


def programs(path: str) -> list[Program]:
    """Return the Python blocks of a document (a path from the repository's root), in order."""
    text = (ROOT / path).read_text()
    return [
        Program(text.count("\n", 0, found.start()) + 2, found["source"], found["printed"])
        for found in _PROGRAM.finditer(text)
    ]


def blocks(path: str, language: str) -> list[str]:
    """Return the blocks of another language in a document, in order."""
    text = (ROOT / path).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```\n", text, re.MULTILINE | re.DOTALL)


def run(program: str, *arguments: str) -> str:
    """Run a program as a user would, with warnings as errors; return what it printed."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    return ran.stdout
