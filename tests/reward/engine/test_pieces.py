"""A score has the same bits whether its candidate came whole or in any pieces, beside whatever else is computed."""

from __future__ import annotations

import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reward.engine.drawing import CELL, OWN, PROMPTS, alone, engine_of, step

from acemath_reward.engine.device import place
from acemath_reward.engine.live import GridSession
from acemath_reward.engine.model import RewardEngine, load_engine
from acemath_reward.ports import Cell, PromptGroup, TokenIds

CASES = [("llama", "bfloat16"), ("llama", "float32"), ("qwen2", "bfloat16"), ("qwen2", "float32")]


@dataclass
class Writer:
    """A session whose candidates are still to be handed over."""

    prompt: int
    session: GridSession
    left: dict[int, list[TokenIds]]
    own: dict[int, int]
    scores: dict[int, float] = field(default_factory=dict)

    def hand_over(self, which: int) -> None:
        open_ones = sorted(self.left)
        candidate = open_ones[which % len(open_ones)]
        if self.left[candidate]:
            self.session.extend(candidate, self.left[candidate].pop(0))
        else:
            del self.left[candidate]
            self.session.finish(candidate)


def pieces(own: TokenIds, cuts: list[int]) -> list[TokenIds]:
    edges = sorted({0, len(own), *(cut % len(own) for cut in cuts)})
    return [own[a:b] for a, b in itertools.pairwise(edges)]


def random_part(draw: random.Random, sessions: list[Writer]) -> list[tuple[Writer, int | None, Cell]]:
    """Of what is due some beginning of each candidate's cells, in any order of candidates and sessions."""
    chosen = []
    for writer in sessions:
        due = writer.session.due()
        prompt = [part for part in due if part.candidate is None]
        cells = list(prompt)
        for candidate in {part.candidate for part in due if part.candidate is not None}:
            of_it = [part for part in due if part.candidate == candidate]
            cells += of_it[: draw.randint(0, len(of_it))]
        chosen += [(writer, part.candidate, part.cell) for part in cells]
    return chosen


def compute(engine: RewardEngine, chosen: list[tuple[Writer, int | None, Cell]], mates: list[PromptGroup]) -> None:
    whole = [cell for group in mates for cell in engine.plan(group)]
    values = engine.forward([*whole, *(cell for *_, cell in chosen)])[len(whole) :]
    for (writer, candidate, cell), value in zip(chosen, values, strict=True):
        assert (value is not None) == cell.scored
        if candidate is not None and value is not None:
            writer.scores[candidate] = value


deliveries = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.lists(
            st.tuples(st.integers(0, len(OWN) - 1), st.lists(st.integers(0, 149), max_size=6)), min_size=1, max_size=4
        ),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(delivery=deliveries, seed=st.integers(0, 2**32))
def test_pieces_in_any_order_give_the_bits_of_one_piece(
    kind: str,
    dtype: str,
    request: pytest.FixtureRequest,
    delivery: list[tuple[int, list[tuple[int, list[int]]]]],
    seed: int,
) -> None:
    draw = random.Random(seed)  # order and timing: too many small choices to be drawn one by one
    directory: Path = request.getfixturevalue(kind)
    engine, truth = engine_of(directory, dtype), alone(directory, dtype)
    writers = [
        Writer(
            prompt,
            engine.open(PROMPTS[prompt]),
            {index: pieces(OWN[own], cuts) for index, (own, cuts) in enumerate(candidates)},
            {index: own for index, (own, _) in enumerate(candidates)},
        )
        for prompt, candidates in delivery
    ]
    while any(writer.left or writer.session.due() for writer in writers):
        for writer in writers:
            for _ in range(draw.randint(0, 4)):
                if writer.left:
                    writer.hand_over(draw.randint(0, 3))
        mates = [PromptGroup(PROMPTS[3], OWN[:3])] if draw.random() < 0.3 else []
        compute(engine, random_part(draw, writers), mates)
    for writer in writers:
        assert writer.scores == {index: truth[writer.prompt, own] for index, own in writer.own.items()}
        writer.session.close()
    assert engine.live_bytes == 0


@pytest.mark.parametrize("length", [1, CELL - 1, CELL, CELL + 1, 3 * CELL, 3 * CELL + 5])
def test_after_the_last_token_at_most_one_cell_is_left(llama: Path, length: int) -> None:
    engine = engine_of(llama)
    session = engine.open(PROMPTS[4])
    own = OWN[9][:length]
    for token in own:
        session.extend(0, [token])
        step(engine, [session])
    assert session.due() == []
    session.finish(0)
    (last,) = session.due()
    assert last.cell.scored and last.cell.tokens <= CELL
    assert step(engine, [session])[0][0] == engine.score([PromptGroup(PROMPTS[4], (own,))])[0][0]
    session.close()


def test_a_pass_mixes_whole_groups_and_sessions(llama: Path) -> None:
    engine, truth = engine_of(llama), alone(llama, "bfloat16")
    session = engine.open(PROMPTS[2])
    session.extend(7, OWN[8][:50])
    group = PromptGroup(PROMPTS[3], OWN)
    cells = [*engine.plan(group), *(part.cell for part in session.due())]
    assert [value for value in engine.forward(cells) if value is not None] == [truth[3, c] for c in range(len(OWN))]
    session.extend(7, OWN[8][50:])
    session.finish(7)
    assert step(engine, [session]) == [{7: truth[2, 8]}]
    session.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_trimmed_last_layer_gives_the_bits_of_a_whole_one(llama: Path, dtype: str) -> None:
    group = [PromptGroup(prompt, OWN) for prompt in PROMPTS]
    assert engine_of(llama, dtype, trim=False).score(group) == engine_of(llama, dtype).score(group)


def test_a_number_that_is_none_comes_back_as_it_is(llama: Path) -> None:
    engine = load_engine(llama, place("cpu", "float32", threads=1))
    with torch.inference_mode():
        engine._embedding[5] = float("nan")
    session = engine.open(PROMPTS[3])
    for candidate, own in enumerate(((5, 6), (7, 8))):
        session.extend(candidate, own)
        session.finish(candidate)
    (found,) = step(engine, [session])
    assert math.isnan(found[0]), "it stays with its own candidate"
    assert found[1] == engine.score([PromptGroup(PROMPTS[3], ((7, 8),))])[0][0]
    session.close()


def test_ids_may_come_from_another_thread_while_passes_run(llama: Path) -> None:
    engine, truth = engine_of(llama), alone(llama, "bfloat16")
    session = engine.open(PROMPTS[4])

    def write() -> None:
        for at in range(0, 150, 3):
            for candidate, own in enumerate(OWN):
                if own[at : at + 3]:
                    session.extend(candidate, own[at : at + 3])
                if at < len(own) <= at + 3:
                    session.finish(candidate)

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        found: dict[int, float] = {}
        while len(found) < len(OWN) and not (writing.done() and writing.exception()):
            found |= step(engine, [session])[0]
        writing.result(10)
    assert found == {candidate: truth[4, candidate] for candidate in range(len(OWN))}
    session.close()
