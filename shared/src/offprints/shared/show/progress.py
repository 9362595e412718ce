"""Progress on stderr: a bar with rate and time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from offprints.shared.show.text import clean, fitting

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Seconds in words: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rate(done: float, seconds: float) -> str:
    """Steps a second, or seconds a step where they are slow."""
    if not done or not seconds:
        return ""
    speed = done / seconds
    return f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each"


class Task:
    """One loop: how many of its steps are done, of which ``done`` were so before."""

    def __init__(self, display: Display, description: str, total: int | None, *, done: int = 0) -> None:
        self.display, self.description, self.total, self.done = display, clean(description), total, done
        self._before = done
        self._start = self._told = time.monotonic()
        self._bar = display._add(self.description, total, done)

    def advance(self, note: str = "") -> None:
        """One more step is done; a note gets a line of its own where there is no bar."""
        self.done += 1
        if self._bar is not None:
            self.display._update(self._bar, f"{self.description} {clean(note)}".rstrip())
        elif note:
            self.display.line(f"{self.description} {self.done}/{self.total}: {note}")
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            self._tell()

    def finish(self) -> None:
        """The loop is over."""
        if self._bar is not None:
            self.display._remove(self._bar)
        elif self._told > self._start or time.monotonic() - self._start >= 1.0:
            self._tell()

    def _tell(self) -> None:
        elapsed = time.monotonic() - self._start
        new = self.done - self._before
        parts = [rate(new, elapsed)]
        if self.total and new and self.done < self.total:
            parts.append(f"{duration(elapsed / new * (self.total - self.done))} left")
        else:
            parts.append(duration(elapsed))
        counted = f"{self.done}/{self.total}" if self.total else str(self.done)
        self.display.line(f"{self.description} {counted} ({', '.join(filter(None, parts))})")


class Display:
    """All progress of one run. Silent where ``visible`` is false."""

    def __init__(self, *, visible: bool) -> None:
        self.visible = visible
        self._terminal = visible and sys.stderr.isatty()
        self._bars: Progress | None = None
        self._lock = threading.Lock()
        self._open = 0

    def track(self, iterable: Iterable[T], total: int | None, description: str) -> Iterator[T]:
        """Yield the items and show how many are done."""
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        task = Task(self, description, total)
        try:
            for item in iterable:
                yield item
                task.advance()
        finally:
            task.finish()

    def line(self, text: str) -> None:
        """One line of its own."""
        if self.visible:
            if self._bars is not None:
                self._bars.console.print(clean(text), markup=False, highlight=False)
            else:
                sys.stderr.write(fitting(f"{clean(text)}\n", sys.stderr))
                sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _add(self, description: str, total: int | None, done: int) -> Any:
        if not self._terminal:
            return None
        with self._lock:
            if self._bars is None:
                self._bars = _bars()
                self._bars.start()
            self._open += 1
            return self._bars.add_task(description, total=total, completed=done)

    def _update(self, bar: Any, description: str) -> None:
        if self._bars is not None:
            self._bars.update(bar, advance=1, description=description)

    def _remove(self, bar: Any) -> None:
        with self._lock:
            self._open -= 1
            if self._bars is not None:
                self._bars.remove_task(bar)
                if not self._open:
                    self.close()


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(rate(1.0, 1.0 / task.speed) if task.speed else "", style="cyan")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
