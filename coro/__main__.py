"""``python -m coro``, and the script ``coro``: the command, or one line on how to get it."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command; without the packages that it needs, say which they are."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        # Only here: the library must not need what the command needs.
        from coro.cli import cli  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        if missing.name not in {"click", "rich"}:
            raise
        sys.stderr.write(f"coro: the command needs {missing.name}: pip install 'coro-loop[cli]'\n")
        sys.exit(2)
    cli(prog_name="coro")
    raise AssertionError("click ends the process")


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    """End on Ctrl-C without a traceback, also while the command is only beginning."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
