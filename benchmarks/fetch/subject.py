"""What the fetch subjects share: the command line and the check of a response."""

from argparse import ArgumentParser

from .nginx import BODY


def parser() -> ArgumentParser:
    """The options of every fetch subject; some add their own."""
    result = ArgumentParser()
    result.add_argument("url")
    result.add_argument("--workers", type=int, default=50)
    result.add_argument("--seconds", type=float, default=0.5)
    return result


def check(status: int, body: bytes) -> None:
    """Raise if this is not the response that was asked for."""
    if status != 200 or len(body) != len(BODY):
        raise ValueError(f"unexpected response: status {status}, {len(body)} bytes")
