"""What the stand-in for vLLM answers, in one process; `fake_vllm` says what it does, and makes the processes."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from doubles.fake_vllm_call import Body, Call

CACHE_TOKENS = 46_592


def pooled_score(token_ids: list[int]) -> float:
    """The score that this double gives a sequence; exact in float32."""
    return sum((i % 5) * token for i, token in enumerate(token_ids, 1)) % 4096 / 1024 - 2


@dataclass
class Tokens:
    """Text to ids and back, such that the texts of any split of the ids join to the whole."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    eos: int

    @classmethod
    def of(cls, model: Path) -> Tokens:
        """Those of `tokenizer.json`, or bytes where there is none that works."""
        try:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        except Exception:  # what tokenizers raises has no narrower type
            return cls(
                lambda t: list(t.encode()), lambda i: bytes(b for b in i if b < 256).decode(errors="replace"), 256
            )
        eos = config_of(model).get("eos_token_id", 2)
        return cls(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            eos[0] if isinstance(eos, list) else eos,
        )


def config_of(model: Path) -> Body:
    """The checkpoint's config.json, empty where there is none."""
    path = model / "config.json"
    loaded: Body = json.loads(path.read_text()) if path.exists() else {}
    return loaded


@dataclass
class FakeServer:
    """The state of one server."""

    name: str
    fingerprint: str | None
    max_model_len: int
    tokens: Tokens
    key: str | None = None
    root: str = ""
    control: Path | None = None
    pooling: bool = False
    recites: list[str] | None = None
    running: int = 0
    generated: int = 0
    prompted: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})

    def faults(self) -> Body:
        """The control file as it is now."""
        if self.control is None or not self.control.exists():
            return {}
        loaded: Body = json.loads(self.control.read_text())
        return loaded

    def app(self) -> Starlette:
        """The ASGI application, for tests that need no process."""
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        if self.pooling:
            routes += [Route(path, self.classify, methods=["POST"]) for path in ("/classify", "/pooling")]
            return Starlette(routes=routes)
        routes += [
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def health(self, _: Request) -> Response:
        """200 as long as the engine lives: it says nothing about generation."""
        return Response(status_code=503 if self.faults().get("engine_dead") else 200)

    async def metrics(self, _: Request) -> Response:
        """The counters and gauges that the agent reads, in vLLM's names and labels."""
        cache = self.faults().get("cache", CACHE_TOKENS)
        label = f'{{engine="0",model_name="{self.name}"}}'
        lines = [
            "# TYPE vllm:cache_config_info gauge",
            f'vllm:cache_config_info{{block_size="16",engine="0",kv_cache_size_tokens="{cache}"}} 1.0',
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {float(self.running)}",
            f"vllm:num_requests_waiting{label} 0.0",
            f"vllm:prompt_tokens_total{label} {float(self.prompted)}",
            "# TYPE vllm:generation_tokens_total counter",
            f"vllm:generation_tokens_total{label} {float(self.generated)}",
            *(
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}"}} {float(n)}'
                for reason, n in self.finished.items()
            ),
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def models(self, request: Request) -> Response:
        """The one name this server answers to."""
        if not self._admits(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        card = {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": self.root}
        return JSONResponse({"object": "list", "data": [{**card, "parent": None, "max_model_len": self.max_model_len}]})

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`, whole or streaming."""
        if not self._admits(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body: Body = json.loads(await request.body())
        refusal = self._refuse(body)
        if refusal is not None:
            return refusal
        call = Call(self, body, f"cmpl-{request.headers.get('x-request-id') or secrets.token_hex(8)}")
        if body.get("stream"):
            return StreamingResponse(call.events(), media_type="text/event-stream; charset=utf-8")
        return JSONResponse(await call.whole())

    async def classify(self, request: Request) -> Response:
        """`POST /classify` and `POST /pooling` (a number for each token) of token ids, raw scores only."""
        if not self._admits(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body, faults = json.loads(await request.body()), self.faults()
        if faults.get("hang"):
            await asyncio.sleep(3600)
        sequences: list[list[int]] = body["input"]
        assert body["use_activation"] is False, "the double knows no activation"
        if body["model"] != self.name:
            return _error(f"The model `{body['model']}` does not exist.", 404, "NotFoundError", "model")
        if max(map(len, sequences)) > self.max_model_len:
            return _error(f"This model's maximum context length is {self.max_model_len} tokens. However, …", 400)
        if any(faults.get("poison") in ids for ids in sequences):
            return _error("Out of range float values are not JSON compliant", 500, "InternalServerError")
        self.prompted += sum(map(len, sequences))
        shift = faults.get("score_shift", 0.0)
        data: list[Body] = [
            {"index": i, "label": "LABEL_0", "probs": [pooled_score(ids) + shift], "num_classes": 1}
            for i, ids in enumerate(sequences)
        ]
        if request.url.path == "/pooling":
            assert body["task"] == "token_classify", "the double knows no other task"
            until = [[[pooled_score(ids[:end]) + shift] for end in range(1, len(ids) + 1)] for ids in sequences]
            data = [{"index": i, "object": "pooling", "data": numbers} for i, numbers in enumerate(until)]
        return JSONResponse(
            {"id": "classify-1", "object": "list", "model": faults.get("model", self.name), "data": data}
        )

    def _admits(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    def _refuse(self, body: Body) -> Response | None:
        prompt, n, most = body["prompt"], body.get("n", 1), body.get("max_tokens", 16)
        limit, temperature = self.max_model_len, body.get("temperature", 1.0)
        if (status := self.faults().get("status")) is not None:
            return _error("the double was told to refuse", status, "InternalServerError", None)
        if body.get("model") not in (None, self.name):
            message = f"The model `{body['model']}` does not exist. Valid aliases: {self.name}."
            return _error(message, 404, "NotFoundError", "model")
        if not prompt:
            return _error("You must pass at least one prompt", 400)
        if len(prompt) >= limit:
            return _error(
                f"This model's maximum context length is {limit} tokens. However, …", 400, param="input_tokens"
            )
        if not 1 <= most <= limit:
            return _error(f"max_tokens={most} cannot be greater than max_model_len={limit}.", 400, param="max_tokens")
        if n < 1:
            return _error(f"n must be at least 1, got {n}.", 400)
        if temperature == 0 and n > 1:
            return _error(f"n must be 1 when using greedy sampling, got {n}.", 400)
        return None


def _error(message: str, status: int, kind: str = "BadRequestError", param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)
