"""`/admin/v1/releases` over HTTP: a channel is promoted, tried again and rolled back, once each."""

import asyncio
import errno
import threading

import pytest
from gateway.test_admin_api import AS_ADMIN, _gateway
from registry.tiny import METADATA, write_checkpoint

from acemath_core.errors import Unavailable
from acemath_gateway.promotion import ChannelChanges
from acemath_registry import CanaryGate, Gates, Registry, Release
from acemath_registry.stores import disk
from doubles.gateway_app import gateway_client

DEFAULT = "/admin/v1/releases/default"


@pytest.fixture
def registry(tmp_path):
    on_disk = Registry(tmp_path / "registry")
    refs = [
        on_disk.publish(write_checkpoint(tmp_path / kind, kind), name=f"small-{kind}", kind=kind, metadata=METADATA)
        for kind in ("policy", "reward")
    ]
    release = on_disk.create_release(*refs).id
    on_disk.promote("default", release, expected_generation=None, by="tests")
    return on_disk, release


async def test_a_channel_is_promoted_by_compare_and_set_and_rolled_back(registry):
    on_disk, release = registry
    at = on_disk.channel("default").generation
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        new = await http.post(
            "/admin/v1/releases/canary", json={"release": release, "expected_generation": 0}, headers=AS_ADMIN
        )
        assert new.status_code == 200 and new.json()["generation"] == 1 and new.json()["by"] == "admin API, admin-file"
        stale = await http.post(
            "/admin/v1/releases/default", json={"release": release, "expected_generation": at + 1}, headers=AS_ADMIN
        )
        assert stale.status_code == 409 and stale.json()["error"]["param"] == "expected_generation"
        assert stale.headers["x-should-retry"] == "false"
        nothing = await http.post("/admin/v1/releases/canary/rollback", json={}, headers=AS_ADMIN)
        assert nothing.status_code == 409
        unknown = {"release": "r-000000000000"}
        assert (await http.post("/admin/v1/releases/default", json=unknown, headers=AS_ADMIN)).status_code == 404
        for channel in ("..", "a b", ".hidden"):
            answer = await http.post(f"/admin/v1/releases/{channel}", json=unknown, headers=AS_ADMIN)
            assert answer.status_code in (400, 404), channel
    assert on_disk.channel("canary").release == release


async def test_a_name_with_a_typo_begins_no_channel(registry):
    on_disk, release = registry
    on_disk.promote("spare", release, expected_generation=0, by="tests")
    typo = "/admin/v1/releases/defualt"
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        for body in ({}, {"expected_generation": 1}, {"expected_generation": None}, {"again": True}):
            answer = await http.post(typo, json={"release": release} | body, headers=AS_ADMIN)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (404, "not_found", "channel"), body
            said = "channel 'defualt' does not exist (those that do: default, spare)"
            assert error["message"].startswith(said) and '"expected_generation": 0' in error["message"]
        assert (await http.post(f"{typo}/rollback", json={}, headers=AS_ADMIN)).status_code == 404
        begun = await http.post(f"{DEFAULT}-2", json={"release": release, "expected_generation": 0}, headers=AS_ADMIN)
        assert (begun.status_code, begun.json()["generation"]) == (200, 1)
    assert on_disk.channel_names() == ["default", "default-2", "spare"]


async def test_the_schema_says_how_a_channel_begins(registry):
    on_disk, _ = registry
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    post = paths["/admin/v1/releases/{channel}"]["post"]
    assert "there is no such channel" in post["responses"]["404"]["description"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert "without it the channel must exist" in schema["properties"]["expected_generation"]["description"]


async def test_a_rollback_points_at_the_release_before(registry):
    on_disk, first = registry
    one = on_disk.release(first)
    second = Release(policy=one.policy, reward=one.reward.model_copy(update={"manifest_sha256": "0" * 64}))
    path = on_disk.root / "releases" / f"{second.id}.json"
    path.write_bytes(second.encoded())
    channel = on_disk.root / "channels" / "default.json"
    now = on_disk.channel("default")
    changed = {"release": second.id, "release_sha256": second.sha256, "generation": 7, "previous": first}
    channel.write_text(now.model_copy(update=changed).model_dump_json())
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        back = await http.post("/admin/v1/releases/default/rollback", json={"expected_generation": 7}, headers=AS_ADMIN)
    assert back.status_code == 200 and (back.json()["release"], back.json()["generation"]) == (first, 8)
    assert back.json()["previous"] == second.id


async def test_what_a_gate_refuses_is_a_conflict_with_its_reason(registry):
    on_disk, release = registry
    on_disk.set_gates("canary", Gates(canary=CanaryGate.DECLARED), by="tests")
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        refused = await http.post(
            "/admin/v1/releases/canary", json={"release": release, "expected_generation": 0}, headers=AS_ADMIN
        )
    error = refused.json()["error"]
    assert refused.status_code == 409 and (error["code"], error["param"]) == ("gate_refused", "release")
    assert "was published without a canary" in error["message"] and refused.headers["x-should-retry"] == "false"
    assert "canary" not in on_disk.channel_names()


async def test_a_registry_that_cannot_be_written_is_said_to_be(registry, monkeypatch):
    on_disk, release = registry

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(disk, "exclusive_lock", refuse)
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        refused = await http.post("/admin/v1/releases/default", json={"release": release}, headers=AS_ADMIN)
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "registry_read_only"
    assert "acemath registry promote" in refused.json()["error"]["message"]


@pytest.fixture
def two(registry, tmp_path):
    """The registry and two releases, the second one current since generation 2."""
    on_disk, first = registry
    source = write_checkpoint(tmp_path / "next", "policy", mark="next")
    policy = on_disk.publish(source, name="small-policy", kind="policy", metadata=METADATA)
    second = on_disk.create_release(policy, on_disk.release(first).reward.ref).id
    on_disk.promote("default", second, expected_generation=None, by="tests")
    return on_disk, first, second


async def test_the_current_release_changes_nothing_unless_it_is_to_be_tried_again(two):
    on_disk, first, second = two
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:
        same = (await http.post(DEFAULT, json={"release": second}, headers=AS_ADMIN)).json()
        assert (same["changed"], same["generation"]) == (False, 2)
        again = (await http.post(DEFAULT, json={"release": second, "again": True}, headers=AS_ADMIN)).json()
        assert (again["changed"], again["generation"], again["previous"]) == (True, 3, first)
        assert (await http.post(DEFAULT, json={"release": second, "again": 1}, headers=AS_ADMIN)).status_code == 400
    assert on_disk.channel("default").generation == 3


async def test_a_rollback_names_what_is_to_go_and_is_not_undone_by_the_next(two):
    on_disk, first, second = two
    path = f"{DEFAULT}/rollback"
    async with gateway_client(_gateway(registry_root=on_disk.root)) as http:

        async def refused(**body):
            answer = await http.post(path, json=body, headers=AS_ADMIN)
            assert answer.status_code == 409 and answer.headers["x-should-retry"] == "false", answer.text
            return answer.json()["error"]

        assert second in (await refused(**{"from": first}))["message"]
        back = await http.post(path, json={"from": second}, headers=AS_ADMIN)
        assert (back.status_code, back.json()["release"], back.json()["changed"]) == (200, first, True)
        assert (await refused(**{"from": second}))["param"] == "from"
        assert "by a rollback already" in (await refused())["message"]
        for wrong in ("second", "", None, 3):
            answer = await http.post(path, json={"from": wrong, "expected_generation": 9}, headers=AS_ADMIN)
            assert answer.status_code == (409 if wrong is None else 400), answer.text
        assert (await http.post(path, json={"from_release": second}, headers=AS_ADMIN)).status_code == 400
        forth = await http.post(path, json={"expected_generation": 3}, headers=AS_ADMIN)
        assert (forth.status_code, forth.json()["release"]) == (200, second)


class Hanging:
    """A registry whose mount hangs until the test ends."""

    def __init__(self):
        self.asked, self.ends = 0, threading.Event()

    def rollback(self, channel, **given):
        self.asked += 1
        self.ends.wait(30)


async def test_a_change_that_may_still_take_place_is_not_asked_for_again():
    hanging = Hanging()
    changes = ChannelChanges(hanging, seconds=0.2)
    try:
        with pytest.raises(Unavailable, match="may still take place") as begun:
            await changes.rollback("default", expected_generation=None, by="x")
        assert begun.value.should_retry is False, "a retry of a rollback that took place would undo it"
        with pytest.raises(Unavailable, match="nothing was changed") as waiting:
            await changes.rollback("default", expected_generation=None, by="x")
        assert waiting.value.should_retry is None and waiting.value.retry_after and hanging.asked == 1
    finally:
        hanging.ends.set()
        await asyncio.sleep(0.05)
