"""``offprints`` and ``python -m offprints.shared``: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: all claims hold; 1: one does not; 2: a usage error (one line on stderr); 3: the experiment failed;
    130, 143, 129: interrupted by Ctrl-C, SIGTERM, SIGHUP.
    """
    from offprints.shared.command.dispatch import (
        command,
    )  # here, so that worker processes, which import this file, stay light

    return command(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
