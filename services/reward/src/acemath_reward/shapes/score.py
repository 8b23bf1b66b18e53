"""`POST /score` of vLLM: one problem with one or many candidates, or as many problems as candidates.

The four pairs of names are vLLM 0.32's: `text_1` and `text_2`, `queries` and `documents`, `queries` and `items`,
`data_1` and `data_2`. `POST /v1/score`, where vLLM answers this shape too, is this service's own.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, model_validator

from acemath_core.wire import Wire
from acemath_reward.failures import ERRORS
from acemath_reward.shapes.call import Scorer
from acemath_reward.shapes.fields import PairRequest, Texts, Usage, answer_id, given
from acemath_reward.shapes.pairs import Pairs
from acemath_web.queries import StrictQueryRoute

_NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
_ALL_NAMES = tuple(dict.fromkeys(name for pair in _NAMES for name in pair))


class PairScoreRequest(PairRequest):
    """The body of `POST /score`; exactly one pair of names is given."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [given(pair, _ALL_NAMES) for pair in _NAMES]})

    text_1: Texts | None = Field(None, description="the problem, or one for each candidate")
    text_2: Texts | None = Field(None, description="candidate solutions")
    queries: Texts | None = Field(None, description="text_1 by another name")
    documents: Texts | None = Field(None, description="text_2 by another name")
    items: Texts | None = Field(None, description="text_2 by another name")
    data_1: Texts | None = Field(None, description="text_1 by another name")
    data_2: Texts | None = Field(None, description="text_2 by another name")

    @model_validator(mode="after")
    def _one_pair(self) -> PairScoreRequest:
        given = {name for pair in _NAMES for name in pair if getattr(self, name) is not None}
        if not any(given == set(pair) for pair in _NAMES):
            raise ValueError("give text_1 and text_2, queries and documents, queries and items, or data_1 and data_2")
        problems, candidates = self.pairs.problems, self.pairs.candidates
        if len(problems) not in (1, len(candidates)):
            raise ValueError(
                f"{len(problems)} problems and {len(candidates)} candidates do not pair: one problem, or one for each"
            )
        return self

    @property
    def pairs(self) -> Pairs:
        """What is to be scored."""
        first, second = next(pair for pair in _NAMES if all(getattr(self, name) is not None for name in pair))
        return Pairs(self.model, first, tuple(getattr(self, first)), second, tuple(getattr(self, second)))


class PairScore(Wire):
    """The score of one pair."""

    index: int
    object: str = "score"
    score: float


class PairScoreResponse(Wire):
    """The answer of `POST /score`, as vLLM's `ScoreResponse`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[PairScore]
    usage: Usage


def score_router(scorer: Scorer) -> APIRouter:
    """The route; `scorer` scores."""
    router = APIRouter(tags=["vllm"], route_class=StrictQueryRoute)

    @router.post("/score", summary="Problems and candidates, as vLLM scores pairs", responses=ERRORS)
    async def score(body: PairScoreRequest, request: Request) -> PairScoreResponse:
        scored = await scorer.score(request, body.pairs)
        values = [scored.vocabulary.head.value(one, body.activated) for one in scored.scores]
        return PairScoreResponse(
            id=answer_id("score", request, body),
            created=int(time.time()),
            model=scored.model,
            data=[PairScore(index=index, score=value) for index, value in enumerate(values)],
            usage=Usage.of(scored.tokens),
        )

    return router
