"""Conditional requests and ranges (RFC 9110 sections 13 and 14), as pure functions.

A request may name the version that it has, or wants: by entity tags, or by dates. And it may ask
for parts of what it gets. What makes no sense in these fields is as if it were not there: so the
RFC wants it, and the whole is always a right answer.
"""

from __future__ import annotations

import re
from calendar import timegm
from email.utils import parsedate_tz
from itertools import pairwise

from coro.http.headers import HTTPHeaders

__all__ = ["MAX_RANGES", "Ranges", "check_conditions", "parse_date", "select_ranges", "weaken"]

# So many parts of one representation may be asked for at once.
MAX_RANGES = 16

# The first and the last position of each part, both included.
Ranges = list[tuple[int, int]]

_TAGS = re.compile(r'(?:\s*,)*\s*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")\s*(?=,|$)')
_RANGE = re.compile(r"[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*")


def parse_date(value: str | None) -> int | None:
    """Return seconds since 1970 for an HTTP date (RFC 9110 section 5.6.7); None if it is none."""
    parts = parsedate_tz(value) if value else None
    if parts is None:
        return None
    try:
        return timegm((*parts[:6], 0, 0, 0)) - (parts[9] or 0)
    except (ValueError, OverflowError):
        return None


def weaken(etag: str) -> str:
    """Return an entity tag as a weak one: of a body that means the same (section 8.8.1)."""
    return etag if etag.startswith("W/") else "W/" + etag


def _names(value: str, etag: str | None, *, strong: bool) -> bool:
    """Whether a list of entity tags names the present one (section 8.8.3.2)."""
    if value.strip() == "*":
        return True
    if etag is None or (strong and etag.startswith("W/")):
        return False
    tags = _tags(value)
    return etag in tags if strong else weaken(etag) in map(weaken, tags)


def _tags(value: str) -> list[str]:
    """Read a list of entity tags, up to what is none."""
    tags, position = [], 0
    while found := _TAGS.match(value, position):
        tags.append(found[1])
        position = found.end()
    return tags


def check_conditions(
    method: str, headers: HTTPHeaders, etag: str | None, modified: float | None
) -> int | None:
    """Evaluate the conditions of a request, in their order (RFC 9110 section 13.2.2).

    Arguments:
        method: as in "GET".
        headers: the request's.
        etag: entity tag of what would be answered with, in its quotes; None: it has none.
        modified: when it was changed last, in seconds since 1970; None: nobody knows.
    Returns:
        The status to answer with: 304 or 412; None: do as asked.
    """
    reads = method in ("GET", "HEAD")
    if (wanted := headers.get("If-Match")) is not None:
        if not _names(wanted, etag, strong=True):
            return 412
    elif modified is not None:
        until = parse_date(headers.get("If-Unmodified-Since"))
        if until is not None and int(modified) > until:
            return 412
    if (known := headers.get("If-None-Match")) is not None:
        if _names(known, etag, strong=False):
            return 304 if reads else 412
    elif modified is not None and reads:
        since = parse_date(headers.get("If-Modified-Since"))
        if since is not None and int(modified) <= since:
            return 304
    return None


def select_ranges(
    method: str, headers: HTTPHeaders, size: int, etag: str | None, modified: float | None
) -> Ranges | None:
    """Return the parts that a request asks for (RFC 9110 section 14.2).

    Parts that overlap, or more than ``MAX_RANGES``, are no honest request: it gets the whole.

    Arguments:
        method, headers: the request's.
        size: of the whole, in bytes.
        etag: its entity tag, if it has one; for ``If-Range`` only a strong one counts.
        modified: when it was changed last, if that is known for sure (section 8.8.2.2).
    Returns:
        The parts in the order asked for; None: the whole; an empty list: none of them is there,
        which is answered with 416.
    """
    value = headers.get("Range")
    if method != "GET" or value is None or not size:
        return None
    validator = headers.get("If-Range")
    if validator is not None and not _is_current(validator.strip(), etag, modified):
        return None
    unit, _, specs = value.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    ranges: Ranges = []
    asked = specs.split(",", MAX_RANGES)
    if len(asked) > MAX_RANGES:
        return None
    for spec in asked:
        match = _RANGE.fullmatch(spec)
        if match is None or not (match[1] or match[2]):
            return None
        if not match[1]:
            first, last = max(0, size - int(match[2])), size - 1
        else:
            first, last = int(match[1]), int(match[2] or size - 1)
            if match[2] and last < first:
                return None
        if first < size:
            ranges.append((first, min(last, size - 1)))
    ordered = sorted(ranges)
    if any(after[0] <= before[1] for before, after in pairwise(ordered)):
        return None
    return ranges


def _is_current(validator: str, etag: str | None, modified: float | None) -> bool:
    """Whether ``If-Range`` names the present version (section 13.1.5)."""
    if validator.startswith(('"', "W/")):
        return validator == etag and not validator.startswith("W/")
    date = parse_date(validator)
    return modified is not None and date == int(modified)
