"""The request and response shapes of other reward servers, on the same scoring as `POST /v1/score`.

One file per shape: vLLM's `/classify`, `/score` and `/rerank` (vLLM 0.32), and OpenRLHF's `/get_reward`. A field that
another server has and this one does not is a 400 that names it, unless it has the value that changes nothing.
"""

from __future__ import annotations

from fastapi import APIRouter

from acemath_reward.scoring import ScoreService
from acemath_reward.shapes.call import Scorer
from acemath_reward.shapes.classify import classify_router
from acemath_reward.shapes.get_reward import get_reward_router
from acemath_reward.shapes.rerank import rerank_router
from acemath_reward.shapes.score import score_router

__all__ = ["shape_routers"]


def shape_routers(service: ScoreService, default_deadline_seconds: float) -> list[APIRouter]:
    """The routes of every shape.

    Args:
        service: scores.
        default_deadline_seconds: for a call without `x-acemath-deadline-ms`.
    """
    scorer = Scorer(service, default_deadline_seconds)
    return [make(scorer) for make in (classify_router, score_router, rerank_router, get_reward_router)]
