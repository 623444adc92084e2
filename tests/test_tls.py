"""TLS contexts: safe unless asked otherwise, shared where equal, errors that say what is wrong."""

from __future__ import annotations

import socket
import ssl

import pytest

from coro.tls import client_context, context_for, explain, wrap
from tests.support.authority import Authority


def test_defaults_check_certificate_and_name() -> None:
    context = client_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_equal_requirements_share_a_context(ca: Authority) -> None:
    assert client_context() is client_context()
    assert context_for(None, server_side=False) is client_context()
    assert client_context(ca_certs=str(ca.pem)) is client_context(ca_certs=str(ca.pem))
    assert client_context(ca_certs=str(ca.pem)) is not client_context()
    assert client_context(validate=False) is not client_context()


def test_without_validation_nothing_is_checked() -> None:
    context = client_context(validate=False)
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname


def test_a_context_is_taken_as_it_is() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert context_for(context, server_side=False) is context


def test_a_dict_of_options(ca: Authority) -> None:
    own = str(ca.issue("localhost"))
    context = context_for({"certfile": own}, server_side=True)
    assert context.verify_mode == ssl.CERT_NONE
    context = context_for({"cert_reqs": ssl.CERT_NONE}, server_side=False)
    assert context.verify_mode == ssl.CERT_NONE
    context = context_for(
        {"ca_certs": str(ca.pem), "ciphers": "ECDHE+AESGCM", "alpn_protocols": ["x"]},
        server_side=False,
    )
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="'cert_file'"):
        context_for({"cert_file": "x"}, server_side=False)


@pytest.mark.parametrize("options", [None, {}, {"ca_certs": "x"}])
def test_a_server_needs_a_certificate(options: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match="certfile"):
        context_for(options, server_side=True)


def test_a_name_to_check_is_needed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="server_hostname"):
        wrap(ours, client_context(), server_side=False)


def test_explanations() -> None:
    untrusted = ssl.SSLCertVerificationError(1, "certificate verify failed")
    untrusted.verify_message = "self-signed certificate"
    assert explain(untrusted, "host.test:443") == (
        "the certificate of host.test:443 is not trusted: self-signed certificate"
    )
    wrong = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    wrong.reason = "WRONG_VERSION_NUMBER"
    assert explain(wrong, "h:1") == "TLS with h:1 failed: wrong version number"
    assert explain(ConnectionResetError("reset"), "h:1") == "TLS with h:1 failed: reset"
