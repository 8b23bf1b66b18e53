"""A DNS name with several addresses is several replicas; the resolver may be slow, or away, at any time."""

import asyncio
import threading

from prometheus_client import CollectorRegistry

from acemath_core.wire import SlotState
from acemath_gateway.adapters.addresses import DnsAddresses, look_up
from acemath_gateway.adapters.http import Upstream
from acemath_gateway.adapters.slots_http import HttpSlots
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.replicas import ReplicaWatch
from doubles.gateway_app import eventually, eventually_true
from doubles.ports import REWARD, ScriptedSlots
from doubles.servers import RawServer

NAME = "http://reward.svc:8200"
BOTH = ("http://10.0.0.1:8200", "http://10.0.0.2:8200")


class Resolver:
    """Answers from a list that a test may change."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = list(addresses), 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        if not self.addresses:
            raise OSError("no such name")
        return list(self.addresses)


async def test_one_replica_for_each_address_and_the_name_for_all():
    names: dict[str, str] = {}
    resolver = Resolver("10.0.0.1", "10.0.0.2")
    found = DnsAddresses(names, lookup=resolver, every_seconds=0)
    assert await found.of((NAME,)) == BOTH
    assert names == dict.fromkeys(BOTH, "reward.svc:8200")
    resolver.addresses = ["10.0.0.2", "10.0.0.3"]
    assert await found.of((NAME,)) == ("http://10.0.0.2:8200", "http://10.0.0.3:8200")
    assert set(names) == {"http://10.0.0.2:8200", "http://10.0.0.3:8200"}
    resolver.addresses = ["10.0.0.2"]
    assert await found.of((NAME,)) == (NAME,) and names == {}


async def test_what_was_found_last_is_kept_while_the_resolver_is_away():
    resolver = Resolver()
    found = DnsAddresses({}, lookup=resolver, every_seconds=0)
    assert await found.of((NAME,)) == (NAME,)
    resolver.addresses = ["10.0.0.1", "10.0.0.2"]
    assert await found.of((NAME,)) == BOTH
    resolver.addresses = []
    assert await found.of((NAME,)) == BOTH


async def test_a_resolver_that_hangs_holds_one_thread_and_nobody(monkeypatch):
    monkeypatch.setattr("acemath_gateway.adapters.addresses._WAIT_SECONDS", 0.05)
    let_go, asked = threading.Event(), []

    def hanging(host: str, port: int) -> list[str]:
        asked.append(host)
        let_go.wait(20)
        return ["10.0.0.1", "10.0.0.2"]

    found = DnsAddresses({}, lookup=hanging, every_seconds=0)
    try:
        for _ in range(3):
            assert await found.of((NAME,)) == (NAME,)
        await eventually(lambda: asked)  # its thread has begun
        assert await found.of((NAME,)) == (NAME,) and len(asked) == 1
    finally:
        let_go.set()

    async def known() -> bool:
        return await found.of((NAME,)) == BOTH

    await eventually_true(known)


async def test_addresses_are_never_looked_up_and_names_not_at_every_turn():
    resolver = Resolver("10.0.0.1", "10.0.0.2")
    found = DnsAddresses({}, lookup=resolver)
    plain = ("http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost:8200")
    assert await found.of(plain) == plain and resolver.asked == 0
    for _ in range(5):
        assert await found.of((NAME, BOTH[0])) == BOTH
    assert resolver.asked == 1
    assert look_up("127.0.0.1", 80) == ["127.0.0.1"]


async def test_every_address_is_asked_and_those_that_went_are_forgotten():
    resolver = Resolver("10.0.0.1", "10.0.0.2")
    states = {url: {REWARD: SlotState.ACTIVE} for url in BOTH}
    watch = ReplicaWatch(ScriptedSlots(states), (NAME,), DnsAddresses({}, lookup=resolver, every_seconds=0))
    await watch.refresh()
    assert watch.urls == BOTH and all(watch.slot(url, REWARD) for url in BOTH)
    resolver.addresses = ["10.0.0.2", "10.0.0.3"]
    await watch.refresh()
    assert watch.slot(BOTH[0], REWARD) is None and watch.slot(BOTH[1], REWARD)
    assert not watch.answering("http://10.0.0.3:8200") and watch.answering(BOTH[1])


async def test_the_name_goes_along_as_host():
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
        await writer.drain()

    class Recording(RawServer):
        async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            real = reader.readuntil

            async def readuntil(separator: bytes) -> bytes:
                heads.append(await real(separator))
                return heads[-1]

            reader.readuntil = readuntil  # type: ignore[method-assign]
            await super()._handle(reader, writer)

    upstream = Upstream("policy", key=None, metrics=GatewayMetrics.on(CollectorRegistry()))
    async with Recording(script).serving() as url:
        upstream.host_names[url] = "reward.svc:8200"
        assert await HttpSlots(upstream).slots(url) == ()
    await upstream.close()
    assert b"host: reward.svc:8200\r\n" in heads[0].lower() and b"127.0.0.1" not in heads[0]
