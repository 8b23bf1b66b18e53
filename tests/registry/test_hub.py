"""A model of the hub becomes a version: by commit, checked, without code. The hub is a double, its client is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acemath_core.errors import ServiceError
from acemath_registry import (
    DiskFull,
    InvalidRequest,
    ModelRef,
    NotFound,
    PublishMetadata,
    Registry,
    RejectReason,
    StorageError,
    VerificationError,
)
from acemath_registry.hub import HubCheckpoint
from doubles.hub import Hub, serve_hub

REPO = "nvidia/AceMath-RM"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serve_hub() as made:
        yield made


@pytest.fixture
def files(make_checkpoint: Callable[..., Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in make_checkpoint("reward").iterdir()}


def described(found: HubCheckpoint) -> PublishMetadata:
    return PublishMetadata(
        step=0, licence=found.licence or "unknown", base_model=found.source, training={"hub": found.record()}
    )


def publish(registry: Registry, hub: Hub, source: str, kind: str = "reward", **more: Any) -> ModelRef:
    return registry.publish_from_hub(source, name="rew", kind=kind, describe=described, endpoint=hub.url, **more)


def with_code(files: dict[str, bytes]) -> dict[str, bytes]:
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "modeling_x.X"}}
    return files | {
        "config.json": json.dumps(config).encode(),
        "modeling_x.py": b"import os",
        "pytorch_model.bin": b"\x80\x04N.",
        ".gitattributes": b"*.bin filter=lfs",
        "onnx/model.onnx": b"x",
    }


def test_a_branch_is_resolved_and_only_what_a_version_may_hold_is_fetched(
    registry: Registry, hub: Hub, files: dict[str, bytes]
) -> None:
    commit = hub.push(REPO, with_code(files))
    heard: list[tuple[str, int, int]] = []
    ref = publish(registry, hub, f"hf://{REPO}", by="ann", progress=lambda *args: heard.append(args))
    manifest = registry.verify(ref)
    assert manifest.base_model == f"hf://{REPO}@{commit}" and manifest.licence == "apache-2.0"
    assert manifest.training["hub"] == {
        "source": f"hf://{REPO}@{commit}",
        "skipped": [".gitattributes", "modeling_x.py", "onnx/model.onnx", "pytorch_model.bin"],
        "auto_map_dropped": ["config.json"],
    }
    assert sorted(name for _, name in hub.downloaded) == sorted(files)
    assert hub.downloaded[0] == (commit, "config.json"), "the architecture is looked at before the weights"
    directory = registry.path(ref)
    assert "auto_map" not in json.loads((directory / "config.json").read_text())
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not list((registry.root / "staging").iterdir())
    downloads = [entry for entry in heard if entry[0] == "downloading"]
    assert downloads[0][1] == 0 and downloads[-1][1] == downloads[-1][2] > 0
    assert registry.log()[-1].by == "ann"


def test_a_commit_stays_what_it_is_when_its_branch_moves(registry: Registry, hub: Hub, files: dict[str, bytes]) -> None:
    first = hub.push(REPO, files)
    other = json.dumps(json.loads(files["config.json"]) | {"mark": "other"}).encode()
    second = hub.push(REPO, files | {"config.json": other})
    by_commit, by_branch = publish(registry, hub, f"hf://{REPO}@{first}"), publish(registry, hub, f"hf://{REPO}@main")
    assert by_commit != by_branch
    assert [str(registry.manifest(ref).base_model)[-40:] for ref in (by_commit, by_branch)] == [first, second]
    assert publish(registry, hub, f"hf://{REPO}@{first}") == by_commit


def test_an_architecture_that_is_not_served_costs_no_weights(
    registry: Registry, hub: Hub, files: dict[str, bytes]
) -> None:
    config = json.loads(files["config.json"]) | {"architectures": ["MistralForCausalLM"]}
    hub.push(REPO, files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(VerificationError) as caught:
        publish(registry, hub, f"hf://{REPO}")
    assert caught.value.reason is RejectReason.ARCHITECTURE
    assert [name for _, name in hub.downloaded] == ["config.json"]
    assert registry.versions() == [] and not list((registry.root / "staging").iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_not_what_the_hub_says_is_refused(
    registry: Registry, hub: Hub, files: dict[str, bytes], name: str
) -> None:
    hub.push(REPO, files)
    hub.spoilt.add(name)
    with pytest.raises(VerificationError) as caught:
        publish(registry, hub, f"hf://{REPO}")
    assert (caught.value.reason, caught.value.file) == (RejectReason.CHECKSUM_MISMATCH, name)
    hub.spoilt.clear()
    publish(registry, hub, f"hf://{REPO}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.pop("model.safetensors"), RejectReason.FILE_MISSING),
        (lambda f: f.pop("config.json"), RejectReason.FILE_MISSING),
        (lambda f: f.pop("chat_template.jinja"), RejectReason.CHAT_TEMPLATE),
        (lambda f: f.update({"model.safetensors": f["model.safetensors"][:-4]}), RejectReason.TRUNCATED),
    ],
)
def test_a_model_that_cannot_be_a_version(
    registry: Registry,
    hub: Hub,
    files: dict[str, bytes],
    change: Callable[[dict[str, bytes]], object],
    reason: RejectReason,
) -> None:
    change(files)
    hub.push(REPO, files)
    with pytest.raises(VerificationError) as caught:
        publish(registry, hub, f"hf://{REPO}")
    assert caught.value.reason is reason and registry.versions() == []


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        ("hf://absent/model", NotFound, "the hub has no hf://absent/model"),
        (f"hf://{REPO}@v9", NotFound, "check it"),
        ("hf://gated/model", NotFound, "HF_TOKEN"),
        (f"hf://{REPO}@broken", StorageError, "try again later"),
        ("hf://one-part", InvalidRequest, "write hf://owner/name@revision"),
        ("hf://a/b/c", InvalidRequest, "write hf://owner/name@revision"),
        ("hf://a/..--b", InvalidRequest, "is no model of the hub"),
    ],
)
def test_what_the_hub_does_not_give(
    registry: Registry, hub: Hub, files: dict[str, bytes], source: str, error: type[ServiceError], sentence: str
) -> None:
    hub.push(REPO, files)
    hub.push(REPO, files | {"README.md": b"x"}, revision="broken")
    hub.broken.add("README.md")
    hub.push("gated/model", files)
    hub.gated.add("gated/model")
    with pytest.raises(error, match=sentence):
        publish(registry, hub, source)
    assert registry.versions() == []


def test_no_hub_no_space_and_no_permission_are_told_apart(
    registry: Registry, hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(REPO, files)
    with monkeypatch.context() as patch, pytest.raises(DiskFull):
        patch.setattr("acemath_registry.durable._RESERVE_BYTES", 10**18)
        publish(registry, hub, f"hf://{REPO}")
    assert hub.downloaded == []
    with monkeypatch.context() as patch, pytest.raises(InvalidRequest, match="unset it"):
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        publish(registry, hub, f"hf://{REPO}")
    hub.url = "http://127.0.0.1:9"
    with pytest.raises(StorageError, match=r"at http://127.0.0.1:9 \(ConnectError\); check the network and"):
        publish(registry, hub, f"hf://{REPO}")


def test_the_command(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.push(REPO, with_code(files))
    root = tmp_path / "registry"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", "from acemath_registry.cli import app; app()", "publish", f"hf://{REPO}"]
    options = ["--name", "rew", "--kind", "reward", "--root", str(root), "--json", "--step", "3"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = Registry(root).verify(ModelRef.parse(json.loads(done.stdout)["model"]))
    assert (manifest.step, manifest.licence, manifest.base_model) == (3, "apache-2.0", f"hf://{REPO}@{commit}")


def test_what_needs_no_weights_is_checked_before_they_are_downloaded(
    hub: Hub, files: dict[str, bytes], registry: Registry
) -> None:
    hub.licence = None
    hub.push(REPO, files)
    with pytest.raises(InvalidRequest, match="model name"):
        registry.publish_from_hub(f"hf://{REPO}", name="a/b", kind="reward", describe=described, endpoint="http://[")
    with pytest.raises(InvalidRequest, match="kind of model"):
        registry.publish_from_hub(f"hf://{REPO}", name="rew", kind="judge", describe=described, endpoint="http://[")

    def refuse(found: HubCheckpoint) -> PublishMetadata:
        assert (found.repo, found.licence) == (REPO, None)
        raise InvalidRequest("licence is missing", param="licence")

    with pytest.raises(InvalidRequest, match="licence is missing"):
        registry.publish_from_hub(f"hf://{REPO}", name="rew", kind="reward", describe=refuse, endpoint=hub.url)
    assert hub.downloaded == [] and registry.versions() == []
