"""The error of a command that cannot be carried out as given, shown as one line."""

from __future__ import annotations

import errno

from offprints.shared.extras import MissingData, MissingExtra

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UsageError(Exception):
    """A command that cannot be carried out as given: shown as one line on stderr, exit status 2."""


def as_usage_error(error: BaseException) -> UsageError | None:
    """``error`` in the user's terms where it is not the program's: a full disk, missing data, a missing extra."""
    if isinstance(error, UsageError):
        return error
    if isinstance(error, MissingData | MissingExtra):
        return UsageError(str(error))
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f" to write {error.filename}" if error.filename else ""
        return UsageError(f"no space left{place}: {error.strerror}")
    return None
