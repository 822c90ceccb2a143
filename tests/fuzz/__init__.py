"""Fuzzing of every parser of outside bytes: `make fuzz MINUTES=30`, or `python -m tests.fuzz --help`."""
