"""What the scores of one reward version mean: made by `acemath eval calibrate`, read by the gateway."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from acemath_core.settings import SettingsError
from acemath_core.wire import Wire


class Calibration(Wire):
    """How to read the raw logits of one reward version, fitted on candidates whose correctness is known.

    Attributes:
        reward: the version that it is of, name@version; the logits of another have another scale.
        temperature: of the softmax that weighs votes.
        slope: P(right | score) = sigmoid(slope * score + intercept) over all problems (Platt 1999); None when
            higher scores were not more often right.
        intercept: see above; None with `slope`.
        problems: with right and wrong candidates, on which all of it was fitted.
    """

    reward: str = Field(min_length=1)
    temperature: float = Field(gt=0.0)
    slope: float | None = Field(gt=0.0)
    intercept: float | None
    problems: int = Field(ge=1)

    @model_validator(mode="after")
    def _both_or_none(self) -> Calibration:
        if (self.slope is None) != (self.intercept is None):
            raise ValueError("give slope and intercept, or null for both")
        return self

    def probability(self, score: float) -> float | None:
        """How often a candidate with this score is right; None when that is not known."""
        if self.slope is None or self.intercept is None:
            return None
        logit = self.slope * score + self.intercept
        small = math.exp(-abs(logit))
        return (1.0 if logit >= 0 else small) / (1.0 + small)


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        SettingsError: it cannot be read or is none.
    """
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"calibration file {path}: {error.strerror}; make one with: acemath eval calibrate"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise SettingsError(
            f"calibration file {path}: {where}: {first['msg']}; make it again with: acemath eval calibrate"
        ) from error
