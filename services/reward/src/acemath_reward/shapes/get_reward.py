"""`POST /get_reward` as OpenRLHF calls a `remote_rm_url`.

The trainer sends `query` (prompt and response as one rendered text), `prompts` (the rendered prompts) and `labels` (the
data set's), and reads `rewards`, `scores` and `extra_logs` (OpenRLHF: `utils/agent.py` sends and `cli/serve_rm.py`
answers). It renders, so control tokens in a query are control tokens (`acemath_reward.rendered`); but a policy under
training writes the response, and it is rewarded for what helps. So where a query begins with its prompt, and the prompt
ends as this model's template begins an assistant's turn, the response is encoded as `/v1/score` encodes a candidate:
it cannot write itself a turn. `labels` is for rules that know the right answer; a reward model needs none, so only
their number is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, model_validator

from acemath_core.wire import Text, Wire
from acemath_reward.encoding import EncodedCall, Vocabulary, check_text, without_duplicates
from acemath_reward.failures import ERRORS
from acemath_reward.shapes.call import MAX_ITEMS, Scorer, checked
from acemath_reward.shapes.fields import AnyTexts
from acemath_web.queries import StrictQueryRoute

MODEL_HEADER = "x-acemath-model"


class GetRewardRequest(Wire):
    """The body of `POST /get_reward`; an empty `query` has no rewards (a trainer with many URLs sends such ones)."""

    query: AnyTexts = Field(description="rendered conversations; control tokens in them are recognised")
    prompts: list[Text] | None = Field(
        None, max_length=MAX_ITEMS, description="what each query begins with; the rest is the policy's, and only text"
    )
    labels: list[Any] | None = Field(None, max_length=MAX_ITEMS, description="one for each query; a model needs none")
    model: str | None = Field(None, description="name@version; omitted = the only active one")

    @model_validator(mode="after")
    def _as_many(self) -> GetRewardRequest:
        for name, values in (("prompts", self.prompts), ("labels", self.labels)):
            if values is not None and len(values) != len(self.query):
                raise ValueError(f"{name} has {len(values)} elements and query {len(self.query)}; give one for each")
        return self


class GetRewardResponse(Wire):
    """The answer: raw scores, in the order of the queries, twice, as OpenRLHF's server gives them."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = Field(description="reward_tokens: tokens of each conversation")


@dataclass(frozen=True, slots=True)
class Queries:
    """Rendered conversations with, if known, what each begins with; as `Work`."""

    model: str | None
    queries: tuple[str, ...]
    prompts: tuple[str | None, ...]
    param: str = "query"

    def check(self, max_chars: int) -> None:
        """See `check_text`."""
        for index, text in enumerate(self.queries):
            check_text(f"query.{index}", text, max_chars)

    def encode(self, vocabulary: Vocabulary) -> EncodedCall:
        """Every conversation with a whole end of turn, where the reward model was trained to give its score."""
        rendered = vocabulary.rendered
        sequences = []
        for index, (query, prompt) in enumerate(zip(self.queries, self.prompts, strict=True)):
            ids = None
            if prompt is not None and query.startswith(prompt):
                ids = rendered.answered(prompt, query[len(prompt) :])
            if ids is None:
                ids = rendered.completed(rendered.ids(query, add_special_tokens=False))
            sequences.append(rendered.split(checked(f"query.{index}", ids, vocabulary)))
        return without_duplicates(sequences, 0)


def get_reward_router(scorer: Scorer) -> APIRouter:
    """The route; `scorer` scores."""
    router = APIRouter(tags=["openrlhf"], route_class=StrictQueryRoute)

    @router.post("/get_reward", summary="Rendered conversations, as OpenRLHF asks for rewards", responses=ERRORS)
    async def get_reward(body: GetRewardRequest, request: Request, response: Response) -> GetRewardResponse:
        if not body.query:
            return GetRewardResponse(rewards=[], scores=[], extra_logs={"reward_tokens": []})
        prompts = tuple(body.prompts or [None] * len(body.query))
        scored = await scorer.score(request, Queries(body.model, tuple(body.query), prompts))
        response.headers[MODEL_HEADER] = scored.model
        rewards, lengths = list(scored.scores), [float(count) for count in scored.tokens]
        return GetRewardResponse(rewards=rewards, scores=rewards, extra_logs={"reward_tokens": lengths})

    return router
