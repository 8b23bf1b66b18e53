"""What long steps say while they run."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

_TELL_AFTER_S, _TELL_EVERY_S = 2.0, 10.0


@dataclass(frozen=True, slots=True)
class Teller:
    """Writes lines, all with the same word before them.

    Attributes:
        who: that word.
        to: where to; None is standard output.
    """

    who: str
    to: TextIO | None = None

    def say(self, text: str) -> None:
        """One line."""
        stream = self.to or sys.stdout
        stream.write(f"[{self.who}] {text}\n")
        stream.flush()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is being done once it takes over two seconds, every ten seconds after, and how long it took."""
        begin, done = time.monotonic(), threading.Event()

        def tell() -> None:
            wait = _TELL_AFTER_S
            while not done.wait(wait):
                self.say(f"{what} … {time.monotonic() - begin:.0f} s")
                wait = _TELL_EVERY_S

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()
        self.say(f"{what}: {time.monotonic() - begin:.1f} s")
