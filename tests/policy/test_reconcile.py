"""The loop on real processes (doubles of vLLM), a real registry and real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from policy.conftest import KEY, Agent, Agents, Releases
from policy.test_shim import alive

from acemath_registry import publish as registry_publish
from acemath_registry.following import SwapStrategy
from doubles.fake_vllm_call import prompt_logprob
from doubles.fake_vllm_server import CACHE_TOKENS

Eventually = Callable[..., Awaitable[None]]
Control = Callable[[dict[str, Any]], object]
BOTH = pytest.mark.parametrize("strategy", list(SwapStrategy))


async def active(agent: Agent, eventually: Eventually, step: int) -> None:
    await eventually(lambda: agent.states().get(str(step)) == "active", what=lambda: agent.reconciler.slots())


def pids(agent: Agent) -> list[int]:
    """Shims of the servers that run."""
    servers = [slot.server for slot in agent.reconciler._slots if slot.server is not None]
    return [pid for server in servers if (pid := server._tree.pid) is not None]


@BOTH
async def test_the_channels_version_becomes_active_and_answers_as_itself(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    ref = releases.publish("a")
    releases.promote(ref)
    agent = agents.start()
    assert not agent.reconciler.readiness().ready
    await active(agent, eventually, 1)
    assert agent.reconciler.readiness().ready
    headers = {"Authorization": f"Bearer {KEY.get_secret_value()}"}
    body = {"model": str(ref), "prompt": [1, 2], "max_tokens": 2}
    async with httpx.AsyncClient(base_url=agent.endpoint(1), headers=headers) as client:
        answer = (await client.post("/v1/completions", json=body)).json()
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (answer["model"], answer["system_fingerprint"]) == (str(ref), str(ref))
    status = releases.registry.read_status("policy", "0")
    assert status["slots"][0]["version"] == str(ref)
    (slot,) = agent.reconciler.slots()
    assert (slot.max_sequences, slot.cache_tokens) == (agents.settings.max_num_seqs, CACHE_TOKENS)
    assert agent.metrics.get_sample_value("acemath_policy_slots", {"state": "active"}) == 1


@BOTH
async def test_before_the_first_promotion_it_waits_and_says_so(agents: Agents, eventually: Eventually) -> None:
    agent = agents.start()
    await eventually(lambda: "promote a release" in agent.reconciler.readiness().reason)
    assert agent.reconciler.slots() == []


async def test_a_swap_keeps_the_old_one_until_every_gateway_let_go(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    first = releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    releases.promote(releases.publish("b"))
    await active(agent, eventually, 2)
    await eventually(lambda: "no gateway has written" in agent.reason(1))
    assert agent.endpoint(1)  # who holds a lease still reaches it
    releases.gateway(generation=1)
    await eventually(lambda: "still routes by generation 1" in agent.reason(1))
    releases.gateway(generation=2, leases={first: 3})
    await eventually(lambda: "holds leases" in agent.reason(1))
    releases.gateway(generation=2, name="gw2", age=100)
    releases.gateway(generation=2)
    await eventually(lambda: "s old" in agent.reason(1))
    releases.gateway(generation=2, name="gw2")
    await eventually(lambda: agent.states()["1"] == "retired")
    assert agent.states() == {"1": "retired", "2": "active"}
    assert len(pids(agent)) == 1


async def test_an_old_server_with_work_is_not_stopped(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control, tmp_path: Path
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    control({"until": str(tmp_path / "go on")})
    headers = {"Authorization": f"Bearer {KEY.get_secret_value()}"}
    body = {"prompt": [1], "max_tokens": 60, "seed": 0, "stream": True}
    async with (
        httpx.AsyncClient(base_url=agent.endpoint(1), headers=headers) as client,
        client.stream("POST", "/v1/completions", json=body) as stream,
    ):
        control({})
        releases.promote(releases.publish("b"))
        releases.gateway(generation=2)
        await active(agent, eventually, 2)
        assert agent.states()["1"] == "draining"
        (tmp_path / "go on").touch()
        assert "data: [DONE]" in [line async for line in stream.aiter_lines()]
    await eventually(lambda: agent.states()["1"] == "retired")


async def test_rollback_while_draining_costs_no_start(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    before = pids(agent)
    releases.promote(releases.publish("b"))
    await active(agent, eventually, 2)
    releases.registry.rollback("default", by="test")
    await active(agent, eventually, 1)
    assert agent.states() == {"1": "active", "2": "draining"}
    assert pids(agent)[:1] == before


async def test_of_quick_promotions_only_the_last_is_brought_up(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    agents.environment["FAKE_VLLM_START_SECONDS"] = "0.5"
    b, c = releases.publish("b"), releases.publish("c")
    releases.promote(b)
    await eventually(lambda: agent.states().get("2") == "staging")
    releases.promote(c)
    most = 0

    def arrived() -> bool:
        nonlocal most
        most = max(most, len(pids(agent)))
        return agent.states().get("3") == "active"

    await eventually(arrived, what=agent.states)
    assert most == 2
    assert agent.states() == {"2": "retired", "1": "draining", "3": "active"}


@BOTH
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 200), "[header_malformed]"),
        (lambda d: (d / "tokenizer.json").unlink(), "[file_missing]"),
        (
            lambda d: (d / "config.json").write_text((d / "config.json").read_text().replace("64", "65")),
            "[checksum_mism",
        ),
    ],
    ids=["garbage", "file missing", "byte changed"],
)
async def test_a_bad_checkpoint_changes_a_status_line_only_and_a_good_one_follows(
    agents: Agents, releases: Releases, eventually: Eventually, spoil: Callable[[Path], object], reason: str
) -> None:
    first = releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    before, bad = pids(agent), releases.publish("b")
    _make_writable(releases.registry.path(bad))
    spoil(releases.registry.path(bad))
    releases.promote(bad)
    await eventually(lambda: agent.states().get("2") == "rejected", what=agent.states)
    assert reason in agent.reason(2)
    assert (agent.states()["1"], pids(agent)) == ("active", before)
    assert agent.reconciler.readiness().ready
    await asyncio.sleep(0.3)
    assert agent.states()["2"] == "rejected"  # and is not tried again
    async with releases.gateway_that(generation=1, release=first):
        releases.promote(releases.publish("c"))
        await active(agent, eventually, 3)


def _make_writable(directory: Path) -> None:
    directory.chmod(0o755)
    for file in directory.iterdir():
        file.chmod(0o644)


def canary(shift: float = 0.0) -> dict[str, object]:
    ids = [1, 5, 9, 3]
    cases = [{"token_ids": ids, "logprobs": [prompt_logprob(t) + shift for t in ids[1:]]}]
    return {"cases": cases, "dtype": "bfloat16"}


@BOTH
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (canary(-1.0), "log-probabilities differ by 1.000"),
        ({"cases": []}, "malformed"),
        ({**canary(), "surprise": 1}, "malformed"),
    ],
)
async def test_a_canary_that_does_not_fit_rejects(
    agents: Agents,
    releases: Releases,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    made: dict[str, object],
    reason: str,
) -> None:
    monkeypatch.setattr(registry_publish, "require_canary", lambda *given: None)  # an older publisher let it pass
    first = releases.promote(releases.publish("a", canary()))
    agent = agents.start()
    await active(agent, eventually, 1)
    async with releases.gateway_that(generation=1, release=first):
        releases.promote(releases.publish("b", made))
        await eventually(lambda: agent.states().get("2") == "rejected", what=agent.states)
        assert reason in agent.reason(2)
        await active(agent, eventually, 1)
        assert agent.states()["2"] == "rejected"


@BOTH
async def test_a_server_that_answers_as_another_version_never_serves(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    control({"model": "other@s1-000000000000"})
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await eventually(lambda: "answers as 'other@" in agent.reconciler.readiness().reason)
    control({})
    await active(agent, eventually, 1)  # nothing else serves, so it is tried again and again


@BOTH
async def test_a_version_that_cannot_start_is_rejected_beside_one_that_serves(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    first = releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    agents.environment["FAKE_VLLM_FAIL_START"] = "1"
    async with releases.gateway_that(generation=1, release=first):
        releases.promote(releases.publish("b"))
        await eventually(lambda: agent.states().get("2") == "rejected", what=agent.states)
        assert "ended with status 1: ValueError: the double was told to fail" in agent.reason(2)
        del agents.environment["FAKE_VLLM_FAIL_START"]
        await active(agent, eventually, 1)


@BOTH
async def test_closing_stops_every_server(agents: Agents, releases: Releases, eventually: Eventually) -> None:
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    pid = pids(agent)[0]
    agent.rounds.cancel()
    await agent.reconciler.close()
    assert not alive(pid)


async def test_a_cache_of_unknown_size_is_asked_for_again(
    agents: Agents, releases: Releases, eventually: Eventually, control: Control
) -> None:
    control({"cache": "None"})
    releases.promote(releases.publish("a"))
    agent = agents.start()
    await active(agent, eventually, 1)
    (slot,) = agent.reconciler.slots()
    assert slot.cache_tokens is None and "cache_tokens" not in slot.model_dump_json()
    control({})
    await eventually(lambda: agent.reconciler.slots()[0].cache_tokens == CACHE_TOKENS)
