"""What a type checker says of user code; mypy reads these files in a user's strictness."""
