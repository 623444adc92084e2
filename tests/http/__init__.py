"""The twins of the rooms of ``coro.http``."""
