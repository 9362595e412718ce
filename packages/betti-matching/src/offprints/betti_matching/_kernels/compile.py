"""Whether compiled code can be kept for later processes."""

import warnings

from numba import njit


def _can_cache() -> bool:
    try:
        njit(cache=True)(_can_cache)  # looks for a place, compiles nothing
    except RuntimeError:
        warnings.warn(
            "neither the package nor the user's cache directory is writable, so that every process compiles anew: "
            "set NUMBA_CACHE_DIR to a directory that is",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


CACHE = _can_cache()
