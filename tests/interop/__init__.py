"""coro against real servers and clients that nobody here wrote."""
