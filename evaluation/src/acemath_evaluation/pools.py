"""Score pools of given candidates with a running reward service, into a journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import httpx

from acemath_core.wire import ScoreRequest, ScoreResponse
from acemath_evaluation.http_calls import CallError, Service, post, run_workers
from acemath_evaluation.journal import Journal
from acemath_evaluation.rows import Pool
from acemath_evaluation.sampling import Progress, SamplingStopped

_BAD_REQUEST = 400
_MAX_CANDIDATES_PER_CALL = 64


def pool_config(reward: str | None) -> dict[str, Any]:
    """Return what a scoring journal is kept under: the version that was asked for (None: the active one)."""
    return {"kind": "scores", "reward": reward}


async def score(
    pools: Sequence[Pool], journal: Journal, reward: Service, *, concurrency: int, progress: Progress
) -> None:
    """Score every pool that the journal does not hold yet, with the version that the journal began with.

    A candidate that the service refuses (too long) gets no score. `progress` is called once for each pool.

    Raises:
        CallError: the service cannot be reached or refuses more than single candidates.
        SamplingStopped: another version answers than the one the journal began with.
    """
    left = deque(pool for pool in pools if pool.id not in journal.records)
    model = journal.config["reward"] or next((record["model"] for record in journal.records.values()), None)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal model
        while left:
            pool = left.popleft()
            scores, served = await _score_pool(client, pool, model, reward.patience_seconds)
            if model is not None and served not in (None, model):
                raise SamplingStopped(f"the reward service answers with {served}, the run began with {model}")
            model = model or served
            journal.append({"id": pool.id, "model": served, "scores": scores})
            progress()

    async with reward.client(concurrency) as client:
        await run_workers(lambda: work(client), concurrency)


async def _score_pool(
    client: httpx.AsyncClient, pool: Pool, model: str | None, patience_seconds: float
) -> tuple[list[float | None], str | None]:
    texts = [candidate.text for candidate in pool.candidates]
    scores: list[float | None] = []
    served = None
    for start in range(0, len(texts), _MAX_CANDIDATES_PER_CALL):
        part, name = await _score_part(
            client, pool, texts[start : start + _MAX_CANDIDATES_PER_CALL], model, patience_seconds
        )
        scores += part
        served = served or name
    return scores, served


async def _score_part(
    client: httpx.AsyncClient, pool: Pool, texts: list[str], model: str | None, patience_seconds: float
) -> tuple[list[float | None], str | None]:
    request = ScoreRequest(problem=pool.problem, candidates=list(texts), model=model)
    try:
        document = await post(client, "/v1/score", request.model_dump(mode="json", exclude_none=True), patience_seconds)
    except CallError as error:
        if error.status != _BAD_REQUEST:
            raise
        if len(texts) == 1:
            return [None], None
        halves = [texts[: len(texts) // 2], texts[len(texts) // 2 :]]
        (left, first), (right, second) = [
            await _score_part(client, pool, half, model, patience_seconds) for half in halves
        ]
        return left + right, first or second
    response = ScoreResponse.model_validate(document)
    by_index = {item.index: item.score for item in response.data}
    return [by_index[i] for i in range(len(texts))], response.model
