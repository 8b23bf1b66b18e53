"""The canary in a manifest: its form is checked where it is published, by the types that the services read it with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry.damage import with_manifest
from registry.test_cli import Cli
from registry.tiny import CANARIES, METADATA, VOCABULARY

from acemath_policy.canary import Canary, CanaryMismatch
from acemath_registry import (
    CanaryGate,
    Gates,
    InvalidRequest,
    ModelKind,
    ModelRef,
    Registry,
    RejectReason,
    VerificationError,
)
from acemath_registry.canary_cases import canary_fault
from acemath_registry.documents import sha256_hex
from acemath_registry.gates import GateReason
from acemath_reward import selfcheck


def one(**case: Any) -> dict[str, Any]:
    return {"cases": [case], "dtype": "bfloat16"}


INF = float("inf")
POLICY: list[tuple[dict[str, Any], str]] = [
    ({"foo": 1}, "canary.cases: Field required"),
    ({"cases": [], "dtype": "bfloat16"}, "canary.cases: "),
    ({"cases": "x", "dtype": "bfloat16"}, "canary.cases: "),
    ({"cases": CANARIES["policy"]["cases"]}, "canary.dtype: Field required"),
    (CANARIES["policy"] | {"more": 1}, "canary.more: "),
    (one(token_ids=[1, 2, 3], logprobs=[-1.0]), "one value less"),
    (one(token_ids=[1], logprobs=[]), "canary.cases.0.token_ids"),
    (one(token_ids=["1", 2], logprobs=[-1.0]), "canary.cases.0.token_ids.0"),
    (one(token_ids=[1.0, 2], logprobs=[-1.0]), "canary.cases.0.token_ids.0"),
    (one(token_ids=[True, 2], logprobs=[-1.0]), "canary.cases.0.token_ids.0"),
    (one(token_ids=[1, -2], logprobs=[-1.0]), "canary.cases.0.token_ids.1"),
    (one(token_ids=[1, 2], logprobs=["-1.0"]), "canary.cases.0.logprobs.0"),
    (one(token_ids=[1, 2], logprobs=[1.0]), "canary.cases.0.logprobs.0"),
    (one(token_ids=[1, 2], logprobs=[-INF]), "finite"),
    (CANARIES["reward"], "canary.cases.0.logprobs: Field required"),
]
REWARD: list[tuple[dict[str, Any], str]] = [
    ({"cases": [], "dtype": "bfloat16"}, "canary.cases: "),
    (one(token_ids=[], score=1.0), "canary.cases.0.token_ids"),
    (one(token_ids=[1], score="1.0"), "canary.cases.0.score"),
    (one(token_ids=[1], score=INF), "finite"),
    (one(token_ids=[1]), "canary.cases.0.score: Field required"),
    (CANARIES["policy"], "canary.cases.0.score: Field required"),
]
ALL = [("policy", *case) for case in POLICY] + [("reward", *case) for case in REWARD]
BEYOND = [
    ("policy", one(token_ids=[1, VOCABULARY], logprobs=[-1.0])),
    ("reward", one(token_ids=[VOCABULARY], score=1.0)),
]


@pytest.mark.parametrize(
    ("kind", "canary", "said"), [*ALL, *((*case, "is not below the vocab_size of 512") for case in BEYOND)]
)
def test_what_nothing_can_be_compared_with_is_not_published(
    registry: Registry, make_checkpoint: Callable[..., Path], kind: str, canary: dict[str, Any], said: str
) -> None:
    metadata = METADATA.model_copy(update={"canary": canary})
    with pytest.raises(InvalidRequest, match=said) as caught:
        registry.publish(make_checkpoint(kind), name="m", kind=kind, metadata=metadata)
    assert caught.value.param == "canary" and registry.versions() == []


@pytest.mark.parametrize(("kind", "canary", "said"), ALL)
def test_the_service_refuses_the_same(kind: str, canary: dict[str, Any], said: str) -> None:
    reads = {"policy": (Canary.of, CanaryMismatch), "reward": (selfcheck._parse, selfcheck.CanaryMismatch)}
    read, error = reads[kind]
    with pytest.raises(error, match="malformed"):
        read(canary)
    read(CANARIES[kind])


@pytest.mark.parametrize("kind", list(ModelKind))
def test_a_good_one_passes_with_whole_numbers_and_with_its_conversation(kind: ModelKind) -> None:
    values: dict[str, Any] = {"logprobs": [0, -1]} if kind is ModelKind.POLICY else {"score": 3}
    turns = [{"role": "user", "content": "2+2"}]
    assert canary_fault(kind, one(messages=turns, token_ids=[0, 511, 2], **values), VOCABULARY) is None
    wrong = [{"role": "tool", "content": "2+2"}]
    assert "role" in str(canary_fault(kind, one(messages=wrong, token_ids=[0, 511, 2], **values), VOCABULARY))


def test_a_gate_takes_nothing_for_a_canary_that_an_older_publisher_let_pass(
    registry: Registry, policy: ModelRef, make_checkpoint: Callable[..., Path]
) -> None:
    metadata = METADATA.model_copy(update={"canary": CANARIES["reward"]})
    reward = registry.publish(make_checkpoint("reward"), name="rew", kind="reward", metadata=metadata)
    with_manifest(lambda m: m.update(canary={"foo": 1}))(registry.path(policy))
    release = registry.create_release(policy, reward)
    assert release.policy.manifest_sha256 == sha256_hex((registry.path(policy) / "manifest.json").read_bytes())
    registry.set_gates("default", Gates(canary=CanaryGate.DECLARED), by="ann")
    (refusal,) = registry.ask_gates("default", release.id)
    assert refusal.reason is GateReason.CANARY_MISSING and "canary.cases: Field required" in refusal.detail
    with pytest.raises(VerificationError, match=r"canary\.cases: Field required") as caught:
        registry.verify(policy)
    assert caught.value.reason is RejectReason.MANIFEST_MALFORMED


def test_publishing_without_one_says_so(
    registry: Registry, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("--name", "pol", "--kind", "policy", "--licence", "MIT", "--step")
    bare = Cli(registry.root).run("publish", str(make_checkpoint()), *options, "1")
    said = "no canary: replicas cannot tell whether their engine computes what was trained; `acemath train canary"
    assert bare.exit_code == 0 and bare.stderr.splitlines()[-1].startswith(said)
    metadata = tmp_path / "metadata.json"
    metadata.write_text(METADATA.model_copy(update={"canary": CANARIES["policy"]}).model_dump_json())
    told = Cli(registry.root).run("publish", str(make_checkpoint()), *options, "2", "--metadata", str(metadata))
    assert (told.exit_code, told.stderr) == (0, "")
