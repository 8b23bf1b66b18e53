"""A perturbed list has one right solution; every other one ends elsewhere and follows from its mistake."""

import random
from pathlib import Path

import pytest

from acemath_training.data import perturbed, pools, splits, word_problems
from acemath_training.data.problem import box

TRAINING = splits.load().training(word_problems.SOURCE, sorted(word_problems.families()))


@pytest.mark.parametrize("family", TRAINING)
def test_every_training_family_can_go_wrong(family: str) -> None:
    for seed in range(10):
        pool = perturbed.draw(word_problems.families()[family], random.Random(seed))
        right, *wrong = pool.candidates
        assert right.correct and right.text.endswith(box(pool.answer))
        assert len(wrong) >= 2 and len({item.text for item in wrong}) == len(wrong)
        assert not any(item.correct or item.text.endswith(box(pool.answer)) for item in wrong)


def test_the_right_solution_is_the_one_that_training_sees() -> None:
    family = word_problems.families()["groups_less"]
    made = word_problems.draw(family, random.Random(7))
    pool = perturbed.draw(family, random.Random(7))
    assert (pool.problem, pool.answer, pool.candidates[0].text) == (made.problem, made.answer, made.solution)


def test_a_slip_goes_on_into_the_steps_behind_it() -> None:
    family = word_problems.families()["two_products"]
    facts = word_problems.facts(family, random.Random(1))
    lines, value = word_problems.solve(family.s, facts, slips={"y": 2})
    assert value == word_problems.solve(family.s, facts)[1] + 2
    assert lines[-1].endswith(f"= {value}.") or f"= {value} " in lines[-1]


def test_a_file_is_whole_and_holds_no_held_out_family(tmp_path: Path) -> None:
    path = tmp_path / "perturbed.jsonl"
    assert perturbed.write(path, problems=120, seed=3) == 120
    found = pools.read(path)
    assert len(found) == 120 and all(pool.mixed for pool in found)
    assert {pool.family for pool in found} <= set(TRAINING)
    again = tmp_path / "again.jsonl"
    perturbed.write(again, problems=120, seed=3)
    assert again.read_bytes() == path.read_bytes()
