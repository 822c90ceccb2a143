"""Hostile inputs of every kind, made by code, given to the real command.

`python -m tests.attacks` runs them all and prints a table by kind.
"""
