"""Reads server-sent events from somebody we do not trust to be well: bounded, and strict about what matters to us.

Of the format (WHATWG HTML, 9.2.6) it knows `data` fields, comments and blank lines; other fields are skipped, as the
standard wants. Lines end in LF or CR LF (nobody sends the lone CR that it also allows) and may be cut anywhere.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Of one event; a candidate of 32,768 tokens that came in one piece is below 1 MiB."""


class SseError(Exception):
    """The bytes are not an event stream that we can read."""


class SseReader:
    """Bytes in, the data of whole events out.

    Args:
        max_event_bytes: bound on one event, and so on what is kept here.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that `chunk` completes, in order.

        Raises:
            SseError: an event is larger than the bound, or is not UTF-8.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                events.append(event)
        if len(self._rest) + self._size > self._limit:
            raise SseError(f"an event is larger than {self._limit} bytes")
        return events

    def _line(self, line: bytes) -> str | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
        if line or not self._data:
            return None
        whole, self._data, self._size = b"\n".join(self._data), [], 0
        try:
            return whole.decode()
        except UnicodeDecodeError as error:
            raise SseError("an event is not UTF-8") from error
