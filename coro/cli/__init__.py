"""The command ``coro``.

From below: ``pipes``, ``files``, ``display``, ``exchange``, ``fetching``,
``serving``, ``command``.
"""

from __future__ import annotations

from coro.cli.command import cli

__all__ = ["cli"]
