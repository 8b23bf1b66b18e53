"""The official `openai` client against the application on a real socket: answers, chunks, and proper exceptions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from acemath_core.errors import ErrorCode, Unavailable
from acemath_core.prompts import POLICY_SYSTEM
from doubles.gateway_app import PROBLEM, SCRIPT, GatewayOnDoubles, eventually, served
from doubles.ports import POLICY, TARGET

MESSAGES = [{"role": "user", "content": PROBLEM}]


@asynccontextmanager
async def client_of(gateway: GatewayOnDoubles) -> AsyncIterator[openai.AsyncOpenAI]:
    plain = openai.DefaultAsyncHttpxClient(verify=False, timeout=60)  # a TLS context for each costs 40 ms
    async with (
        served(gateway.app()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=plain) as client,
    ):
        yield client


@pytest.fixture
def gateway() -> GatewayOnDoubles:
    return GatewayOnDoubles()


async def test_a_chat_gets_the_best_candidate(gateway):
    async with client_of(gateway) as client:
        done = await client.chat.completions.create(model="acemath", messages=MESSAGES, seed=0)
    assert done.choices[0].message.content == SCRIPT[0] and done.choices[0].finish_reason == "stop"
    assert done.object == "chat.completion" and done.model == "acemath"
    assert done.system_fingerprint == TARGET.release
    assert done._request_id
    (_, sampling) = gateway.policy.calls[0]
    assert (sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens) == (8, 0.7, 0.95, 1024)
    usage = done.usage
    words = len(SCRIPT[0].split())
    assert usage.completion_tokens_details.rejected_prediction_tokens == usage.completion_tokens - words
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert done.acemath["models"]["policy"] == POLICY and done.acemath["answer"] == "24"


async def test_n_gives_the_best_by_score_first(gateway):
    async with client_of(gateway) as client:
        done = await client.chat.completions.create(
            model="acemath",
            messages=MESSAGES,
            seed=0,
            n=3,
            extra_body={"best_of": 3, "acemath": {"candidates": "scores"}},
        )
    assert [choice.message.content for choice in done.choices] == list(SCRIPT)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert done.usage.completion_tokens_details.rejected_prediction_tokens == 0
    assert len(done.acemath["candidates"]) == 3


async def test_a_stream_carries_role_content_end_and_usage(gateway):
    async with client_of(gateway) as client:
        stream = await client.chat.completions.create(
            model="acemath", messages=MESSAGES, seed=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SCRIPT[0]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.system_fingerprint for chunk in chunks} == {TARGET.release}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_the_client_library_accumulates_a_stream_of_several_choices(gateway):
    async with (
        client_of(gateway) as client,
        client.chat.completions.stream(model="acemath", messages=MESSAGES, seed=0, n=2) as stream,
    ):
        done = await stream.get_final_completion()
    assert [choice.message.content for choice in done.choices] == [SCRIPT[0], SCRIPT[0]]


async def test_without_include_usage_there_is_no_usage_chunk(gateway):
    async with client_of(gateway) as client:
        stream = await client.chat.completions.create(model="acemath", messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_the_synchronous_client_works_too(gateway):
    def ask(url: str) -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["acemath"]
            assert client.models.retrieve("acemath").id == "acemath"
            return client.chat.completions.create(model="acemath", messages=MESSAGES, seed=0).choices[0].message.content

    async with served(gateway.app()) as url:
        assert await asyncio.to_thread(ask, url) == SCRIPT[0]


async def test_a_conversation_goes_unchanged_to_the_policy_and_without_system_text_to_the_scorer(gateway):
    turns = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4", "refusal": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "3 * 8?"}]},
    ]
    async with client_of(gateway) as client:
        await client.chat.completions.create(model="acemath", messages=turns)
    prompt = bytes(gateway.policy.calls[0][0]).decode()
    assert prompt == "system:Answer in French.\nuser:What is 2 + 2?\nassistant:4\nuser:And\n3 * 8?\n"
    assert POLICY_SYSTEM not in prompt
    assert [turn["role"] for turn in gateway.scorer.contexts[0]] == ["user", "assistant", "user"]


async def test_a_refused_request_raises_what_openai_raises(gateway):
    async with client_of(gateway) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="acemath", messages=MESSAGES, temperature=3)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error"
    assert missing.value.code == "model_not_found" and missing.value.param == "model"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_outage_raises_an_internal_server_error(gateway, stream):
    gateway.policy.error = Unavailable("gone", code=ErrorCode.POLICY_UNAVAILABLE, retry_after=1)
    async with client_of(gateway) as client:
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model="acemath", messages=MESSAGES, stream=stream)
    assert error.value.status_code == 503 and error.value.code == "policy_unavailable"


async def test_a_failure_in_mid_stream_raises_too(gateway, monkeypatch):
    monkeypatch.setattr("acemath_gateway.routes.streams.STATUS_GRACE_SECONDS", 0.05)
    gateway.policy.token_seconds = 0.05
    gateway.scorer.error = Unavailable("no scorer", code=ErrorCode.REWARD_UNAVAILABLE)
    async with client_of(gateway) as client:
        stream = await client.chat.completions.create(model="acemath", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError) as error:
            async for _ in stream:
                pass
    assert error.value.code == "reward_unavailable"


async def test_closing_a_stream_cancels_the_work(gateway, monkeypatch):
    monkeypatch.setattr("acemath_gateway.routes.streams.STATUS_GRACE_SECONDS", 0.05)
    gateway.policy.gate = asyncio.Event()  # it would never end by itself
    async with client_of(gateway) as client:
        stream = await client.chat.completions.create(model="acemath", messages=MESSAGES, stream=True)
        await stream.close()
        await eventually(lambda: gateway.policy.running == 0 and gateway.policy.aborted == 1)


OTHER_FIELDS = {
    "frequency_penalty": (0.0, 0.5),
    "presence_penalty": (0, 1),
    "logit_bias": ({}, {"50256": -100}),
    "logprobs": (False, True),
    "top_logprobs": (None, 3),
    "tools": ([], [{"type": "function", "function": {"name": "f"}}]),
    "tool_choice": ("none", "required"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "modalities": (["text"], ["text", "audio"]),
    "store": (False, True),
    "service_tier": ("auto", "flex"),
    "metadata": ({}, {"a": "b"}),
    "reasoning_effort": (None, "high"),
    "prediction": (None, {"type": "content", "content": "x"}),
    "web_search_options": (None, {}),
    "functions": ([], [{"name": "f"}]),
    "verbosity": ("medium", "low"),
}


async def test_openais_other_fields_are_taken_only_where_they_change_nothing(gateway):
    async with client_of(gateway) as client:
        for name, (neutral, asking) in OTHER_FIELDS.items():
            await client.chat.completions.create(model="acemath", messages=MESSAGES, extra_body={name: neutral})
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="acemath", messages=MESSAGES, extra_body={name: asking})
            assert refused.value.param == name and refused.value.code == "unsupported_parameter"


async def test_a_field_of_solve_is_shown_its_place(gateway):
    async with client_of(gateway) as client:
        for name in ("priority", "selection", "deadline_seconds"):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="acemath", messages=MESSAGES, extra_body={name: "batch"})
            assert refused.value.param == name and f"acemath.{name}" in refused.value.message


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"n": 9}, "n"),
    ({"n": 2, "best_of": 1}, "n"),
    ({"best_of": 65}, "best_of"),
    ({"n": True}, "n"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop.0"),
    ({"seed": -1}, "seed"),
    ({"top_k": 5}, "top_k"),
    ({"acemath": {"selektion": "majority"}}, "acemath.selektion"),
    ({"acemath": {"selection": "coin"}}, "acemath.selection"),
    ({"acemath": {"deadline_seconds": 3000}}, "acemath.deadline_seconds"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages.0.name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    ({"messages": [{"role": "user", "content": "x" * 40_000}]}, "messages"),
    ({"messages": "hello"}, "messages"),
]


async def test_what_cannot_be_done_names_the_field(gateway):
    async with client_of(gateway) as client:
        for body, param in REFUSED:
            rest = {key: value for key, value in body.items() if key != "messages"}
            messages = body.get("messages", MESSAGES)
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="acemath", messages=messages, extra_body=rest)
            assert refused.value.body["message"]
            named = refused.value.param
            assert named == param if param else named.startswith("messages.0.content"), body
    assert not gateway.policy.calls


async def test_stop_texts_seed_and_user_are_taken(gateway):
    async with client_of(gateway) as client:
        await client.chat.completions.create(
            model="acemath", messages=MESSAGES, stop="END", seed=5, user="u-1", max_completion_tokens=7, top_p=0.5
        )
    sampling = gateway.policy.calls[0][1]
    assert (sampling.stop, sampling.seed, sampling.max_tokens, sampling.top_p) == (("END",), 5, 7, 0.5)


async def test_a_key_makes_a_repeated_chat_the_same_answer(gateway):
    keyed = {"model": "acemath", "messages": MESSAGES, "extra_headers": {"Idempotency-Key": "chat-1"}}
    async with client_of(gateway) as client:
        first = await client.chat.completions.with_raw_response.create(**keyed)
        again = await client.chat.completions.with_raw_response.create(**keyed)
        with pytest.raises(openai.ConflictError) as other:
            await client.chat.completions.create(**keyed, n=2)
        with pytest.raises(openai.BadRequestError) as streamed:
            await client.chat.completions.create(**keyed, stream=True)
    assert again.content == first.content and again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers and len(gateway.policy.calls) == 1
    assert other.value.code == "idempotency_conflict" and streamed.value.param == "Idempotency-Key"
