"""``python -m coro``, and the script ``coro``: the command, or one line on how to get it."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command; without the packages that it needs, say which they are."""
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


if __name__ == "__main__":
    main()
