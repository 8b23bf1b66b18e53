from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_core.calibration import Calibration, read_calibration
from acemath_core.settings import SettingsError

WHOLE = Calibration(reward="r@s1", temperature=0.7, slope=0.5, intercept=1.0, problems=3)


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(WHOLE.model_dump_json())
    assert read_calibration(path) == WHOLE


@given(st.floats(-1e308, 1e308))
def test_a_probability_is_one_and_grows_with_the_score(score: float) -> None:
    probability = WHOLE.probability(score)
    assert probability is not None and 0.0 <= probability <= 1.0
    above = WHOLE.probability(math.nextafter(score, math.inf)) or 0.0
    assert probability <= above + 2 * math.ulp(above)  # two scores next to each other may round the other way


def test_known_probabilities() -> None:
    assert WHOLE.probability(-2.0) == 0.5
    assert WHOLE.probability(0.0) == pytest.approx(1 / (1 + math.exp(-1)))
    unknown = Calibration(reward="r@s1", temperature=1.0, slope=None, intercept=None, problems=1)
    assert unknown.probability(5.0) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "reward"),
        ("not json", "the document"),
        (WHOLE.model_dump_json().replace("0.7", "0.0"), "temperature"),
        (WHOLE.model_dump_json().replace("0.5", "-0.5"), "slope"),
        (WHOLE.model_dump_json().replace("0.5", "null"), "slope and intercept"),
    ],
)
def test_a_file_that_is_none_says_what_is_wrong_and_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said) as raised:
        read_calibration(path)
    assert "acemath eval calibrate" in str(raised.value)


def test_a_missing_file_is_an_error_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_calibration(tmp_path / "none.json")
