"""A certificate authority that only this test run trusts."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Authority:
    """Issues certificates.

    Attributes:
        pem: its own certificate, for ``--ca`` and ``ca_certs``.
        directory: where its files lie.
    """

    authority: trustme.CA
    directory: Path

    @property
    def pem(self) -> Path:
        return self.directory / "ca.pem"

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return a server's context with a certificate for ``names`` (else this machine)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*(names or NAMES)).configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a client's context that trusts this authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.pem))

    def issue(self, *names: str) -> Path:
        """Return a PEM file with a private key and its certificate for ``names``."""
        names = names or NAMES
        path = self.directory / f"{names[0].replace(':', '.').replace('*', '_')}.pem"
        self.authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


def new_authority(directory: Path) -> Authority:
    """Make an authority that keeps its files in ``directory``."""
    made = Authority(trustme.CA(), directory)
    made.authority.cert_pem.write_to_path(str(made.pem))
    return made
