"""Every shipped job file loads, says what the paper says, and an unknown key is an error."""

from pathlib import Path

import pytest
import yaml

from acemath_training.embedded import make
from acemath_training.errors import ConfigError
from acemath_training.jobs import config as configs

SHIPPED = Path(__file__).resolve().parents[2] / "training" / "configs"
KINDS = {
    "sft": configs.SftConfig,
    "reward_model": configs.RewardConfig,
    "candidates": configs.CandidatesConfig,
}


def load(path: Path) -> configs.SftConfig | configs.RewardConfig | configs.CandidatesConfig:
    """A shipped file by the job it names."""
    return configs.load(path, KINDS[yaml.safe_load(path.read_text())["job"]])  # type: ignore[type-var]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_loads(path: Path) -> None:
    assert load(path).job == yaml.safe_load(path.read_text())["job"]


@pytest.mark.parametrize(
    ("name", "rate"),
    [("general-sft-stage1", 5e-6), ("general-sft-stage2", 5e-6), ("math-sft", 3e-6), ("reward-model", 5e-6)],
)
def test_the_papers_hyperparameters(name: str, rate: float) -> None:
    config = load(SHIPPED / "acemath-7b" / f"{name}.yaml")
    assert not isinstance(config, configs.CandidatesConfig)
    training, gpus = config.training, 8
    batch = training.rows_per_device * training.gradient_accumulation * gpus
    assert training.learning_rate == rate
    assert config.data.max_length == 4096
    assert (batch, training.epochs) == ((256, 2) if config.job == "reward_model" else (128, 1))


def test_an_unknown_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    content = yaml.safe_load((SHIPPED / "embedded" / "sft-1.yaml").read_text())
    content["training"]["learning_rat"] = 1
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"training\.learning_rat"):
        configs.load(path, configs.SftConfig)


@pytest.mark.parametrize("change", [{"max_steps": 5, "epochs": 1}, {"max_steps": None, "epochs": None}])
def test_a_run_has_one_length(change: dict[str, int | None], tmp_path: Path) -> None:
    content = yaml.safe_load((SHIPPED / "embedded" / "sft-1.yaml").read_text())
    content["training"] |= change
    path = tmp_path / "length.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="exactly one"):
        configs.load(path, configs.SftConfig)


def test_the_embedded_stages_follow_one_another() -> None:
    done: list[str] = []
    for name in make.STEPS:
        if name == "perturbed":
            continue
        config = load(SHIPPED / "embedded" / f"{name}.yaml")
        if isinstance(config, configs.CandidatesConfig):
            assert config.policy in done
        else:
            parent = config.model.parent
            assert (parent is None) == (name == "sft-1")
            assert parent is None or parent.name in done
            assert config.stage == name
        done.append(name)
