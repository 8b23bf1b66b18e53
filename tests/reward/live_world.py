"""Reward services on real sockets with a model of microseconds, for tests of live scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from reward.models import ArithmeticModel
from reward.publishing import promote, publish_reward
from reward.serving import serve, wait_until_ready

from acemath_registry import Registry
from acemath_reward.app import create_app
from acemath_reward.settings import RewardSettings


class Service:
    """A running service, its application and its model."""

    def __init__(self, url: str, app: FastAPI, model: ArithmeticModel) -> None:
        self.url, self.app, self.model = url, app, model

    def metric(self, line: str) -> float:
        text = httpx.get(self.url + "/metrics", verify=False).text
        return float(next(x for x in text.splitlines() if x.startswith(f"acemath_reward_{line} ")).split()[-1])

    def held(self) -> int:
        """Bytes of live sessions and tokens that wait."""
        return self.model.live_bytes + int(self.metric("queue_tokens")) + int(self.metric("live_sessions"))


@contextmanager
def services(directory: Path, registry: Registry, checkpoint: Path) -> Iterator[Callable[..., Service]]:
    """Starts services, each with settings of its own, and ends them all."""
    promote(registry, publish_reward(registry, checkpoint), directory)
    running: list[tuple[Any, Service]] = []

    def start_service(key: str | None = None, **options: Any) -> Service:
        model = ArithmeticModel(max_tokens=320)
        settings = RewardSettings(
            registry_root=registry.root, cache_dir=directory / "cache", poll_seconds=0.05, **options
        )
        app = create_app(settings, lambda _: model, SecretStr(key) if key else None)
        context = serve(app)
        running.append((context, Service(context.__enter__(), app, model)))
        wait_until_ready(running[-1][1].url)
        return running[-1][1]

    yield start_service
    for context, service in running:
        service.model.hold.set()
        context.__exit__(None, None, None)
