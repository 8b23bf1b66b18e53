"""A client of `WS /v1/score/live` for the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

MESSAGES = [{"role": "user", "content": "Tom has 3 apples."}]
WAIT = 60.0  # a busy machine


class Live:
    """One connection; opened unless told not to."""

    def __init__(self, url: str, *, opened: bool = True, key: str | None = None, **opening: Any) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        address = url.replace("http://", "ws://") + "/v1/score/live"
        self._manager = connect(address, additional_headers=headers, open_timeout=WAIT, proxy=None, compression=None)
        self.connection: ClientConnection = self._manager.__enter__()
        if opened:
            self.send(type="open", messages=MESSAGES, **opening)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.__exit__(None, None, None)

    def send(self, **frame: Any) -> None:
        self.connection.send(json.dumps(frame))

    def write(self, index: int, pieces: Sequence[str | list[int]], *, end: bool = True) -> None:
        for piece in pieces:
            self.send(type="piece", index=index, **{"text" if isinstance(piece, str) else "token_ids": piece})
        if end:
            self.send(type="end", index=index)

    def receive(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.connection.recv(timeout=WAIT))
        return frame

    def scores(self, count: int) -> dict[int, dict[str, Any]]:
        frames = [self.receive() for _ in range(count)]
        assert {frame["type"] for frame in frames} <= {"score"}, frames
        return {frame["index"]: frame for frame in frames}

    def last(self) -> tuple[dict[str, Any], int]:
        """The error that ends the connection, and its close code."""
        frame = self.receive()
        assert frame["type"] == "error" and frame["index"] is None, frame
        try:
            left = self.connection.recv(timeout=WAIT)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return frame, closed.rcvd.code
        raise AssertionError(f"after the last frame came {left!r}")
