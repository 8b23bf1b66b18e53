"""What a person sees: lines, and one live line with the step that is under way and how long it has taken.

Standard library only. On a terminal the live line is redrawn every second; elsewhere a line says every ten seconds
that the step still runs.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_QUIET_SECONDS = 10.0


class Step:
    """A step under way; `note` says what it is doing now."""

    def __init__(self, title: str) -> None:
        self.title, self.note, self.started = title, "", time.monotonic()

    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def describe(self) -> str:
        """Title, note and elapsed time on one line."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.title}{note} … {self.seconds():.0f} s"


class Console:
    """Writes whole lines from any thread; keeps the live line last."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._live = self._stream.isatty()
        self._step: Step | None = None

    def line(self, text: str = "") -> None:
        """Write one line above the live one."""
        with self._lock:
            self._clear()
            self._stream.write(text + "\n")
            self._draw()
            self._stream.flush()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step with its elapsed time until the block ends; say how long it took, or that it failed."""
        step, done = Step(title), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(step, done), daemon=True)
        self._step = step
        watcher.start()
        mark = "✗"
        try:
            yield step
            mark = "✓"
        finally:
            done.set()
            watcher.join()
            self._finish(f"  {mark} {title}: {step.seconds():.1f} s")

    def _finish(self, text: str) -> None:
        with self._lock:
            self._clear()
            self._step = None
            self._stream.write(text + "\n")
            self._stream.flush()

    def _watch(self, step: Step, done: threading.Event) -> None:
        while not done.wait(1.0 if self._live else _QUIET_SECONDS):
            if not self._live:
                self.line(f"    {step.describe()}")
                continue
            with self._lock:
                self._clear()
                self._draw()
                self._stream.flush()

    def _clear(self) -> None:
        if self._live and self._step is not None:
            self._stream.write("\r\x1b[2K")

    def _draw(self) -> None:
        if self._live and self._step is not None:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be drawn over
            self._stream.write(f"  … {self._step.describe()}"[:width])
