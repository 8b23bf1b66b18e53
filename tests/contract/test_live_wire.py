"""One suite for whatever speaks `WS /v1/score/live`: both doubles and the real service; nothing of ours asks here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from doubles.fake_reward import FakeReward
from doubles.instant_live import BrokenFrame, whole_frames
from doubles.instant_upstream import instant, live_of_reward, routes_of_reward
from doubles.ports import TARGET
from doubles.servers import served

REAL = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]
TURNS = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many?"}]
SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """Where it is and what it serves."""

    url: str
    version: str

    @asynccontextmanager
    async def connected(self, opening: dict[str, Any] | None = None) -> AsyncIterator[ClientConnection]:
        good = {"type": "open", "messages": TURNS, "model": self.version, "deadline": SECONDS}
        async with connect(f"ws{self.url.removeprefix('http')}/v1/score/live", proxy=None) as socket:
            await socket.send(json.dumps(opening or good))
            yield socket


@pytest.fixture(params=["double", "instant", pytest.param("service", marks=REAL)])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    if request.param == "service":
        real = request.getfixturevalue("real_reward")
        yield Service(real.reward_url, real.reward)
    elif request.param == "instant":
        async with instant(routes_of_reward(TARGET.reward, "", 320), live=live_of_reward(TARGET.reward, 320)) as url:
            yield Service(url, TARGET.reward)
    else:
        async with served(FakeReward(TARGET.reward, max_tokens=320).app) as url:
            yield Service(url, TARGET.reward)


async def say(socket: ClientConnection, kind: str, index: int, text: str | None = None) -> None:
    await socket.send(json.dumps({"type": kind, "index": index} | ({"text": text} if text is not None else {})))


async def hear(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(SECONDS):
        return dict(json.loads(await socket.recv()))


async def messages(socket: ClientConnection, frames: int) -> list[list[dict[str, Any]]]:
    """Messages with so many frames in all."""
    found: list[list[dict[str, Any]]] = []
    async with asyncio.timeout(SECONDS):
        while sum(map(len, found)) < frames:
            message = json.loads(await socket.recv())
            found.append(message if isinstance(message, list) else [message])
    return found


async def test_a_score_for_each_end_is_that_of_the_post(service: Service) -> None:
    texts = ["3 + 4 = 7. \\boxed{7}", "", "3 * 4 = 12, so \\boxed{12}, said he." + " Yes." * 40]
    async with service.connected() as socket:
        for index, text in enumerate(texts):
            for piece in (text[:5], text[5:]):
                await say(socket, "piece", index, piece)
        for index in range(3):
            await say(socket, "end", index)
        found = {frame["index"]: frame for frame in [await hear(socket) for _ in texts]}
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, verify=False, timeout=SECONDS) as http:
        posted = (await http.post("/v1/score", json={"messages": TURNS, "candidates": texts})).json()["data"]
    assert [found[item["index"]]["score"] for item in posted] == [item["score"] for item in posted]
    assert {frame["type"] for frame in found.values()} == {"score"}
    assert all(isinstance(frame["tokens"], int) for frame in found.values())


@pytest.mark.parametrize("joined", [False, True])
async def test_frames_in_lists_are_as_frames_alone(service: Service, joined: bool) -> None:
    opening = {"type": "open", "messages": TURNS, "model": service.version, "deadline": SECONDS, "joined": joined}
    texts = [f"it is {'so ' * index}\\boxed{{{index}}}" for index in range(5)]
    pieces = [{"type": "piece", "index": index, "text": text} for index, text in enumerate(texts)]
    ends = [{"type": "end", "index": index} for index in range(5)]
    async with service.connected(opening) as socket:
        await socket.send(json.dumps(pieces[:3]))
        await socket.send(json.dumps([pieces[3], ends[0]]))
        await socket.send(json.dumps([pieces[4], *ends[1:]]))
        found = [frame for message in await messages(socket, 5) for frame in message]
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, verify=False, timeout=SECONDS) as http:
        posted = (await http.post("/v1/score", json={"messages": TURNS, "candidates": texts})).json()["data"]
    assert {frame["index"]: frame["score"] for frame in found} == {item["index"]: item["score"] for item in posted}


async def test_who_did_not_ask_for_lists_gets_none(service: Service) -> None:
    pieces = [{"type": "piece", "index": index, "text": "\\boxed{7}"} for index in range(8)]
    async with service.connected() as socket:
        await socket.send(json.dumps([*pieces, *({"type": "end", "index": index} for index in range(8))]))
        assert {(await hear(socket))["type"] for _ in range(8)} == {"score"}  # each message is an object


@pytest.mark.parametrize("chars", [9_000, 100_000])
async def test_what_is_too_long_fails_alone(service: Service, chars: int) -> None:
    async with service.connected() as socket:
        await say(socket, "piece", 0, "so " * (chars // 3))
        await say(socket, "piece", 1, "it is \\boxed{7}")
        await say(socket, "end", 0)
        await say(socket, "end", 1)
        found = {frame["index"]: frame for frame in [await hear(socket) for _ in range(2)]}
    assert (found[0]["type"], found[0]["code"]) == ("error", "context_length_exceeded")
    assert found[1]["type"] == "score"


async def test_a_dropped_candidate_has_no_score_and_what_comes_of_it_is_ignored(service: Service) -> None:
    async with service.connected() as socket:
        for index in range(2):
            await say(socket, "piece", index, "it is \\boxed{7}")
        await say(socket, "drop", 0)
        await say(socket, "piece", 0, " or so")
        await say(socket, "end", 0)
        await say(socket, "end", 1)
        said = await hear(socket)
        assert (said["type"], said["index"]) == ("score", 1)


async def test_a_drop_of_what_never_began_is_the_end(service: Service) -> None:
    async with service.connected() as socket:
        await say(socket, "drop", 3)
        said = await hear(socket)
        assert (said["type"], said["index"], said["code"]) == ("error", None, "invalid_request")


BAD_OPENINGS = {
    "model_not_served": {"type": "open", "messages": TURNS, "model": "no@s1-000000000000", "deadline": SECONDS},
    "invalid_request": {"type": "end", "index": 0},
}


@pytest.mark.parametrize("code", BAD_OPENINGS)
async def test_an_opening_that_is_none_is_the_end(service: Service, code: str) -> None:
    async with service.connected(BAD_OPENINGS[code]) as socket:
        said = await hear(socket)
        assert (said["type"], said["index"], said["code"]) == ("error", None, code)
        with pytest.raises(ConnectionClosed):
            await socket.recv()


async def test_a_ping_is_answered_and_a_farewell_returned(service: Service) -> None:
    async with service.connected() as socket:
        async with asyncio.timeout(SECONDS):
            await (await socket.ping())
            await socket.close()
    assert socket.close_code == 1000


def test_frames_are_read_however_they_are_cut() -> None:
    sent = b"\x81\x82\0\0\0\0hi" + b"\x81\xfe\x01\x00\0\0\0\0" + b"a" * 256 + b"\x89\x80\0\0\0\0"
    unread, found = bytearray(), []
    for byte in sent:
        unread.append(byte)
        found += whole_frames(unread)
    assert found == [(0x81, b"hi"), (0x81, b"a" * 256), (0x89, b"")] and not unread


@pytest.mark.parametrize("sent", [b"\x81\x02hi....", b"\x81\xff\0\0\0\0\0\x20\0\0\0\0\0\0"], ids=["bare", "endless"])
def test_a_frame_that_no_client_sends_is_refused(sent: bytes) -> None:
    with pytest.raises(BrokenFrame):
        whole_frames(bytearray(sent))


async def test_one_connection_serves_one_job_after_another(service: Service) -> None:
    text = "3 + 4 = 7. \\boxed{7}"
    async with service.connected() as socket:
        await say(socket, "piece", 0, text)
        await say(socket, "end", 0)
        first = await hear(socket)
        await say(socket, "piece", 1, "left alone: what is not scored ends with the job")
        await socket.send(json.dumps({"type": "done"}))
        assert await hear(socket) == {"type": "done"}
        opening = {"type": "open", "messages": TURNS, "model": service.version, "deadline": SECONDS, "joined": True}
        pieces = [{"type": "piece", "index": 1, "text": text}, {"type": "end", "index": 1}]
        await socket.send(json.dumps([opening, *pieces]))
        (second,) = (await messages(socket, 1))[0]
        assert second == {**first, "index": 1}


@pytest.mark.parametrize("frame", [{"type": "piece", "index": 0, "text": "x"}, {"type": "done"}])
async def test_between_two_jobs_nothing_but_an_opening_may_come(service: Service, frame: dict[str, Any]) -> None:
    async with service.connected() as socket:
        await socket.send(json.dumps({"type": "done"}))
        assert await hear(socket) == {"type": "done"}
        await socket.send(json.dumps(frame))
        assert (await hear(socket))["code"] == "invalid_request"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
