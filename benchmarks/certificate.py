"""A certificate for the servers that are measured over TLS."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from .model import UnavailableError


@contextmanager
def certificate() -> Iterator[str]:
    """A file with a key and its certificate, that nobody has signed."""
    with TemporaryDirectory() as directory:
        pem = f"{directory}/server.pem"
        command = "openssl req -x509 -nodes -days 2 -subj /CN=localhost -newkey ec -pkeyopt"
        try:
            subprocess.run(
                [*command.split(), "ec_paramgen_curve:P-256", "-keyout", pem, "-out", f"{pem}.crt"],
                check=True,
                capture_output=True,
            )
        except FileNotFoundError:
            raise UnavailableError("needs openssl: apt-get install openssl") from None
        with open(pem, "a") as file, open(f"{pem}.crt") as made:
            file.write(made.read())
        yield pem
