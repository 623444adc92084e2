"""Credentials: what is refused, what challenges mean, what Digest answers."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coro.http import auth as room
from coro.http.auth import (
    Basic,
    Bearer,
    Challenge,
    Digest,
    DigestMemory,
    DigestSession,
    auth_for_mode,
    netrc_auth,
    parse_challenges,
)

# --- what is sent at once ------------------------------------------------------------------


def test_basic_is_utf8():
    value = Basic("tést", "päss:wörd").authorization()
    assert value.startswith("Basic ")
    assert base64.b64decode(value[6:]) == "tést:päss:wörd".encode()


@pytest.mark.parametrize("make", [Basic, Digest])
def test_the_two_encodings_of_a_letter_are_one(make):
    combined, precomposed = "e\u0301", "\xe9"
    assert make(combined, combined) == make(precomposed, precomposed)
    assert make(combined, combined).password == precomposed


@pytest.mark.parametrize("make", [Basic, Digest])
@pytest.mark.parametrize("bad", ["a\r\nX: y", "a\nb", "a\rb", "a\0", "\x85", "\x7f"])
def test_control_characters_are_refused(make, bad):
    with pytest.raises(ValueError, match="username has a control"):
        make(bad, "p")
    with pytest.raises(ValueError, match="password has a control"):
        make("u", bad)


def test_basic_refuses_a_colon_in_the_username_only():
    with pytest.raises(ValueError, match="colon"):
        Basic("a:b", "p")
    assert Basic("a", "b:c").authorization()
    assert Digest("a:b", "c").username == "a:b"


def test_secrets_stay_out_of_reprs():
    for each in (Basic("u", "geheim"), Digest("u", "geheim"), Bearer("geheim")):
        assert "geheim" not in repr(each)
    assert "geheim" not in repr(DigestSession(Digest("u", "geheim")))


def test_bearer():
    assert Bearer("abc.DEF-1_2~3+/==").authorization() == "Bearer abc.DEF-1_2~3+/=="
    for bad in ("", "a b", "a\r\nb", "ä", "a=b", '"'):
        with pytest.raises(ValueError, match="bearer token"):
            Bearer(bad)


def test_modes_of_the_lineage():
    assert auth_for_mode(None, "u", None) == Basic("u", "")
    assert auth_for_mode("basic", "u", "p") == Basic("u", "p")
    assert auth_for_mode("digest", "u", "p") == Digest("u", "p")
    with pytest.raises(ValueError, match="unsupported auth_mode ntlm"):
        auth_for_mode("ntlm", "u", "p")


# --- challenges ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["Basic"], [("basic", {})]),
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (['BASIC Realm = "x" , charset=UTF-8'], [("basic", {"realm": "x", "charset": "UTF-8"})]),
        (["Negotiate", "NTLM"], [("negotiate", {}), ("ntlm", {})]),
        (["Negotiate abc123/+==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (
            ['Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"'],
            [
                ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
                ("basic", {"realm": "simple"}),
            ],
        ),
        (['Digest nonce="a,b", realm=""'], [("digest", {"nonce": "a,b", "realm": ""})]),
        # Of a name that is repeated, the first counts.
        (['Digest nonce="1", nonce="2"'], [("digest", {"nonce": "1"})]),
        # What is malformed is left out.
        ([',, ,Basic realm="x",,,'], [("basic", {"realm": "x"})]),
        (['realm="nobody\'s"'], []),
        (['"stray", Basic realm=y'], [("basic", {"realm": "y"})]),
        (['Digest realm="open'], [("digest", {})]),
        (["Digest realm=, nonce=n"], [("digest", {"nonce": "n"})]),
    ],
)
def test_challenges(values, expected):
    assert parse_challenges(values) == [Challenge(*each) for each in expected]


@given(st.text(alphabet='Dd =",\\ab/+\t\x80', max_size=60))
def test_any_text_is_read_to_its_end(text):
    for challenge in parse_challenges([text]):
        assert challenge.scheme


@pytest.mark.parametrize(
    "text", ['Digest a="' + "\\" * 60000, "Digest " + "a=" * 30000, "a " * 30000]
)
def test_hostile_challenges_take_no_time(text):
    parse_challenges([text])


# --- Digest --------------------------------------------------------------------------------


def fields(value: str) -> dict[str, str]:
    assert value.startswith("Digest ")
    pairs = re.findall(r'([\w*]+)=(?:"((?:[^"\\]|\\.)*)"|([^,]*))', value[7:])
    return {name: quoted or token for name, quoted, token in pairs}


def answer(session: DigestSession, method: str, uri: str) -> str:
    value = session.authorization(method, uri)
    assert value is not None
    return value


def challenged(auth: Digest, *values: str) -> DigestSession:
    session = DigestSession(auth)
    assert session.take_challenge(parse_challenges(values))
    return session


def test_there_is_no_answer_without_a_challenge():
    assert DigestSession(Digest("u", "p")).authorization("GET", "/") is None


RFC_7616_CHALLENGE = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={},'
    ' nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",'
    ' opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_examples_of_rfc_7616(monkeypatch, algorithm, response):
    cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
    monkeypatch.setattr(secrets, "token_hex", lambda _size: cnonce)
    session = challenged(Digest("Mufasa", "Circle of Life"), RFC_7616_CHALLENGE.format(algorithm))
    value = answer(session, "GET", "/dir/index.html")
    assert fields(value) == {
        "username": "Mufasa",
        "realm": "http-auth@example.org",
        "uri": "/dir/index.html",
        "algorithm": algorithm,
        "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
        "nc": "00000001",
        "cnonce": cnonce,
        "qop": "auth",
        "response": response,
        "opaque": "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS",
    }


def test_the_example_of_rfc_2069_form():
    """Without qop: the value that RFC 2617's user and nonce give by hand."""
    session = challenged(Digest("Mufasa", "Circle Of Life"), 'Digest realm="r", nonce="n"')
    md5 = lambda text: hashlib.md5(text.encode()).hexdigest()  # noqa: E731
    got = fields(answer(session, "GET", "/x"))
    assert got["response"] == md5(f"{md5('Mufasa:r:Circle Of Life')}:n:{md5('GET:/x')}")
    assert not {"qop", "nc", "cnonce", "algorithm", "opaque"} & got.keys()


@pytest.mark.parametrize(("name", "function"), [("MD5", "md5"), ("SHA-256", "sha256")])
def test_sess_binds_the_secret_to_the_session(name, function):
    session = challenged(
        Digest("u", "p"), f'Digest realm="r", nonce="n", qop="auth", algorithm={name}-sess'
    )
    h = lambda text: hashlib.new(function, text.encode()).hexdigest()  # noqa: E731
    first, second = (fields(answer(session, "GET", uri)) for uri in ("/1", "/2"))
    assert first["cnonce"] == second["cnonce"]
    secret = h(f"{h('u:r:p')}:n:{first['cnonce']}")
    for got, count, uri in ((first, "00000001", "/1"), (second, "00000002", "/2")):
        assert got["nc"] == count
        expected = h(f"{secret}:n:{count}:{got['cnonce']}:auth:{h(f'GET:{uri}')}")
        assert got["response"] == expected


def test_the_strongest_algorithm_is_chosen():
    session = challenged(
        Digest("u", "p"),
        'Digest realm="r", nonce="weak", qop="auth"',
        'Basic realm="r"',
        'Digest realm="r", nonce="strong", qop="auth", algorithm=sha-256',
        'Digest realm="r", nonce="unknown", qop="auth", algorithm=SHA-512-256',
    )
    assert fields(answer(session, "GET", "/"))["nonce"] == "strong"


@pytest.mark.parametrize(
    "challenge",
    [
        'Basic realm="r"',
        'Digest realm="r"',
        'Digest nonce="n"',
        'Digest realm="r", nonce="n", qop="auth-int"',
        'Digest realm="r", nonce="n", algorithm=TOKEN',
    ],
)
def test_what_cannot_be_answered(challenge):
    session = DigestSession(Digest("u", "p"))
    assert not session.take_challenge(parse_challenges([challenge]))
    assert session.authorization("GET", "/") is None


def test_a_new_nonce_is_counted_anew():
    session = challenged(Digest("u", "p"), 'Digest realm="r", nonce="1", qop="auth"')
    assert fields(answer(session, "GET", "/"))["nc"] == "00000001"
    session.take_info('rspauth="x", nextnonce="2", nc=00000001')
    got = fields(answer(session, "GET", "/"))
    assert (got["nonce"], got["nc"]) == ("2", "00000001")
    assert session.take_challenge(
        parse_challenges(['Digest realm="r", nonce="3", qop="auth", stale=TRUE'])
    )
    got = fields(answer(session, "GET", "/"))
    assert (got["nonce"], got["nc"]) == ("3", "00000001")


def test_information_without_a_challenge_means_nothing():
    session = DigestSession(Digest("u", "p"))
    session.take_info('nextnonce="2"')
    assert session.authorization("GET", "/") is None


def test_quotes_and_backslashes_are_escaped():
    session = challenged(Digest('a"b\\c', "p"), 'Digest realm="x\\"y", nonce="n", qop="auth"')
    value = answer(session, "GET", "/")
    assert r'username="a\"b\\c"' in value
    assert r'realm="x\"y"' in value


def test_a_username_beyond_ascii():
    session = challenged(Digest("Jäsøn Doe", "p"), 'Digest realm="r", nonce="n", qop="auth"')
    value = answer(session, "GET", "/")
    assert "username*=UTF-8''J%C3%A4s%C3%B8n%20Doe" in value
    assert value.isascii()


def test_a_username_may_be_hashed():
    session = challenged(
        Digest("Jäsøn", "p"), 'Digest realm="r", nonce="n", qop="auth", userhash=true'
    )
    got = fields(answer(session, "GET", "/"))
    assert got["username"] == hashlib.md5("Jäsøn:r".encode()).hexdigest()
    assert got["userhash"] == "true"


def test_a_realm_counts_as_the_bytes_that_came():
    realm = "Müller".encode().decode("latin-1")
    session = challenged(Digest("u", "p"), f'Digest realm="{realm}", nonce="n"')
    md5 = lambda data: hashlib.md5(data).hexdigest()  # noqa: E731
    secret, request = md5("u:Müller:p".encode()), md5(b"GET:/")
    value = answer(session, "GET", "/")
    assert fields(value)["response"] == md5(f"{secret}:n:{request}".encode())
    assert f'realm="{realm}"' in value


def test_memory_knows_servers_and_users_apart():
    memory = DigestMemory()
    one = memory.session("a", Digest("u", "p"))
    assert memory.session("a", Digest("u", "p")) is one
    assert memory.session("b", Digest("u", "p")) is not one
    assert memory.session("a", Digest("v", "p")) is not one
    assert memory.session("a", Digest("u", "q")) is not one


def test_memory_has_a_limit():
    memory = DigestMemory()
    auth = Digest("u", "p")
    first, second = memory.session(0, auth), memory.session(1, auth)
    for place in range(2, room.MAX_SESSIONS):
        memory.session(place, auth)
    assert memory.session(0, auth) is first  # and so it is the last that was used
    memory.session("one more", auth)
    assert memory.session(0, auth) is first
    assert memory.session(1, auth) is not second


# --- netrc ---------------------------------------------------------------------------------


def test_netrc(tmp_path: Path):
    file = tmp_path / "netrc"
    file.write_text("machine a.test login alice password secret\n")
    assert netrc_auth("a.test", file) == Basic("alice", "secret")
    assert netrc_auth("b.test", str(file)) is None
    file.write_text("machine a.test login bob password other-secret\ndefault login x password y\n")
    assert netrc_auth("a.test", file) == Basic("bob", "other-secret")
    assert netrc_auth("b.test", file) == Basic("x", "y")


def test_netrc_at_home(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert netrc_auth("a.test", True) is None
    (tmp_path / ".netrc").write_text("machine a.test login alice password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert netrc_auth("a.test", True) == Basic("alice", "secret")


def test_netrc_that_is_not_there_or_not_one(tmp_path: Path):
    with pytest.raises(ValueError, match="no netrc file"):
        netrc_auth("a.test", tmp_path / "none")
    (tmp_path / "bad").write_text("machine a.test frobnicate x\n")
    with pytest.raises(ValueError, match="cannot read the netrc file"):
        netrc_auth("a.test", tmp_path / "bad")
    with pytest.raises(ValueError, match="cannot read the netrc file"):
        netrc_auth("a.test", tmp_path)
