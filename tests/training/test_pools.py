"""Drawing responses as AceMath does, and labelling candidates by their answer."""

import random
from pathlib import Path

import httpx
import pytest

from acemath_answers import AnswerJudge, Verdict
from acemath_prompts import PromptEncoder
from acemath_training.data import candidates, pools, sampling
from acemath_training.data.mixture import Mixture, Source
from acemath_training.data.pools import Candidate, Pool
from acemath_training.data.problem import Problem
from acemath_training.errors import DataError


def pool(right: int, wrong: int) -> Pool:
    """A pool whose right candidates score 0, 1, … and whose wrong ones score 0, 1, …"""
    made = [Candidate(text=f"right {score}", correct=True, score=score) for score in range(right)]
    made += [Candidate(text=f"wrong {score}", correct=False, score=score) for score in range(wrong)]
    return Pool(problem="p", answer="1", source="s", family="f", candidates=tuple(made))


@pytest.mark.parametrize(
    ("right", "wrong", "expected"), [(5, 5, (3, 3)), (1, 7, (1, 5)), (7, 1, (5, 1)), (2, 2, (2, 2)), (1, 1, (1, 1))]
)
def test_a_draw_is_as_balanced_as_the_pool_allows(right: int, wrong: int, expected: tuple[int, int]) -> None:
    drawn = pools.draw(pool(right, wrong), random.Random(0), responses=6, sampling="random", top_k=14)
    assert (sum(item.correct for item in drawn), sum(not item.correct for item in drawn)) == expected
    assert len({item.text for item in drawn}) == len(drawn)


def test_score_sorted_takes_the_best_right_and_the_worst_wrong() -> None:
    for seed in range(20):
        drawn = pools.draw(pool(6, 6), random.Random(seed), responses=6, sampling="score_sorted", top_k=3)
        assert {item.text for item in drawn} == {f"right {n}" for n in (3, 4, 5)} | {f"wrong {n}" for n in (0, 1, 2)}


def test_missing_scores_and_unmixed_pools_are_refused() -> None:
    with pytest.raises(DataError, match="right and wrong"):
        pools.draw(pool(3, 0), random.Random(0), responses=6, sampling="random", top_k=14)
    bare = pool(2, 2).model_copy(update={"candidates": tuple(Candidate(text=str(n), correct=n > 1) for n in range(4))})
    with pytest.raises(DataError, match="needs a score"):
        pools.draw(bare, random.Random(0), responses=6, sampling="score_sorted", top_k=14)


def test_pools_survive_a_file_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pools.jsonl"
    pools.append(path, pool(2, 1))
    assert pools.read(path) == [pool(2, 1)]
    with path.open("a") as out:
        out.write('{"problem": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        pools.read(path)


def test_a_torn_last_line_is_cut_off_and_a_torn_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "pools.jsonl"
    assert pools.resume(path) == 0
    pools.append(path, pool(2, 1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-1])  # the newline never came
    assert pools.resume(path) == 1
    pools.append(path, pool(1, 2))
    assert pools.read(path) == [pool(2, 1), pool(1, 2)]


def test_the_split_drops_unmixed_pools_and_overlaps_nowhere() -> None:
    made = [pool(2, 2).model_copy(update={"problem": str(n)}) for n in range(20)] + [pool(2, 0), pool(0, 2)]
    training, validation = pools.split(made, 0.25, seed=1)
    assert len(training) == 15
    assert len(validation) == 5
    assert not {item.problem for item in training} & {item.problem for item in validation}


def test_the_judge_reads_the_final_answer() -> None:
    with AnswerJudge() as answers:
        correct = sampling.judge(answers)
        assert correct("3 * 8 = 24\nThe answer is \\boxed{24}.", "24")
        assert correct("So \\boxed{\\frac{1}{2}}", "\\frac{1}{2}")
        assert not correct("The answer is \\boxed{25}.", "24")
        assert correct("I do not know", "24") is False


def test_a_comparison_without_a_verdict_labels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with AnswerJudge() as answers:
        monkeypatch.setattr(answers, "equivalent", lambda first, second: Verdict.TIMEOUT)
        assert sampling.judge(answers)("\\boxed{1}", "1") is None
    choice = {"text": "\\boxed{1}", "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5]}}
    verdicts = iter([None, True])
    made = candidates._pool(
        Problem("p", "s", "1", "word_problems", "f"), [choice, choice], lambda text, answer: next(verdicts)
    )
    assert [item.correct for item in made.candidates] == [True]


def test_sampling_continues_where_its_file_ends(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def complete(client: httpx.Client, body: dict[str, object]) -> list[dict[str, object]]:
        asked.append(int(str(body["seed"])))
        choice = {"text": "\\boxed{1}", "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5, -1.5]}}
        return [choice, {**choice, "finish_reason": "length"}]

    monkeypatch.setattr(candidates, "_complete", complete)
    stream = Mixture([Source(kind="word_problems", weight=1)], 2, tmp_path)
    encoder, out = PromptEncoder.from_directory(tiny_base), tmp_path / "pools.jsonl"

    def run(problems: int) -> int:
        return candidates.sample(
            stream, encoder, lambda text, answer: True, "http://127.0.0.1:9", out, problems=problems, first=0, seed=100
        )

    assert run(3) == 3
    assert run(5) == 5
    assert sorted(asked) == [100, 101, 102, 103, 104]
    found = pools.read(out)
    assert [item.problem for item in found] == [stream[index].problem for index in range(5)]
    assert [item.correct for item in found[0].candidates] == [True, False]
    assert found[0].candidates[0].score == -1.0
