"""Errors meant for the user: one line that says what was wrong and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can fix: the command line prints the message alone, without a traceback, and exits with 2.

    Write the message as: what was wrong (naming the file, key or value), what was expected, what to do next.
    """


class TooFewImages(UserError):
    """The data give no episodes with as many supports as were asked for; with fewer they may."""


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is most like a misspelt one; None where none is close."""
    return next(iter(difflib.get_close_matches(str(name), sorted(map(str, valid)), n=1, cutoff=0.6)), None)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt `name`: " Did you mean 'x'?", or the valid names where none is close."""
    valid = sorted(map(str, valid))
    close = closest(name, valid)
    if close:
        return f" Did you mean '{close}'?"
    return f" Valid: {', '.join(valid)}." if valid else ""


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few of many, for one line of text: `a, b, c and 7 more`."""
    texts = [str(item) for item in items]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def user_error_in(error: BaseException | None) -> UserError | None:
    """The error meant for the user among the causes of another one (jsonargparse wraps what a constructor raises)."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
