"""The real thing behind every port: vLLM and reward services over HTTP, Redis, the registry, judges of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from importlib import import_module

from acemath_answers import AnswerJudge
from acemath_gateway.adapters.addresses import DnsAddresses
from acemath_gateway.adapters.http import MAX_CONNECTIONS, Upstream
from acemath_gateway.adapters.policy_vllm import VllmPolicy
from acemath_gateway.adapters.reward_http import HttpScorer
from acemath_gateway.adapters.reward_live import LiveScorer
from acemath_gateway.adapters.slots_http import HttpSlots
from acemath_gateway.adapters.status_file import StatusFileLeases
from acemath_gateway.adapters.webhook_http import HttpWebhooks
from acemath_gateway.app import Backends
from acemath_gateway.door_metrics import DoorMetrics
from acemath_gateway.metrics import GatewayMetrics
from acemath_gateway.places import MOST_PLACES, Places
from acemath_gateway.pointer import ChannelWatch
from acemath_gateway.ports import ScorerPort
from acemath_gateway.prompts import RegistryEncoders
from acemath_gateway.releases import ReleaseTracker
from acemath_gateway.settings import GatewaySettings
from acemath_gateway.shared import open_shared, running
from acemath_gateway.solver import Solver
from acemath_gateway.tracing import NoTraces, Traces
from acemath_registry import Registry, configured_keys

_POLLS = 64
"""Connections to the policy beside a connection for every candidate (`early_reject`): services are polled with them."""


@asynccontextmanager
async def open_backends(
    settings: GatewaySettings, metrics: GatewayMetrics, door: DoorMetrics
) -> AsyncIterator[Backends]:
    """Open everything that the gateway stands on; leaving closes it in the opposite order.

    Nothing here has to answer for the gateway to start: what is away is reported by `/readyz` and found again later.
    """
    registry = Registry(settings.registry_root, trusted=configured_keys(settings.signature_keys_file))
    encoders = RegistryEncoders(registry)
    status = _records(settings, metrics, registry)
    async with AsyncExitStack() as stack:
        places = Places(settings.max_sequences_in_flight, door.max_sequences)
        shared = await stack.enter_async_context(open_shared(settings, door, places))
        policy, reward = _upstreams(settings, metrics)
        stack.push_async_callback(policy.close)
        stack.push_async_callback(reward.close)
        judge = await stack.enter_async_context(AnswerJudge())
        stack.push_async_callback(status.withdraw)
        tracker = ReleaseTracker(
            channel=ChannelWatch(registry, settings.channel),
            slots=HttpSlots(policy),
            policy_urls=settings.policy_urls,
            reward_urls=settings.reward_urls,
            encoders=encoders,
            stores=(shared.leases, status),
            metrics=metrics,
            addresses=DnsAddresses(policy.host_names),
            capacities=places.replicas,
        )
        await stack.enter_async_context(running("follow releases", tracker.run()))
        solver = Solver(
            policy=VllmPolicy(
                policy,
                first_token_seconds=settings.policy_first_token_seconds,
                between_tokens_seconds=settings.policy_between_tokens_seconds,
            ),
            scorer=_scorer(settings, reward),
            judge=judge,
            releases=tracker,
            encoders=encoders,
            metrics=metrics,
            calibration=settings.calibration(),
            confidence=settings.adaptive_confidence,
            rejection=settings.reject_rules(),
            traces=await stack.enter_async_context(_traces(settings)),
            lengths=places.ended,
        )
        yield Backends(
            solver,
            shared.limit,
            shared.idempotency,
            tracker.current,
            tracker.readiness,
            jobs=shared.jobs,
            webhooks=HttpWebhooks(inside=settings.webhook_inside),
            keys=shared.keys,
            quotas=shared.quotas,
            answers=shared.answers,
            canary=tracker.canary,
        )


def _records(settings: GatewaySettings, metrics: GatewayMetrics, registry: Registry) -> StatusFileLeases:
    failed = metrics.records_failed.inc
    return StatusFileLeases(registry, instance=settings.instance, channel=settings.channel, on_failure=failed)


def _scorer(settings: GatewaySettings, reward: Upstream) -> ScorerPort:
    posts = HttpScorer(
        reward, patience_seconds=settings.reward_answer_seconds, hedge_seconds=settings.reward_hedge_seconds
    )
    return LiveScorer(reward, posts) if settings.live_scoring else posts


def _traces(settings: GatewaySettings) -> AbstractAsyncContextManager[Traces]:
    """Spans, if a collector is named; only then is OpenTelemetry imported."""
    url = settings.otlp_traces_url
    if url is None:
        return nullcontext(NoTraces())
    opened: AbstractAsyncContextManager[Traces] = import_module("acemath_gateway.adapters.otel").open_traces(
        url, ratio=settings.trace_ratio, instance=settings.instance
    )
    return opened


def _upstreams(settings: GatewaySettings, metrics: GatewayMetrics) -> tuple[Upstream, Upstream]:
    key = settings.internal_key()
    most = max(settings.max_sequences_in_flight or MOST_PLACES, settings.local_max_sequences or 0)
    connections = max(MAX_CONNECTIONS, _POLLS + most)
    policy = Upstream("policy", key=key, metrics=metrics, max_connections=connections)
    reward = Upstream("reward", key=key, metrics=metrics)
    reward.host_names = policy.host_names  # reward services are polled through the one and scored with by the other
    return policy, reward
