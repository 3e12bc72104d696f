"""Fixtures of the command line's tests."""

from tests.cli.run import fitted, fitted_once, here

__all__ = ["fitted", "fitted_once", "here"]
