"""A release whose models take less than those before it: promoted all the same, and said."""

from collections.abc import Callable
from pathlib import Path

import pytest
from registry.test_cli import Cli
from registry.tiny import METADATA

from acemath_registry import ModelRef, Registry
from acemath_registry.lengths import shorter_versions


def taking(source: Path, tokens: int) -> Path:
    """The checkpoint with another longest length."""
    (source / "tokenizer_config.json").write_text(f'{{"model_max_length": {tokens}}}')
    return source


@pytest.fixture
def policies(registry: Registry, make_checkpoint: Callable[..., Path]) -> list[ModelRef]:
    """Policies that take 32, 48 and 16 tokens."""
    sources = [taking(make_checkpoint(), tokens) for tokens in (32, 48, 16)]
    return [registry.publish(source, name="pol", kind="policy", metadata=METADATA) for source in sources]


@pytest.fixture
def releases(registry: Registry, policies: list[ModelRef], reward: ModelRef) -> list[str]:
    return [registry.create_release(policy, reward).id for policy in policies]


def test_only_what_takes_less_is_said(
    registry: Registry, policies: list[ModelRef], releases: list[str], make_checkpoint: Callable[..., Path]
) -> None:
    assert shorter_versions(registry, releases[0], releases[1]) == ()
    assert shorter_versions(registry, releases[0], releases[0]) == ()
    assert shorter_versions(registry, releases[1], releases[0]) == (
        f"{policies[0]} takes 32 tokens, {policies[1]} took 48: longer requests become 400s",
    )
    reward = registry.publish(taking(make_checkpoint("reward"), 8), name="rew", kind="reward", metadata=METADATA)
    both = registry.create_release(policies[2], reward)
    of_policy, of_reward = shorter_versions(registry, releases[1], both.id)
    assert str(policies[2]) in of_policy and of_reward.startswith(f"{reward} takes 8 tokens, rew@")
    assert of_reward.endswith("took 48: longer candidates may get no score")


def test_what_cannot_be_read_is_not_said(registry: Registry, policies: list[ModelRef], releases: list[str]) -> None:
    (registry.path(policies[1]) / "manifest.json").unlink()
    assert shorter_versions(registry, releases[1], releases[0]) == ()
    assert shorter_versions(registry, "r-0123456789ab", releases[0]) == ()


def test_the_commands_warn_and_go_on(registry: Registry, policies: list[ModelRef], releases: list[str]) -> None:
    cli = Cli(registry.root)
    first = cli.run("promote", "default", "--release", releases[1], "--new")
    assert (first.exit_code, first.stderr) == (0, "")
    said = f"warning: {policies[0]} takes 32 tokens, {policies[1]} took 48: longer requests become 400s\n"
    for arguments in (
        ("canary", "default", releases[0], "--share", "0.5"),
        ("promote", "default", "--release", releases[0]),
    ):
        told = cli.run(*arguments, "--json")
        assert (told.exit_code, told.stderr) == (0, said), arguments
    again = cli.run("promote", "default", "--again")
    assert (again.exit_code, again.stderr) == (0, "")
    assert cli.run("rollback", "default").stderr == ""
