"""Credentials for servers and proxies: Basic, Digest, Bearer, and the ``.netrc`` file; without I/O.

Basic (RFC 7617) and Bearer (RFC 6750) are one field, sent at once. Digest (RFC 7616) needs a nonce
that the server gives in a challenge: the first request is refused (401, or 407 by a proxy), and is
sent once more with the answer. ``DigestMemory`` keeps what a server gave, so that further requests
bring their answer along: they count how often a nonce was used, and take up the next one where the
server announces it.

Credentials are checked before anything is sent: a control character in them is refused here, also
where it would travel encoded, since whoever decodes it may not expect it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias
from unicodedata import normalize
from urllib.parse import quote

__all__ = [
    "Auth",
    "Basic",
    "Bearer",
    "Challenge",
    "Digest",
    "DigestMemory",
    "DigestSession",
    "auth_for_mode",
    "netrc_auth",
    "parse_challenges",
]

MAX_SESSIONS = 256
"""How many servers' nonces a ``DigestMemory`` keeps."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


def _settle_credentials(auth: Basic | Digest) -> None:
    """Normalize them, and refuse what a peer might take for a line's end or a string's.

    The two encodings of one letter are one password (RFC 7617 section 2.1, RFC 7616 section 4).
    """
    for what in ("username", "password"):
        text = normalize("NFC", getattr(auth, what))
        if _CONTROLS.search(text):
            raise ValueError(f"the {what} has a control character (CR, LF or NUL, for instance)")
        object.__setattr__(auth, what, text)


@dataclass(frozen=True, slots=True)
class Basic:
    """Username and password as they are, encoded as UTF-8 (RFC 7617): fit for TLS only.

    Raises:
        ValueError: a colon in the username, or a control character in either.
    """

    username: str
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _settle_credentials(self)
        if ":" in self.username:
            raise ValueError("a username with a colon cannot be sent (RFC 7617 section 2)")

    def authorization(self) -> str:
        """Return the value of the ``Authorization`` field."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token (RFC 6750 section 2.1): whoever has it has access.

    Raises:
        ValueError: a character that no token has.
    """

    token: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _TOKEN68.fullmatch(self.token):
            raise ValueError(
                "a bearer token consists of letters, digits and -._~+/ (RFC 6750 section 2.1)"
            )

    def authorization(self) -> str:
        """Return the value of the ``Authorization`` field."""
        return f"Bearer {self.token}"


@dataclass(frozen=True, slots=True)
class Digest:
    """Username and password that are proved instead of sent (RFC 7616).

    Raises:
        ValueError: a control character in either.
    """

    username: str
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _settle_credentials(self)


Auth: TypeAlias = Basic | Bearer | Digest


def auth_for_mode(mode: str | None, username: str, password: str | None) -> Basic | Digest:
    """Return what the lineage's ``auth_mode``, "basic" or "digest", means.

    Raises:
        ValueError: another mode, or credentials that cannot be sent.
    """
    if mode is None or mode == "basic":
        return Basic(username, password or "")
    if mode == "digest":
        return Digest(username, password or "")
    raise ValueError(f"unsupported auth_mode {mode}: known are 'basic' and 'digest'")


# --- challenges ----------------------------------------------------------------------------


class Challenge(NamedTuple):
    """What a server wants (RFC 9110 section 11.3).

    Attributes:
        scheme: in lower case, as in "digest".
        parameters: by their names in lower case; of a repeated one, the first.
    """

    scheme: str
    parameters: dict[str, str]


_TCHARS = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# One element of the list, of which each is tried where the one before it ended.
_PARAMETER = re.compile(rf'({_TCHARS})[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|({_TCHARS}))')
_LONE_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9\-._~+/]++=*+(?=[ \t]*+(?:,|\Z))")
_SCHEME = re.compile(rf"({_TCHARS})(?=[ \t]|,|\Z)")
_SEPARATOR = re.compile(r"[ \t,]*+")
_TO_COMMA = re.compile(r"[^,]*+")


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Read the values of ``WWW-Authenticate``, ``Proxy-Authenticate`` (RFC 9110 section 11.6.1).

    Challenges and their parameters are both separated by commas, so that only what follows a name
    tells which it is. What is malformed is left out, up to the next comma.
    """
    challenges: list[Challenge] = []
    for value in values:
        current: Challenge | None = None
        at = _SEPARATOR.match(value).end()  # type: ignore[union-attr]
        while at < len(value):
            if found := _PARAMETER.match(value, at):
                name, quoted, token = found.groups()
                if current is not None:
                    text = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                    current.parameters.setdefault(name.lower(), text)
            elif found := _SCHEME.match(value, at):
                current = Challenge(found[1].lower(), {})
                challenges.append(current)
                found = _LONE_TOKEN68.match(value, found.end()) or found
            else:
                found = _TO_COMMA.match(value, at)
            at = _SEPARATOR.match(value, found.end()).end()  # type: ignore[union-attr]
    return challenges


# --- Digest --------------------------------------------------------------------------------


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# By strength, the best one first.
_ALGORITHMS: dict[str, Callable[[bytes], str]] = {"SHA-256": _sha256, "MD5": _md5}


class DigestSession:
    """What one server has given to one user: a nonce, and how often it was used.

    Arguments:
        auth: the credentials.
    """

    __slots__ = ("_auth", "_cnonce", "_hash", "_nonce", "_parameters", "_session", "_used")

    def __init__(self, auth: Digest) -> None:
        self._auth = auth
        self._parameters: dict[str, str] = {}
        self._hash: Callable[[bytes], str] = _sha256
        self._session = False
        self._nonce = self._cnonce = ""
        self._used = 0

    def __repr__(self) -> str:
        return f"<DigestSession {self._auth.username} used={self._used}>"

    def take_challenge(self, challenges: Iterable[Challenge]) -> bool:
        """Take up the strongest challenge that can be answered; False if there is none."""
        best: Challenge | None = None
        rank = len(_ALGORITHMS)
        for challenge in challenges:
            parameters = challenge.parameters
            if challenge.scheme != "digest" or not {"nonce", "realm"} <= parameters.keys():
                continue
            name = parameters.get("algorithm", "MD5").upper().removesuffix("-SESS")
            qop = parameters.get("qop")
            if name in _ALGORITHMS and (qop is None or "auth" in _words(qop)):
                place = list(_ALGORITHMS).index(name)
                if place < rank:
                    best, rank = challenge, place
        if best is None:
            return False
        self._parameters = best.parameters
        algorithm = best.parameters.get("algorithm", "MD5").upper()
        self._hash = _ALGORITHMS[algorithm.removesuffix("-SESS")]
        self._session = algorithm.endswith("-SESS")
        self._begin(best.parameters["nonce"])
        return True

    def take_info(self, value: str) -> None:
        """Take up the nonce for the next request, if ``Authentication-Info`` has one."""
        for name, quoted, token in _PARAMETER.findall(value):
            if name.lower() == "nextnonce" and self._nonce:
                self._begin(re.sub(r"\\(.)", r"\1", quoted) or token)

    def _begin(self, nonce: str) -> None:
        self._nonce = nonce
        self._used = 0
        self._cnonce = secrets.token_hex(16)

    def authorization(self, method: str, uri: str) -> str | None:
        """Return the field's value for a request; None as long as there was no challenge.

        Arguments:
            method: the request's.
            uri: its target, as the request line says it.
        """
        if not self._nonce:
            return None
        given = self._parameters
        realm, nonce, cnonce = given["realm"], self._nonce, self._cnonce
        self._used += 1
        count = f"{self._used:08x}"
        raw_nonce = nonce.encode("latin-1")  # The bytes that came, whatever their encoding.
        secret = self._digest(self._auth.username, realm.encode("latin-1"), self._auth.password)
        if self._session:
            secret = self._digest(secret, raw_nonce, cnonce)
        request = self._digest(method, uri)
        # Without a qop, the form of RFC 2069, which old servers still ask for.
        middle = (raw_nonce, count, cnonce, "auth") if "qop" in given else (raw_nonce,)
        fields = [
            self._name_field(realm),
            f"realm={_quoted(realm)}",
            f"nonce={_quoted(nonce)}",
            f"uri={_quoted(uri)}",
            f'response="{self._digest(secret, *middle, request)}"',
        ]
        if "algorithm" in given:
            fields.append(f"algorithm={given['algorithm']}")
        if "opaque" in given:
            fields.append(f"opaque={_quoted(given['opaque'])}")
        if "qop" in given:
            fields += ["qop=auth", f"nc={count}"]
        if "qop" in given or self._session:
            fields.append(f'cnonce="{cnonce}"')
        if self._hashes_name():
            fields.append("userhash=true")
        return "Digest " + ", ".join(fields)

    def _digest(self, *parts: str | bytes) -> str:
        """Hash parts, joined by colons."""
        return self._hash(
            b":".join(part.encode() if isinstance(part, str) else part for part in parts)
        )

    def _hashes_name(self) -> bool:
        return self._parameters.get("userhash", "").lower() == "true"

    def _name_field(self, realm: str) -> str:
        """Say who asks (RFC 7616 sections 3.4 and 3.4.4)."""
        name = self._auth.username
        if self._hashes_name():
            return f'username="{self._digest(name, realm.encode("latin-1"))}"'
        if name.isascii():
            return f"username={_quoted(name)}"
        return f"username*=UTF-8''{quote(name, safe='')}"


def _words(text: str) -> list[str]:
    return [word.strip(" \t").lower() for word in text.split(",")]


def _quoted(text: str) -> str:
    """Write a quoted string (RFC 9110 section 5.6.4)."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


class DigestMemory:
    """The Digest sessions of a client; of those that were not used for longest, none is kept."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[Hashable, DigestSession] = OrderedDict()

    def session(self, place: Hashable, auth: Digest) -> DigestSession:
        """Return the session with a server: always the same one.

        Arguments:
            place: the server's origin, or the proxy.
            auth: the credentials for it.
        """
        key = (place, auth)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = DigestSession(auth)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return session


# --- netrc ---------------------------------------------------------------------------------


def netrc_auth(host: str, file: str | os.PathLike[str] | Literal[True]) -> Basic | None:
    """Return what a ``.netrc`` file has for a host; None if it has nothing.

    Arguments:
        host: the name alone.
        file: its path; True: ``.netrc`` in the home directory, if there is one.
    Raises:
        ValueError: the file cannot be read, or is malformed.
    """
    path = Path.home() / ".netrc" if file is True else Path(file)
    try:
        status = path.stat()
        entries = _read_netrc(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError as error:
        if file is True:
            return None
        raise ValueError(f"there is no netrc file {path}") from error
    except (OSError, NetrcParseError, UnicodeError) as error:
        raise ValueError(f"cannot read the netrc file: {error}") from error
    found = entries.authenticators(host)
    return None if found is None else Basic(found[0], found[2] or "")


@lru_cache(4)
def _read_netrc(path: Path, _changed: int, _size: int) -> netrc:
    """Read a file; again when it was changed."""
    return netrc(path)
