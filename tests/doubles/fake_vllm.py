"""A stand-in for one vLLM 0.32 server: a real process with real HTTP, whose "model" recites a script.

    python tests/doubles/fake_vllm.py --model DIR --served-model-name p@s0-0123456789ab --port 8110 …

It takes vLLM's own flags (unknown ones are ignored), reads the key from `VLLM_API_KEY`, starts an "engine" and a
"worker" process below itself as vLLM does, and answers `/health`, `/metrics`, `/v1/models` and `/v1/completions`.
`tests/policy/test_vllm_contract.py` runs one suite on it and on real vLLM, so what both do is what is written there.
With `--runner pooling` it answers `/classify` instead, with `pooled_score` of the ids; `tests/reward/
test_pooling_contract.py` holds for that one.

Candidate i of a request is `script[(seed + i) % len(script)]`; its tokens are those of `DIR/tokenizer.json`, or the
UTF-8 bytes where there is none. The script and the faults are read from the JSON file `FAKE_VLLM_CONTROL` at every
request (all keys optional):

    script          list of texts
    token_seconds   pause per engine step, default 0.001
    hang            true: `/health` is fine, generation never comes (a stuck engine)
    break_after     after so many steps the connection breaks
    error_after     after so many steps an error event comes, then `[DONE]`
    engine_dead     true: `/health` says so (503), while the API server still stands
    status          answer generations with this status (e.g. 503)
    model           stamp answers with another name (a wrong server behind the right port)
    logprob_shift   added to every prompt log-probability (a wrong checkpoint)
    score_shift     added to every score (a wrong checkpoint)
    poison          an id: a request with it is answered with status 500, as vLLM answers a score that is no number

Environment: `FAKE_VLLM_START_SECONDS` (slow start), `FAKE_VLLM_FAIL_START=1` (dies instead of serving),
`FAKE_VLLM_ENGINE_SETSID=1` (engine and worker leave the process group).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

SCRIPT = [
    "Three baskets of eight make 24. 24 - 5 = 19. The final answer is \\boxed{19}.",
    "3 * 8 = 24 apples. He gives 5 away, so 24 - 5 = 19. \\boxed{19}",
    "3 + 8 = 11 and 11 - 5 = 6. The final answer is \\boxed{6}.",
]
Body = dict[str, Any]


def pooled_score(token_ids: list[int]) -> float:
    """The score that this double gives a sequence; exact in float32."""
    return sum((i % 5) * token for i, token in enumerate(token_ids, 1)) % 4096 / 1024 - 2


def prompt_logprob(token_id: int) -> float:
    """The log-probability this double gives to any prompt token after the first."""
    return -1.0 - (token_id % 7) / 10


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
        eos = _config(model).get("eos_token_id", 2)
        return cls(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            eos[0] if isinstance(eos, list) else eos,
        )


def _config(model: Path) -> Body:
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
        label = f'{{engine="0",model_name="{self.name}"}}'
        lines = [
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


class Call:
    """One completion request: the candidates and how far each has come."""

    def __init__(self, server: FakeServer, body: Body, call_id: str) -> None:
        self.server, self.body, self.id = server, body, call_id
        self.faults, self.created = server.faults(), int(time.time())
        self.prompt: list[int] = body["prompt"]
        self.n: int = body.get("n", 1)
        room = min(body.get("max_tokens", 16), server.max_model_len - len(self.prompt))
        scripts: list[str] = self.faults.get("script") or SCRIPT
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


def _error(message: str, status: int, kind: str = "BadRequestError", param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


# ------------------------------------------------------------------------------------------------ the process tree


def _engine(depth: int) -> int:
    """An engine (depth 1) with a worker (depth 0) below it; like vLLM's, they outlive their parent.

    An engine whose worker dies ends itself, as vLLM's does.
    """
    if os.environ.get("FAKE_VLLM_ENGINE_SETSID"):
        os.setsid()
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = _spawn_engine(depth - 1) if depth else None
    while signal.sigwait(awaited) != signal.SIGTERM:
        if child is not None and child.poll() is not None:
            return 1
    if child is not None:
        child.terminate()
        child.wait(timeout=5)
    return 0


def _spawn_engine(depth: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--engine", str(depth)])


class _Http(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # uvicorn's own would end the process before the engine is stopped
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def _serve(server: FakeServer, options: argparse.Namespace) -> int:
    engine = _spawn_engine(1)
    config = uvicorn.Config(
        server.app(),
        host=options.host,
        port=options.port,
        log_level="critical",
        timeout_graceful_shutdown=options.shutdown_timeout or None,
    )
    http = _Http(config)

    async def watch_engine() -> None:  # vLLM's API server ends itself, too, when its engine is gone
        await asyncio.to_thread(engine.wait)
        http.should_exit = True

    watching = asyncio.create_task(watch_engine())
    try:
        await asyncio.sleep(float(os.environ.get("FAKE_VLLM_START_SECONDS", "0")))
        await http.serve()
        return 1 if engine.poll() is not None else 0
    finally:
        watching.cancel()
        engine.terminate()
        engine.wait(timeout=5)


def main() -> int:
    """Be the engine, or the server."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--engine", type=int)
    for flag in ("--model", "--served-model-name", "--fingerprint-value"):
        parser.add_argument(flag)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--runner", choices=("generate", "pooling"), default="generate")
    parser.add_argument("--shutdown-timeout", type=int, default=0)
    options, _ = parser.parse_known_args()
    if options.engine is not None:
        return _engine(options.engine)
    if os.environ.get("FAKE_VLLM_FAIL_START"):
        print("ValueError: the double was told to fail", file=sys.stderr)
        return 1
    control = os.environ.get("FAKE_VLLM_CONTROL")
    server = FakeServer(
        name=options.served_model_name or options.model,
        fingerprint=options.fingerprint_value,
        max_model_len=options.max_model_len or _config(Path(options.model)).get("max_position_embeddings", 2048),
        tokens=Tokens.of(Path(options.model)),
        key=os.environ.get("VLLM_API_KEY"),
        root=options.model,
        control=Path(control) if control else None,
        pooling=options.runner == "pooling",
    )
    return asyncio.run(_serve(server, options))


@contextlib.contextmanager
def fake_vllm(
    *,
    port: int,
    model: Path,
    name: str,
    key: str | None = None,
    control: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run the double until the block ends; yields its base URL once `/health` answers (10 s at most)."""
    extra = {"VLLM_API_KEY": key} if key else {}
    extra |= {"FAKE_VLLM_CONTROL": str(control)} if control else {}
    command = [
        sys.executable,
        __file__,
        "--model",
        str(model),
        "--served-model-name",
        name,
        "--fingerprint-value",
        name,
    ]
    process = subprocess.Popen([*command, "--port", str(port)], env={**os.environ, **extra, **(environment or {})})
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 10
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=1).is_success:
                    break
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError(f"the double did not start (exit status {process.poll()})")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
