"""What a person sees: a progress bar where one watches, and one line for each failure."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

import click

from coro.cli.pipes import Source
from coro.loop import IOLoop

__all__ = ["BarDisplay", "Display", "Tally", "one_line", "same_terminal"]


@dataclass
class Tally:
    """What was done so far."""

    done: int = 0
    failed: int = 0
    size: int = 0
    # Bytes that the present response announced, if there is only one; 0: unknown once unpacked.
    expected: int | None = None
    # Bytes of it that were there before.
    before: int = 0


class Display:
    """For a file or a pipe: failures, and nothing else."""

    def tell(self, text: str) -> None:
        """Write a line that is for people."""
        # Nobody may listen any longer; the exit status will tell.
        with contextlib.suppress(OSError):
            click.echo(text, err=True)

    def begin(self) -> None:
        """The work begins."""

    def paint(self) -> None:
        """Show how far it has come."""

    def end(self) -> None:
        """The work has ended."""


class BarDisplay(Display):
    """For a terminal: a bar, and lines above it."""

    def __init__(self, tally: Tally, source: Source) -> None:
        # Only here: it takes as long to import as all the rest, and scripts have no terminal.
        from rich.console import Console  # noqa: PLC0415
        from rich.filesize import decimal  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._tally = tally
        self._source = source
        self._decimal = decimal
        self._lines: list[str] = []
        self._started = 0.0
        self._console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(complete_style="cyan", finished_style="green", pulse_style="cyan"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            # A thread of its own would compete with the loop.
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None)

    def tell(self, text: str) -> None:
        """Write a line above the bar, when that is painted next."""
        self._lines.append(text)

    def begin(self) -> None:
        """Show the bar."""
        self._started = IOLoop.current().time()
        self._bar.start()

    def end(self) -> None:
        """Paint it for the last time; it stays."""
        self.paint()
        self._bar.stop()

    def paint(self) -> None:
        """Write the lines that were told, and the bar below them."""
        lines, self._lines = self._lines, []
        if lines:
            self._console.print(
                "\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True
            )
        tally, total = self._tally, self._source.total
        elapsed = IOLoop.current().time() - self._started
        rate = tally.size / elapsed if elapsed > 0 else 0.0
        by_bytes = total == 1 and not tally.done and bool(tally.expected)
        expected = tally.before + (tally.expected or 0)
        size = tally.size + (tally.before if by_bytes else 0)
        parts = [
            f"{tally.done}/{'?' if total is None else total}",
            f"{tally.failed} failed" if tally.failed else "",
            self._decimal(size),
            f"of {self._decimal(expected)}" if by_bytes else "",
            f"{self._decimal(int(rate))}/s",
        ]
        self._bar.update(
            self._task,
            completed=size if by_bytes else tally.done,
            total=expected if by_bytes else total,
            description=" ".join(filter(None, parts)),
            refresh=True,
        )


def one_line(text: str) -> str:
    """Make text from elsewhere fit for a line on a terminal: no control characters, no secrets."""
    text = re.sub(r"(?<=//)[^/?#\s]*@", "***@", text)
    if len(text) > 500:
        text = f"{text[:500]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def same_terminal() -> bool:
    """Whether standard output and standard error are one terminal."""
    try:
        return os.ttyname(1) == os.ttyname(2)
    except OSError:
        return False
