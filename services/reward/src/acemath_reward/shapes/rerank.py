"""`POST /rerank`, `/v1/rerank` and `/v2/rerank` of vLLM: one problem, its candidates, best first."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from acemath_core.wire import Text, Wire
from acemath_reward.failures import ERRORS
from acemath_reward.shapes.call import Scored, Scorer
from acemath_reward.shapes.fields import PairRequest, Texts, Whole, answer_id
from acemath_reward.shapes.pairs import Pairs
from acemath_web.queries import StrictQueryRoute


class RerankRequest(PairRequest):
    """The body of `POST /rerank`."""

    query: Text = Field(description="the problem")
    documents: Texts = Field(description="candidate solutions")
    top_n: Whole = Field(0, ge=0, description="so many of the best; 0: all")


class RerankDocument(Wire):
    """A candidate as it was sent."""

    text: str
    multi_modal: None = None


class RerankResult(Wire):
    """A candidate with its score; `index` is its place in `documents`."""

    index: int
    document: RerankDocument
    relevance_score: float


class RerankUsage(Wire):
    """Tokens of all conversations, the problem counted with each of them."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(Wire):
    """The answer of `POST /rerank`, as vLLM's; results best first, equal ones in the order they were sent."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]


def rerank_router(scorer: Scorer) -> APIRouter:
    """The routes; `scorer` scores."""
    router = APIRouter(tags=["vllm"], route_class=StrictQueryRoute)

    @router.post("/rerank", summary="One problem's candidates, best first", responses=ERRORS)
    @router.post("/v1/rerank", summary="The same as /rerank", responses=ERRORS)
    @router.post("/v2/rerank", summary="The same as /rerank", responses=ERRORS)
    async def rerank(body: RerankRequest, request: Request) -> RerankResponse:
        pairs = Pairs(body.model, "query", (body.query,), "documents", tuple(body.documents))
        scored = await scorer.score(request, pairs)
        total = sum(scored.tokens)
        return RerankResponse(
            id=answer_id("score", request, body),
            model=scored.model,
            usage=RerankUsage(prompt_tokens=total, total_tokens=total),
            results=_results(body, scored),
        )

    return router


def _results(body: RerankRequest, scored: Scored) -> list[RerankResult]:
    results = [
        RerankResult(
            index=index,
            document=RerankDocument(text=text),
            relevance_score=scored.vocabulary.head.value(score, body.activated),
        )
        for index, (text, score) in enumerate(zip(body.documents, scored.scores, strict=True))
    ]
    # By the raw score: a sigmoid in float32 makes large ones equal.
    results.sort(key=lambda result: scored.scores[result.index], reverse=True)
    return results[: body.top_n or None]
