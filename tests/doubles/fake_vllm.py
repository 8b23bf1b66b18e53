"""A stand-in for one vLLM 0.32 server: a real process with real HTTP, whose "model" recites a script.

    python tests/doubles/fake_vllm.py --model DIR --served-model-name p@s0-0123456789ab --port 8110 …

It takes vLLM's own flags (unknown ones are ignored), reads the key from `VLLM_API_KEY`, starts an "engine" and a
"worker" process below itself as vLLM does, and answers `/health`, `/metrics`, `/v1/models` and `/v1/completions`.
`tests/policy/test_vllm_contract.py` runs one suite on it and on real vLLM, so what both do is what is written there.
With `--runner pooling` it answers `/classify` instead, with `pooled_score` of the ids; `tests/reward/
test_pooling_contract.py` holds for that one.

Candidate i of a request is `script[(seed + i) % len(script)]`; its tokens are those of `DIR/tokenizer.json`, or the
UTF-8 bytes where there is none. A checkpoint's own script is `recites` in its config.json; one for all of them, and the
faults, are read from the JSON file `FAKE_VLLM_CONTROL` at every request (all keys optional):

    script          list of texts
    token_seconds   pause per engine step, default 0.001
    until           path of a file: no step of calls that begin now before it is there
    hang            true: `/health` is fine, generation never comes (a stuck engine)
    break_after     after so many steps the connection breaks
    error_after     after so many steps an error event comes, then `[DONE]`
    engine_dead     true: `/health` says so (503), while the API server still stands
    cache           what `/metrics` says of the tokens in its cache, e.g. "None"
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
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from doubles.fake_vllm_server import FakeServer


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
        child.wait(timeout=30)
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
        engine.wait(timeout=30)


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
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run by its path
    from doubles.fake_vllm_server import FakeServer, Tokens, config_of

    control = os.environ.get("FAKE_VLLM_CONTROL")
    server = FakeServer(
        name=options.served_model_name or options.model,
        fingerprint=options.fingerprint_value,
        max_model_len=options.max_model_len or config_of(Path(options.model)).get("max_position_embeddings", 2048),
        tokens=Tokens.of(Path(options.model)),
        key=os.environ.get("VLLM_API_KEY"),
        root=options.model,
        control=Path(control) if control else None,
        pooling=options.runner == "pooling",
        recites=config_of(Path(options.model)).get("recites") if options.model else None,
    )
    return asyncio.run(_serve(server, options))


if __name__ == "__main__":
    sys.exit(main())
