"""One completion request at the stand-in for vLLM: its candidates, its events, its answer in one piece."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doubles.fake_vllm_server import FakeServer


SCRIPT = [
    "Three baskets of eight make 24. 24 - 5 = 19. The final answer is \\boxed{19}.",
    "3 * 8 = 24 apples. He gives 5 away, so 24 - 5 = 19. \\boxed{19}",
    "3 + 8 = 11 and 11 - 5 = 6. The final answer is \\boxed{6}.",
]


Body = dict[str, Any]


def prompt_logprob(token_id: int) -> float:
    """The log-probability this double gives to any prompt token after the first."""
    return -1.0 - (token_id % 7) / 10


class Call:
    """One completion request: the candidates and how far each has come."""

    def __init__(self, server: FakeServer, body: Body, call_id: str) -> None:
        self.server, self.body, self.id = server, body, call_id
        self.faults, self.created = server.faults(), int(time.time())
        self.prompt: list[int] = body["prompt"]
        self.n: int = body.get("n", 1)
        room = min(body.get("max_tokens", 16), server.max_model_len - len(self.prompt))
        scripts: list[str] = self.faults.get("script") or server.recites or SCRIPT
        first = 0 if body.get("temperature") == 0 else body.get("seed") or 0
        full = [[*server.tokens.encode(scripts[(first + i) % len(scripts)]), server.tokens.eos] for i in range(self.n)]
        if body.get("allowed_token_ids") == [server.tokens.eos]:
            full = [[server.tokens.eos]] * self.n
        elif body.get("ignore_eos"):
            full = [(ids * room)[: room + 1] for ids in full]
        self.plans = [ids[:room] for ids in full]
        self.reasons = ["stop" if len(ids) <= room else "length" for ids in full]
        self.done = [0] * self.n
        self.sent = [0] * self.n

    def open_indices(self) -> list[int]:
        """Candidates that still have tokens to come."""
        return [i for i in range(self.n) if self.done[i] < len(self.plans[i])]

    async def steps(self) -> AsyncIterator[list[int]]:
        """Engine steps: each gives every open candidate one token; yields those candidates."""
        server = self.server
        server.running += self.n
        server.prompted += len(self.prompt)
        still = self.n
        try:
            if self.faults.get("hang"):
                await asyncio.sleep(3600)
            while self._is_held():  # noqa: ASYNC110 - who lets go is another process
                await asyncio.sleep(0.01)
            while indices := self.open_indices():
                await asyncio.sleep(self.faults.get("token_seconds", 0.001))
                for i in indices:
                    self.done[i] += 1
                    server.generated += 1
                    if self.done[i] == len(self.plans[i]):
                        still -= 1
                        server.running -= 1
                        server.finished[self.reasons[i]] += 1
                yield indices
        finally:
            server.running -= still
            server.finished["abort"] += still

    def _is_held(self) -> bool:
        return "until" in self.faults and not os.path.exists(self.faults["until"])

    async def events(self) -> AsyncIterator[str]:
        """The SSE stream: first token at once, then every `stream_interval` tokens, then the rest with its reason."""
        interval, count = self.body.get("stream_interval", 1), 0
        async for indices in self.steps():
            count += 1
            if count == self.faults.get("break_after"):
                raise ConnectionResetError("the double was told to break the stream")
            if count == self.faults.get("error_after"):
                error = {
                    "message": "EngineCore encountered an issue.",
                    "type": "InternalServerError",
                    "param": None,
                    "code": 500,
                }
                yield f"data: {json.dumps({'error': error})}\n\n"
                yield "data: [DONE]\n\n"
                return
            for i in indices:
                ended = self.done[i] == len(self.plans[i])
                if ended or self.sent[i] == 0 or self.done[i] - self.sent[i] >= interval:
                    yield f"data: {json.dumps(self._chunk(i, ended))}\n\n"
                    self.sent[i] = self.done[i]
        if (self.body.get("stream_options") or {}).get("include_usage"):
            last = {
                **self._head(),
                "choices": [],
                "usage": self._usage(),
                "system_fingerprint": self.server.fingerprint,
            }
            yield f"data: {json.dumps(last)}\n\n"
        yield "data: [DONE]\n\n"

    async def whole(self) -> Body:
        """The answer in one piece."""
        async for _ in self.steps():
            pass
        choices = [
            self._choice(i, 0, self.reasons[i]) | {"prompt_logprobs": self._prompt_logprobs()} for i in range(self.n)
        ]
        return {
            **self._head(),
            "choices": choices,
            "system_fingerprint": self.server.fingerprint,
            "usage": self._usage(),
        }

    def _head(self) -> Body:
        model = self.faults.get("model") or self.server.name
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": model}

    def _choice(self, i: int, start: int, reason: str | None) -> Body:
        decode, plan = self.server.tokens.decode, self.plans[i]
        text = decode(plan[: self.done[i]]).removeprefix(decode(plan[:start]))
        wanted = bool(self.body.get("return_token_ids"))
        head = {"index": i, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}
        prompt = self.prompt if wanted and start == 0 else None
        return {**head, "prompt_token_ids": prompt, "token_ids": plan[start : self.done[i]] if wanted else None}

    def _chunk(self, i: int, ended: bool) -> Body:
        chunk = {**self._head(), "choices": [self._choice(i, self.sent[i], self.reasons[i] if ended else None)]}
        if ended and not (self.body.get("stream_options") or {}).get("include_usage"):
            chunk["system_fingerprint"] = self.server.fingerprint
        return chunk

    def _usage(self) -> Body:
        made = sum(self.done)
        return {"prompt_tokens": len(self.prompt), "total_tokens": len(self.prompt) + made, "completion_tokens": made}

    def _prompt_logprobs(self) -> list[Body | None] | None:
        if self.body.get("prompt_logprobs") is None:
            return None
        shift = self.faults.get("logprob_shift", 0.0)
        rest = (
            {str(t): {"logprob": prompt_logprob(t) + shift, "rank": 1, "decoded_token": ""}} for t in self.prompt[1:]
        )
        return [None, *rest]
