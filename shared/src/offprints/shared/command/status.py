"""How a command ends: what it raises is told on stderr, in one line where that says all, and is its exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from offprints.shared.show.text import clean, fitting
from offprints.shared.usage import as_usage_error

SIGNALS = ("SIGTERM", "SIGHUP")  # as well as Ctrl-C; Windows has not both


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def guarded(run: Callable[[], int]) -> int:
    """The exit status of ``run``, what it raises told on stderr: in one line where the error is the user's."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not a text file of Python's
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        with _interruptible():
            return run()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        folder = str(stop)
        say("interrupted" + (f"; --resume {folder} goes on from what is stored" if folder else ""))
        return 128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)
    except SystemExit as stop:
        say(f"the paper's code ended the program itself, with exit status {stop.code}")
        return 3
    except Exception as error:
        usage = as_usage_error(error)
        if usage is None:
            import traceback

            sys.stderr.write(clean(traceback.format_exc()))
            return 3
        say(str(usage))
        return 2


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """The signals that ask a process to end raise `Interrupted` inside the block.

    Not under torchrun, which ends all ranks by such a signal: one that waits for another would not hear of it. A signal
    that is ignored, as nohup has it, stays so.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {}
    if threading.current_thread() is threading.main_thread() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def speaks() -> bool:
    """Whether this process is the one that prints; known before and after there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def write(text: str) -> None:
    """Print to stdout at once."""
    sys.stdout.write(fitting(clean(text)))
    sys.stdout.flush()


def say(text: str) -> None:
    """One line on stderr, and where ``text`` shows the layout of a folder, that below it."""
    if speaks():
        sys.stderr.write(fitting(f"offprints: {clean(text)}\n", sys.stderr))
        sys.stderr.flush()
