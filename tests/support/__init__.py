"""Shared by the tests: fixtures, fakes, targets of processes, and helpers."""
