from __future__ import annotations

from collections.abc import Iterator

import pytest

from acemath_answers import AnswerJudge, WorkerLimits


@pytest.fixture(scope="session")
def judge() -> Iterator[AnswerJudge]:
    """One judge for the whole session, patient enough for a busy machine: its verdicts can be relied on."""
    with AnswerJudge(WorkerLimits(workers=3, timeout_s=20.0)) as judge:
        assert judge.equivalent("x+1", "1+x", deadline_s=60).is_equal
        yield judge


@pytest.fixture(scope="session")
def hasty_judge() -> Iterator[AnswerJudge]:
    """One that gives a comparison a second: for answers that are expected to hang."""
    with AnswerJudge(WorkerLimits(workers=2, timeout_s=1.0)) as judge:
        yield judge
