"""A jar for cookies: ``fetch(url, cookie_jar=jar)``; on the standard library's ``http.cookiejar``.

Matching, expiry and files are the standard library's. It is older than RFC 6265, though, and
believes what servers have long ceased to say, so this room stands before it:

- A ``Set-Cookie`` is read here and handed on with only what RFC 6265 section 5.2 knows, the last of
  each attribute; what would make the library's parser stumble is left out.
- A cookie without ``Domain`` goes to its very host alone. With it, the host must stand below that
  domain; an address stands below nothing, and nobody may set a cookie for a public suffix like
  ``co.uk``. These come from the Public Suffix List if there is a library that has it
  (``pip install 'coro-loop[cookies]'``), else from a rule of thumb.
- The library lets any server delete any cookie. Here a server deletes only what it may set.
- What was set over TLS as ``Secure``, plain HTTP neither sees nor replaces (RFC 6265bis).
- Sizes and numbers have limits; beyond them, the cookies that were there first go.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy, LoadError, MozillaCookieJar
from ipaddress import ip_address
from typing import Any, TypeVar

from coro.http.urls import Target, parse

try:
    from publicsuffixlist import PublicSuffixList
except ImportError:
    PublicSuffixList = None  # type: ignore[assignment,misc]

__all__ = ["CookieJar", "LoadError"]

MAX_COOKIE_BYTES = 4096
MAX_COOKIES_PER_DOMAIN = 180
MAX_COOKIES = 3000
MAX_COOKIE_HEADER = 8190
"""Bytes of a ``Cookie`` field; servers refuse longer ones."""

T = TypeVar("T")

_FIT = re.compile(r"[\x20-\x7e\x80-\xff]+")
# What the standard library reads without stumbling.
_ATTRIBUTES = {
    "path": re.compile(r"/[\x20-\x7e\x80-\xff]*"),
    "expires": re.compile(r"(?!.*[0-9]{5})[A-Za-z0-9 ,:+\-]{1,50}"),
    "max-age": re.compile(r"-?[0-9]{1,10}"),
}


class CookieJar(MozillaCookieJar):
    """Cookies of many servers: what they set, each is sent again.

    It iterates over ``http.cookiejar.Cookie`` objects. Its files are those of ``curl`` and other
    tools ("Netscape format"): ``load(file)``, ``save(file)``.

    A request that has a ``Cookie`` field of its own gets none from the jar.
    """

    def __init__(self) -> None:
        super().__init__(
            policy=DefaultCookiePolicy(
                strict_domain=PublicSuffixList is None,
                strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain,
            )
        )

    def take(self, url: str | Target, lines: Iterable[str]) -> None:
        """Take in what a server set.

        Arguments:
            url: which URL the response came from.
            lines: the values of its ``Set-Cookie`` fields.
        """
        target = parse(url) if isinstance(url, str) else url
        fit = [clean for clean in (self._clean(line, target) for line in lines) if clean]
        if fit:
            exchange = _Exchange(target, fit)
            self.extract_cookies(exchange, exchange)  # type: ignore[arg-type]
            self._limit()

    def header(self, url: str | Target) -> str | None:
        """Return the value of the ``Cookie`` field for a request, or None if there is none."""
        exchange = _Exchange(parse(url) if isinstance(url, str) else url)
        self.add_cookie_header(exchange)  # type: ignore[arg-type]
        value = exchange.cookie
        while value is not None and len(value) > MAX_COOKIE_HEADER:
            # Those with the longest paths, which concern the URL most, come first.
            value = value.rpartition("; ")[0] or None
        return value

    def _clean(self, line: str, target: Target) -> str | None:
        """Reduce a ``Set-Cookie`` to what is to be believed; None if the cookie is refused."""
        pair, *attributes = line.split(";")
        name, separator, value = pair.partition("=")
        name, value = name.strip(" \t"), value.strip(" \t")
        if not separator or not name or not _is_fit(name, value):
            return None
        kept: dict[str, str] = {}
        for attribute in attributes:
            key, _, text = attribute.partition("=")
            key, text = key.strip(" \t").lower(), text.strip(" \t")
            if key in ("secure", "httponly"):
                kept[key] = key
            elif key == "domain" and text:
                kept[key] = text.lower().lstrip(".")
            elif key in _ATTRIBUTES and _ATTRIBUTES[key].fullmatch(text):
                kept[key] = f"{key}={text}"
        secure = "secure" in kept
        if name.startswith(("__Secure-", "__Host-")) and not secure:
            return None
        if name.startswith("__Host-") and ("domain" in kept or kept.get("path") != "path=/"):
            return None
        if target.scheme != "https" and (secure or self._has_secure(name, target.host)):
            return None
        domain = kept.pop("domain", None)
        if domain is not None and _may_share(target.host, domain):
            if not _is_below(target.host, domain):
                return None
            kept["domain"] = f"domain={domain}"
        elif domain is not None and domain != target.host:
            return None
        return "; ".join([f"{name}={value}", *kept.values()])

    def _has_secure(self, name: str, host: str) -> bool:
        """Whether there is a cookie of this name for the host that plain HTTP may not touch."""
        # The standard library's name for a host without a dot.
        hosts = (host, f"{host}.local")
        return any(
            cookie.secure
            and cookie.name == name
            and any(_is_below(each, cookie.domain.lstrip(".")) for each in hosts)
            for cookie in self
        )

    def _limit(self) -> None:
        """Remove what is too much: of a domain, and of all."""
        cookies = list(self)
        counts = Counter(cookie.domain for cookie in cookies)
        total = len(cookies)
        for cookie in cookies:
            if counts[cookie.domain] > MAX_COOKIES_PER_DOMAIN or total > MAX_COOKIES:
                counts[cookie.domain] -= 1
                total -= 1
                self.clear(cookie.domain, cookie.path, cookie.name)

    # --- files -----------------------------------------------------------------------------

    def load(
        self,
        filename: str | os.PathLike[str] | None = None,
        ignore_discard: bool = True,
        ignore_expires: bool = False,
    ) -> None:
        """Add the cookies of a file, but for those that have expired or cannot be sent.

        Arguments:
            ignore_discard: also those that were to last for a session.
            ignore_expires: also those that have expired.
        Raises:
            LoadError: it is no such file; an OSError, as where it cannot be read.
        """
        try:
            with warnings.catch_warnings():
                # It takes a file that is no such file for a fault of its own, too.
                warnings.simplefilter("ignore")
                super().load(filename, ignore_discard, ignore_expires)  # type: ignore[arg-type]
        except UnicodeError as error:
            raise LoadError(f"{filename} is no file of cookies: {error}") from error
        for cookie in list(self):
            if not _is_fit(cookie.name, cookie.value):
                self.clear(cookie.domain, cookie.path, cookie.name)

    def save(
        self,
        filename: str | os.PathLike[str] | None = None,
        ignore_discard: bool = True,
        ignore_expires: bool = False,
    ) -> None:
        """Write the cookies to a file, which nobody else may read, and which is never half written.

        Arguments:
            ignore_discard: also those that were to last for a session.
            ignore_expires: also those that have expired.
        Raises:
            OSError: it cannot be written.
        """
        if filename is None:
            filename = self.filename
        if filename is None:
            raise ValueError("save the cookies to which file?")
        path = os.path.realpath(filename)
        descriptor, temporary = tempfile.mkstemp(prefix=".cookies-", dir=os.path.dirname(path))
        os.close(descriptor)
        try:
            super().save(temporary, ignore_discard, ignore_expires)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _is_fit(name: str, value: str | None) -> bool:
    """Whether it can be sent: short enough, and without what would end a field or a cookie."""
    text = f"{name}={value or ''}"
    return len(text) <= MAX_COOKIE_BYTES and ";" not in text and _FIT.fullmatch(text) is not None


class _Exchange:
    """A request and its response, as the standard library wants to see both."""

    unverifiable = False

    def __init__(self, target: Target, lines: list[str] | None = None) -> None:
        self.type = target.scheme
        self.host = target.authority
        self.origin_req_host = target.host
        self.cookie: str | None = None
        self._url = f"{target.scheme}://{target.authority}{target.path}"
        self._lines = lines

    def get_full_url(self) -> str:
        return self._url

    def has_header(self, _name: str) -> bool:
        return False

    def add_unredirected_header(self, name: str, value: str) -> None:
        if name == "Cookie":
            self.cookie = value

    def info(self) -> _Exchange:
        return self

    def get_all(self, name: str, default: T) -> list[str] | T:
        lines = self._lines if name == "Set-Cookie" else None
        return default if lines is None else lines


def _is_below(host: str, domain: str) -> bool:
    """Whether a host is a domain or stands below it."""
    return host == domain or host.endswith(f".{domain}")


def _may_share(host: str, domain: str) -> bool:
    """Whether the hosts below a domain are one party's, and this may be one of them."""
    try:
        ip_address(host)
    except ValueError:
        known = PublicSuffixList is not None
        return "." in domain and not (known and _suffixes().is_public(domain))
    return False


@lru_cache(1)
def _suffixes() -> Any:
    """Read the list, when the first jar needs it."""
    return PublicSuffixList()
