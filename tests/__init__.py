"""The tests mirror the rooms: ``tests/test_gen.py`` is the twin of ``coro/gen.py``."""
