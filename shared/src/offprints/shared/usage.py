"""The error of a command that cannot be carried out as given, shown as one line."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPEAKS_TO_USERS = ("offprints.shared.validation", "offprints.shared.datasets")


class UsageError(Exception):
    """A command that cannot be carried out as given: shown as one line on stderr, exit status 2."""


def as_usage_error(error: BaseException) -> UsageError | None:
    """``error`` in the user's terms where it is not the program's: a full disk, missing data, a missing extra."""
    if isinstance(error, UsageError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f" to write {error.filename}" if error.filename else ""
        return UsageError(f"no space left{place}: {error.strerror}")
    if isinstance(error, ImportError | FileNotFoundError):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        raised_in = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
        if raised_in.startswith(_SPEAKS_TO_USERS):
            return UsageError(str(error))
    return None
