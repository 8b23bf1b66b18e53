"""What an alert asks of a gateway: whether it is ready, and whether it can read what it is to serve."""

from __future__ import annotations

import httpx
import pytest
from gateway.releases_world import STAGING, B, World

from acemath_core.errors import Unavailable
from doubles.gateway_app import GatewayOnDoubles, gateway_client


async def ready(http: httpx.AsyncClient) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith("acemath_gateway_ready ")]
    return float(line.split()[1])


async def test_the_figure_says_what_readyz_says() -> None:
    gateway = GatewayOnDoubles()
    async with gateway_client(gateway) as http:
        for serving, draining in ((True, False), (False, False), (True, True)):
            gateway.serving = serving
            if draining:
                assert gateway.state is not None
                gateway.state.drain()
            expected = (await http.get("/readyz")).status_code == 200
            assert await ready(http) == expected == (serving and not draining)


@pytest.mark.parametrize("unreadable", [False, True])
async def test_a_swap_is_no_failed_poll_and_an_unreadable_channel_is_one(unreadable: bool) -> None:
    world = World()
    await world.tracker.poll()
    if unreadable:
        world.channel.error = Unavailable("mount is gone")
    else:
        world.channel.pointers = (B,)
        world.everywhere(B, STAGING)
    await world.tracker.poll()
    assert world.tracker.readiness().details["problem"]
    assert world.metric("release_polls_failed_total") == unreadable
