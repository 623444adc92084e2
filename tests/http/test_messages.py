"""HTTPRequest and HTTPResponse."""

from __future__ import annotations

import copy
import gc
import pickle
import ssl
import time
from io import BytesIO

import pytest

from coro.cli.exchange import Exchange
from coro.errors import (
    HTTPConnectError,
    HTTPError,
    HTTPInputError,
    HTTPTLSError,
    IncompleteBodyError,
    ProxyError,
    RequestError,
    TotalTimeoutError,
)
from coro.http.cookies import CookieJar
from coro.http.headers import HTTPHeaders
from coro.http.messages import HTTPRequest, HTTPResponse, RequestOptions
from coro.resolver import ThreadedResolver

URL = "http://example.com/"


class TestRequest:
    def test_defaults(self):
        before = time.time()
        r = HTTPRequest(URL)
        assert (r.url, r.method, r.body) == (URL, "GET", None)
        assert r.headers == {}
        assert before <= r.start_time <= time.time()
        assert r.expect_100_continue is False
        for name in RequestOptions.__annotations__:
            if name not in ("if_modified_since", "expect_100_continue"):
                assert getattr(r, name) is None

    def test_every_option_is_kept(self):
        context = ssl.create_default_context()
        given = {
            "auth_username": "u",
            "auth_password": "p",
            "auth_mode": "basic",
            "connect_timeout": 1.0,
            "request_timeout": 2.0,
            "queue_timeout": 4.0,
            "write_timeout": 5.0,
            "inactivity_timeout": 3.0,
            "stream": True,
            "follow_redirects": False,
            "max_redirects": 0,
            "user_agent": "x",
            "network_interface": "127.0.0.2",
            "af": 2,
            "unix_socket": "/run/x.sock",
            "resolver": ThreadedResolver(),
            "overrides": {"a": "127.0.0.1"},
            "allow_ipv6": False,
            "socket_options": [(1, 9, 1)],
            "retry": False,
            "streaming_callback": print,
            "header_callback": print,
            "on_informational": print,
            "auth": ("u", "p"),
            "netrc": True,
            "cookie_jar": CookieJar(),
            "proxy": "http://proxy",
            "proxy_ssl_options": context,
            "trust_env": True,
            "trace": Exchange(print),
            "trailers": {"X-Sum": lambda: "7"},
            "proxy_host": "proxy",
            "proxy_port": 3128,
            "proxy_username": "a",
            "proxy_password": "b",
            "proxy_auth_mode": "basic",
            "allow_nonstandard_methods": True,
            "validate_cert": False,
            "ca_certs": "ca.pem",
            "client_key": "k.pem",
            "client_cert": "c.pem",
            "body_producer": print,
            "expect_100_continue": True,
            "decompress_response": False,
            "ssl_options": context,
        }
        assert given.keys() | {"if_modified_since"} == RequestOptions.__annotations__.keys()
        r = HTTPRequest(URL, **given)  # type: ignore[arg-type]
        assert {name: getattr(r, name) for name in given} == given
        assert r.with_defaults({}) == given

    def test_defaults_of_the_client(self):
        defaults = {"connect_timeout": 20.0, "request_timeout": 20.0, "follow_redirects": True}
        assert HTTPRequest(URL).with_defaults(defaults) is defaults
        options = HTTPRequest(URL, request_timeout=5, max_redirects=0).with_defaults(defaults)
        assert options == {**defaults, "request_timeout": 5, "max_redirects": 0}
        assert defaults["request_timeout"] == 20.0

    def test_none_is_not_given_but_for_time_limits(self):
        r = HTTPRequest(URL, follow_redirects=None, request_timeout=None)
        r.max_redirects = None
        merged = r.with_defaults(
            {"follow_redirects": True, "request_timeout": 20.0, "max_redirects": 5}
        )
        assert merged == {"follow_redirects": True, "request_timeout": None, "max_redirects": 5}

    def test_unknown_keyword(self):
        with pytest.raises(TypeError, match=r"'conect_timeout'; did you mean 'connect_timeout'\?"):
            HTTPRequest(URL, conect_timeout=5)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"'zzz'$"):
            HTTPRequest(URL, zzz=5)  # type: ignore[call-arg]

    def test_headers(self):
        own = HTTPHeaders({"A": "1"})
        r = HTTPRequest(URL, headers=own)
        assert r.headers is own
        assert HTTPRequest(URL, headers={"a": "1"}).headers == own
        assert HTTPRequest(URL, headers=[("a", "1")]).headers == own
        r.headers = {"B": "2"}  # type: ignore[assignment]
        assert isinstance(r.headers, HTTPHeaders)
        r.headers = None  # type: ignore[assignment]
        assert not r.has_headers
        assert r.headers == {}
        r.headers["C"] = "3"
        assert r.has_headers
        with pytest.raises(HTTPInputError):
            HTTPRequest(URL, headers={"A": "1\r\nB: 2"})

    def test_if_modified_since(self):
        own = HTTPHeaders({"A": "1"})
        r = HTTPRequest(URL, headers=own, if_modified_since=1359312200)
        assert r.headers["If-Modified-Since"] == "Sun, 27 Jan 2013 18:43:20 GMT"
        assert r.headers["A"] == "1"
        assert len(own) == 1
        assert HTTPRequest(URL, if_modified_since=0).headers["If-Modified-Since"].endswith("GMT")
        assert not HTTPRequest(URL, if_modified_since=None).has_headers

    @pytest.mark.parametrize("body", ["grün", "grün".encode(), bytearray("grün".encode())])
    def test_body(self, body):
        r = HTTPRequest(URL, "POST", body=body)
        assert r.body == "grün".encode()
        r.body = "x"
        assert r.body == b"x"
        r.body = None
        assert r.body is None

    @pytest.mark.parametrize("body", [5, {"a": 1}])
    def test_body_of_another_type(self, body):
        with pytest.raises(TypeError, match="body must be bytes or str"):
            HTTPRequest(URL, "POST", body=body)

    def test_repr_hides_credentials(self):
        assert repr(HTTPRequest(URL)) == f"<HTTPRequest GET {URL}>"
        r = HTTPRequest("http://user:secret@host/a@b", auth_password="secret")
        assert repr(r) == "<HTTPRequest GET http://***@host/a@b>"


class TestResponse:
    request = HTTPRequest(URL)

    def test_defaults(self):
        r = HTTPResponse(self.request, 200)
        assert r.request is self.request
        assert (r.code, r.reason, r.effective_url) == (200, "OK", URL)
        assert (r.body, r.buffer, r.error) == (b"", None, None)
        assert (r.headers, r.trailers, r.time_info) == ({}, {}, {})
        assert r.request_time is r.start_time is None
        r.rethrow()

    def test_body_and_buffer(self):
        r = HTTPResponse(self.request, 200, body=b"abc")
        assert r.body == b"abc"
        assert r.buffer is r.buffer
        assert r.buffer is not None
        assert r.buffer.read() == b"abc"
        buffer = BytesIO(b"xyz")
        r = HTTPResponse(self.request, 200, buffer=buffer)
        assert r.buffer is buffer
        assert r.body == b"xyz"
        assert r.body is r.body

    def test_given_values_win(self):
        trailers = HTTPHeaders({"T": "1"})
        headers = HTTPHeaders({"A": "1"})
        r = HTTPResponse(
            self.request, 200, headers, None, "u", None, 0.5, {"dns": 0.1}, "Fine", 7.0,
            body=b"x", trailers=trailers,
        )  # fmt: skip
        assert r.headers is headers
        assert r.trailers is trailers
        assert (r.effective_url, r.request_time, r.time_info) == ("u", 0.5, {"dns": 0.1})
        assert (r.reason, r.start_time) == ("Fine", 7.0)

    @pytest.mark.parametrize(
        ("code", "reason"),
        [(199, "Unknown"), (304, "Not Modified"), (404, "Not Found"), (500, None)],
    )
    def test_error_of_a_status(self, code, reason):
        r = HTTPResponse(self.request, code)
        with pytest.raises(HTTPError) as caught:
            r.rethrow()
        assert caught.value.code == code
        assert caught.value.response is r
        assert caught.value is r.error
        if reason:
            assert str(caught.value) == f"HTTP {code}: {reason}"

    @pytest.mark.parametrize("code", [200, 204, 299])
    def test_success(self, code):
        assert HTTPResponse(self.request, code).error is None

    def test_given_error(self):
        error = RequestError("went wrong", phase="dns")
        r = HTTPResponse(self.request, 599, error=error)
        assert r.error is error
        with pytest.raises(RequestError) as caught:
            r.rethrow()
        assert caught.value is error
        r.error = None
        assert isinstance(r.error, HTTPError)

    def test_no_cycle(self):
        gc.collect()
        gc.disable()
        try:
            r = HTTPResponse(self.request, 404)
            assert r.error is not None
            try:
                r.rethrow()
            except HTTPError as error:
                assert error.response is r
            del r
            assert gc.collect() == 0
        finally:
            gc.enable()

    def test_repr(self):
        r = HTTPResponse(self.request, 200, body=b"abc", request_time=0.0123)
        assert repr(r) == f"HTTPResponse(code=200 OK, 3 bytes in 12.3 ms, {URL})"
        r = HTTPResponse(self.request, 404, effective_url="http://u:p@h/")
        assert repr(r) == "HTTPResponse(code=404 Not Found, 0 bytes, http://***@h/)"

    def test_has_no_dict(self):
        with pytest.raises(AttributeError):
            HTTPResponse(self.request, 200).other = 1  # type: ignore[attr-defined]


class TestErrors:
    def test_the_phrase_of_a_status(self):
        assert str(HTTPError(403)) == "HTTP 403: Forbidden"
        assert HTTPError(403, "not you").message == "not you"
        assert HTTPError(299).message == "Unknown"

    @pytest.mark.parametrize(
        "error",
        [
            HTTPError(404, "Not here"),
            RequestError("went wrong", phase="dns", attempts=2, safe_to_retry=True),
            HTTPConnectError("refused", attempts=1),
            HTTPTLSError("not trusted"),
            ProxyError("no", status=407, headers={"A": "1"}),
            TotalTimeoutError("slow", bytes_sent=7),
            IncompleteBodyError("half", partial=b"12", expected=4),
        ],
    )
    def test_copies(self, error):
        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(twin) is type(error)
            assert (vars(twin), twin.args, str(twin)) == (vars(error), error.args, str(error))

    def test_the_code_is_no_error_number(self):
        for error in (HTTPConnectError("x"), HTTPTLSError("x"), TotalTimeoutError("x")):
            assert isinstance(error, OSError)
            assert error.errno is None
            assert error.code == 599
