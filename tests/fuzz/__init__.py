"""Fuzzing of every reader of outside input: python -m tests.fuzz --help."""
