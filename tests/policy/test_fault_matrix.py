"""The agent's part of the fault matrix: it verifies as the reward service does, and its server goes on as before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from policy.conftest import KEY, Agent, Agents, Releases
from policy.test_reconcile import active, canary, pids
from registry.damage import Damage, append, flip, replace_by_link, truncate, with_tensors

from acemath_registry import SigningKey

Eventually = Callable[..., Awaitable[None]]
WEIGHTS, NORM = "model.safetensors", "model.norm.weight"
FAULTS: list[tuple[str, Damage]] = [
    ("[truncated]", lambda d: truncate(d / WEIGHTS, -1)),
    ("[header_malformed]", lambda d: append(d / WEIGHTS)),
    ("[checksum_mismatch]", lambda d: flip(d / WEIGHTS)),
    ("[checksum_mismatch]", lambda d: flip(d / "tokenizer.json")),
    ("[checksum_mismatch]", lambda d: flip(d / "chat_template.jinja")),
    ("[tensor_names]", with_tensors(lambda t: t.pop(NORM))),
    ("[tensor_names]", with_tensors(lambda t: t.update(x=("F32", [1], b"1234")))),
    ("[tensor_names]", with_tensors(lambda t: t.update(x=t.pop(NORM)))),
    ("[tensor_shapes]", with_tensors(lambda t: t.update({NORM: ("BF16", [2, 1], b"1234")}))),
    ("[tensor_dtypes]", with_tensors(lambda t: t.update({NORM: ("F16", [2], b"1234")}))),
    ("[pickle]", lambda d: (d / "training_args.bin").write_bytes(b"\x80\x04N.")),
    ("[python_code]", lambda d: (d / "modeling_x.py").write_text("1")),
    ("[symlink]", replace_by_link("config.json")),
]


async def answer(agent: Agent) -> dict[str, Any]:
    """What the first version's server writes."""
    headers = {"Authorization": f"Bearer {KEY.get_secret_value()}"}
    body = {"prompt": [1, 2], "max_tokens": 20, "seed": 3}
    async with httpx.AsyncClient(base_url=agent.endpoint(1), headers=headers) as client:
        found = (await client.post("/v1/completions", json=body)).json()
    return {name: found[name] for name in ("model", "system_fingerprint", "choices", "usage")}


async def test_each_fault_changes_a_status_line_only(
    agents: Agents, releases: Releases, eventually: Eventually
) -> None:
    releases.promote(releases.publish("good", canary()))
    agent = agents.start()
    await active(agent, eventually, 1)
    before, served = await answer(agent), pids(agent)
    for step, (reason, damage) in enumerate(FAULTS, 2):
        bad = releases.publish(f"bad-{step}")
        damage(releases.registry.path(bad))
        releases.promote(bad)
        await eventually(
            lambda step=step: agent.states().get(str(step)) == "rejected", seconds=60, what=agent.reconciler.slots
        )
        assert reason in agent.reason(step), agent.reason(step)
        assert agent.states()["1"] == "active" and pids(agent) == served and await answer(agent) == before
    rejections = [entry for entry in releases.registry.log() if entry.event.value == "reject"]
    assert [reason in str(entry.why) for entry, (reason, _) in zip(rejections, FAULTS, strict=True)] == [True] * len(
        FAULTS
    )
    releases.promote(releases.publish("next", canary()))
    await active(agent, eventually, len(FAULTS) + 2)


async def test_where_keys_are_configured_only_what_they_signed_goes_in(
    agents: Agents, releases: Releases, eventually: Eventually, keys: tuple[SigningKey, SigningKey]
) -> None:
    ours, theirs = keys
    good = releases.publish("good", canary())
    releases.registry.sign(good, ours, by="ann")
    releases.promote(good)
    agent = agents.start(trusted=ours.trusted())
    await active(agent, eventually, 1)
    before, served = await answer(agent), pids(agent)
    faults: list[tuple[str, Damage]] = [
        ("[signature_missing]", lambda d: (d / "model.sig").unlink()),
        ("[signature_untrusted]", lambda d: (d / "model.sig").write_bytes(theirs.sign(bad, manifest(d)))),
        ("[signature_wrong]", lambda d: (d / "model.sig").write_bytes(ours.sign(good, manifest(d)))),
    ]
    for step, (reason, damage) in enumerate(faults, 2):
        bad = releases.publish(f"bad-{step}")
        releases.registry.sign(bad, ours, by="ann")
        damage(releases.registry.path(bad))
        releases.promote(bad)
        await eventually(lambda step=step: agent.states().get(str(step)) == "rejected", what=agent.reconciler.slots)
        assert reason in agent.reason(step), agent.reason(step)
        assert agent.states()["1"] == "active" and pids(agent) == served and await answer(agent) == before
    second = releases.publish("second", canary())
    releases.registry.sign(second, ours, by="ann")
    releases.promote(second)
    await active(agent, eventually, len(faults) + 2)


def manifest(directory: Path) -> bytes:
    return (directory / "manifest.json").read_bytes()
