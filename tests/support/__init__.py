"""What tests share: scripted servers, a private nginx, a certificate authority, leak checks.

Tests meet most of it as fixtures of ``tests/conftest.py``.
"""
