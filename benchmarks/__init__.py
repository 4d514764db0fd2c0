"""Measured speed. Never part of the tests: timings depend on the machine and on what else it does."""
