"""One running vLLM server: its process tree, its HTTP client, its pulse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from acemath_core.processes.tree import ProcessTree
from acemath_core.processes.vllm import NoFreePort, environment, free_port
from acemath_core.processes.words import last_words
from acemath_policy.canary import Canary, Tolerance, check
from acemath_policy.metrics import PolicyMetrics
from acemath_policy.readiness import Pulse, PulseLimits
from acemath_policy.settings import PolicySettings
from acemath_policy.vllm_server import VllmClient, VllmFailure, command_line, dtype_of
from acemath_registry import ModelRef

_log = logging.getLogger(__name__)
_TERM_EXTRA_SECONDS = 5.0  # beyond vLLM's own --shutdown-timeout
_START_POLL_SECONDS = 0.25
_WARM_PROMPT = (1, 0, 1, 0)  # any ids that every vocabulary has
_WARM_TOKENS = 8


class ServerDied(Exception):
    """The server ended, or says that its engine is dead; the message says how."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """Makes servers on this machine.

    Attributes:
        inherited: the environment that vLLM may see.
        key: the internal key.
    """

    settings: PolicySettings
    inherited: Mapping[str, str]
    key: SecretStr | None
    metrics: PolicyMetrics

    def make(self, ref: ModelRef, model: Path, taken: Collection[int]) -> PolicyServer:
        """A server, not yet started, on a port that is free and not in `taken`.

        Raises:
            ServerDied: no port of the range is free.
        """
        settings = self.settings
        try:
            port = free_port(settings.bind, range(settings.first_vllm_port, settings.last_vllm_port + 1), taken)
        except NoFreePort as error:
            raise ServerDied(str(error)) from error
        _log.info("starting a server of %s on port %s, computing in %s", ref, port, dtype_of(settings))
        tree = ProcessTree(
            command_line(settings, model=model, name=str(ref), port=port),
            environment(settings, self.inherited, self.key),
            label=str(ref),
            term_seconds=settings.shutdown_timeout_seconds + _TERM_EXTRA_SECONDS,
        )
        own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.bind, settings.bind)
        client = VllmClient(url_of(own, port), str(ref), self.key)
        return PolicyServer(tree, client, port, url_of(settings.advertise_host, port), settings, self.metrics)


class PolicyServer:
    """A vLLM server from its start to its end.

    Attributes:
        port: where it listens.
        endpoint: the base URL that others are told.
        pulse: whether it makes tokens; starts with the warm-up.
        max_sequences: in its batches; of a data-parallel server, which has several engines, as of the warm-up.
        cache_tokens: in its caches; None before the warm-up, or when vLLM does not say.
    """

    def __init__(
        self,
        tree: ProcessTree,
        client: VllmClient,
        port: int,
        endpoint: str,
        settings: PolicySettings,
        metrics: PolicyMetrics,
    ) -> None:
        self._tree, self._client, self._settings, self._metrics = tree, client, settings, metrics
        self.port, self.endpoint = port, endpoint
        self.max_sequences = settings.max_num_seqs
        self.cache_tokens: int | None = None
        self.pulse = self._new_pulse()
        self._watching: asyncio.Task[None] | None = None
        self._dead: str | None = None

    def _new_pulse(self) -> Pulse:
        settings = self._settings
        return Pulse(
            PulseLimits(settings.progress_seconds, settings.idle_probe_seconds, settings.stall_restart_seconds)
        )

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerDied: it ended instead, or took longer than the start time-out.
        """
        try:
            await self._tree.start()
        except OSError as error:
            raise ServerDied(f"vLLM cannot be started: {error.strerror}") from error
        until = time.monotonic() + self._settings.start_timeout_seconds
        while await self._client.healthy(self._settings.probe_timeout_seconds) is not True:
            self._tree.remember()
            if self._tree.status is not None:
                raise ServerDied(self.epitaph())
            if time.monotonic() > until:
                raise ServerDied(f"vLLM did not answer within {self._settings.start_timeout_seconds:.0f} s")
            await asyncio.sleep(_START_POLL_SECONDS)
        self._tree.remember(now=True)

    async def warm(self, canary: Canary | None) -> None:
        """Make it generate, and compare it with the manifest's canary if there is one; then watch it.

        Raises:
            VllmFailure: it did not answer, or not as its version.
            CanaryMismatch: it is not the model that was trained.
        """
        settings = self._settings
        await self._client.generate(_WARM_PROMPT, _WARM_TOKENS, settings.warm_timeout_seconds)
        if canary is not None:
            tolerance = Tolerance(settings.canary_mean_tolerance, settings.canary_max_tolerance)
            mean, largest = await check(canary, self._client, tolerance, settings.warm_timeout_seconds)
            _log.info("canary passed: mean %.4f, largest %.4f nats", mean, largest)
        with contextlib.suppress(VllmFailure):  # asked again while it is watched
            await self._measure()
        self.pulse = self._new_pulse()
        self._watching = asyncio.create_task(self._watch())

    def dead(self) -> str | None:
        """Why it cannot serve any more, None while it can."""
        if self._dead is None and self._tree.status is not None:
            return self.epitaph()
        if self._dead is None and self._watching is not None and self.pulse.stalled():
            return f"no token for {self.pulse.age():.0f} s"
        return self._dead

    def epitaph(self) -> str:
        """How it ended, with its last words."""
        return f"vLLM ended with status {self._tree.status}: {last_words(self._tree.tail)}"

    async def stop(self) -> None:
        """Let it finish what it has, then end it."""
        await self._end(self._tree.stop())

    async def kill(self) -> None:
        """End it now."""
        await self._end(self._tree.kill())

    async def _end(self, ending: Coroutine[None, None, None]) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await ending
        await self._client.aclose()

    async def _watch(self) -> None:
        """Look at health and counters for ever; probe when it is idle."""
        while True:
            self._tree.remember()
            if await self._client.healthy(self._settings.probe_timeout_seconds) is False:
                self._dead = "its engine is dead"
                await self._tree.kill()  # at once: what is left of it holds memory and a port
                return
            try:
                self.pulse.saw(await self._client.load(self._settings.probe_timeout_seconds))
                if self.pulse.wants_probe():
                    await self._probe()
                if self.cache_tokens is None:
                    await self._measure()
            except VllmFailure as error:
                _log.warning("%s: %s", self.endpoint, error)
            await asyncio.sleep(self._settings.probe_seconds)

    async def _measure(self) -> None:
        """Ask what it holds; gateways can do without."""
        caches = await self._client.caches(self._settings.probe_timeout_seconds)
        self.max_sequences = self._settings.max_num_seqs * max(1, len(caches))
        self.cache_tokens = sum(caches) or None

    async def _probe(self) -> None:
        started = time.monotonic()
        await self._client.generate(_WARM_PROMPT, 1, self._settings.probe_timeout_seconds)
        self.pulse.probed()
        self._metrics.probe_seconds.observe(time.monotonic() - started)


def url_of(host: str, port: int) -> str:
    """The base URL of a host name or address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
