"""Problems and candidate solutions as `Work`: what vLLM's `/score` and `/rerank` come to for a reward model.

The query is a problem and the document a solution of it; together they are the conversation that `POST /v1/score`
scores, with the reward model's system text and chat template. (vLLM itself joins the two texts without a template,
which a reward model was not trained on.) No text can become a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acemath_core.prompts import reward_context
from acemath_reward.batching import Encoded
from acemath_reward.encoding import EncodedCall, Vocabulary, check_text, encode_candidates, without_duplicates


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a problem and a candidate.

    Attributes:
        model: name@version, or None.
        problem_param: the field that holds the problems.
        problems: one for all candidates, or one for each.
        param: the field that holds the candidates.
        candidates: at least one.
    """

    model: str | None
    problem_param: str
    problems: tuple[str, ...]
    param: str
    candidates: tuple[str, ...]

    def check(self, max_chars: int) -> None:
        """See `check_text`."""
        for field, texts in ((self.problem_param, self.problems), (self.param, self.candidates)):
            for index, text in enumerate(texts):
                check_text(f"{field}.{index}", text, max_chars)

    def encode(self, vocabulary: Vocabulary) -> EncodedCall:
        """The pairs as `POST /v1/score` has them; a problem that several pairs share is encoded once."""
        found: dict[int, Encoded] = {}
        for problem, positions in self._by_problem().items():
            named = [(f"{self.param}.{i}", self.candidates[i]) for i in positions]
            context = reward_context([{"role": "user", "content": problem}])
            sequences, _ = encode_candidates(context, named, vocabulary, self.problem_param)
            found.update(zip(positions, sequences, strict=True))
        return without_duplicates([found[i] for i in range(len(self.candidates))], 0)

    def _by_problem(self) -> dict[str, Sequence[int]]:
        if len(self.problems) == 1:
            return {self.problems[0]: range(len(self.candidates))}
        positions: dict[str, list[int]] = {}
        for index, problem in enumerate(self.problems):
            positions.setdefault(problem, []).append(index)
        return dict(positions)
