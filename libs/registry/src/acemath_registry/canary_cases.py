"""The canary in a manifest: fixed token ids, and what the trainer's model computed for them.

Of a policy version, the natural logarithm of the probability of each id after the first:

    {"cases": [{"messages": […], "token_ids": [t0, …, tk], "logprobs": [log p(t1|t0), …, log p(tk|t0…)]}, …],
     "dtype": "float32"}

of a reward version, the score at the last id:

    {"cases": [{"messages": […], "token_ids": [t0, …, tk], "score": s}, …], "dtype": "float32"}

`messages` may be left out; with them, the version's tokenizer and chat template must make these ids of them. The
publisher refuses another form, and the services, which compare, read it by the same types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from acemath_core.wire import Turn
from acemath_registry.errors import InvalidRequest
from acemath_registry.manifest import ModelKind

_TokenId = Annotated[int, Field(ge=0, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PolicyCase(_Strict):
    """Token ids and, for each but the first, the natural log-probability that the trainer computed.

    Attributes:
        messages: the conversation whose ids they are; None where that is not checked.
    """

    messages: tuple[Turn, ...] | None = None
    token_ids: Annotated[tuple[_TokenId, ...], Field(min_length=2, max_length=2048)]
    logprobs: tuple[Annotated[float, Field(le=0.0, strict=True)], ...]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.logprobs) != len(self.token_ids) - 1:
            raise ValueError("logprobs must have one value less than token_ids")
        return self


class PolicyCanary(_Strict):
    """The cases of a policy version, and the dtype they were computed in."""

    cases: Annotated[tuple[PolicyCase, ...], Field(min_length=1, max_length=32)]
    dtype: str


class RewardCase(_Strict):
    """Token ids and the raw score that the trainer computed at the last of them; `messages` as in `PolicyCase`."""

    messages: tuple[Turn, ...] | None = None
    token_ids: Annotated[tuple[_TokenId, ...], Field(min_length=1, max_length=8192)]
    score: Annotated[float, Field(strict=True)]


class RewardCanary(_Strict):
    """The cases of a reward version, and the dtype they were computed in."""

    cases: Annotated[tuple[RewardCase, ...], Field(min_length=1, max_length=64)]
    dtype: str


def canary_fault(kind: ModelKind, canary: Mapping[str, JsonValue], vocab_size: int) -> str | None:
    """What makes a canary one that nothing can be compared with; None for a good one.

    Args:
        kind: of the version.
        canary: as the manifest has it.
        vocab_size: of the version; ids lie below.
    """
    form: type[PolicyCanary | RewardCanary] = PolicyCanary if kind is ModelKind.POLICY else RewardCanary
    try:
        cases: Sequence[PolicyCase | RewardCase] = form.model_validate(canary).cases
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, ('canary', *first['loc'])))}: {first['msg']}"
    for number, case in enumerate(cases):
        if max(case.token_ids) >= vocab_size:
            said = f"id {max(case.token_ids)} is not below the vocab_size of {vocab_size}"
            return f"canary.cases.{number}.token_ids: {said}"
    return None


def require_canary(kind: ModelKind, canary: Mapping[str, JsonValue] | None, vocab_size: int) -> None:
    """Refuse to publish a canary that no replica could compare with; None is none, and passes.

    Raises:
        InvalidRequest: saying which field, and why.
    """
    fault = None if canary is None else canary_fault(kind, canary, vocab_size)
    if fault is not None:
        said = f"{fault}; give the {kind} canary that the trainer computed for this checkpoint, or none"
        raise InvalidRequest(said, param="canary")
