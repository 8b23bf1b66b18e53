"""The bodies that cross a process boundary. Frozen; an unknown field is an error; limits stand in the types."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

MAX_CANDIDATES = 64
MAX_SEED = 2**31 - 1 - MAX_CANDIDATES  # candidate i is sampled with seed + i, and vLLM takes int32 comfortably


def _is_unicode(text: str) -> str:
    # JSON can spell a lone surrogate (\ud800), which no encoder downstream can write again.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]
"""A caller's text: any Unicode that can be encoded as UTF-8."""


class Wire(BaseModel):
    """Base of every body: frozen, unknown fields refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


# ---------------------------------------------------------------------------------------------------------- errors


class ErrorInfo(Wire):
    """The inside of an error body, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Wire):
    """`{"error": {...}}`, the only shape an error has."""

    error: ErrorInfo


# ----------------------------------------------------------------------------------------------------------- slots


class SlotState(StrEnum):
    """Where a version stands in a service."""

    VERIFYING = "verifying"  # digests, headers and compatibility of a private copy are being checked
    STAGING = "staging"  # weights are being loaded
    WARMING = "warming"  # loaded; the canary and a first real call are under way
    READY = "ready"  # can serve; no traffic has been routed to it yet
    ACTIVE = "active"  # named by the channel's current release
    DRAINING = "draining"  # no longer named; finishes what it has
    RETIRED = "retired"  # stopped and released
    REJECTED = "rejected"  # will not be served; `reason` says why


class Slot(Wire):
    """One version in one service."""

    version: str = Field(description="name@version")
    state: SlotState
    endpoint: str | None = Field(None, description="base URL that serves it, e.g. http://127.0.0.1:8110")
    since: float = Field(description="Unix time of the last change of state, seconds")
    reason: str | None = None
    gated: bool = Field(
        False,
        description="takes no new jobs, because it makes room; jobs that hold it go on. Left out where it is false",
        exclude_if=lambda gated: not gated,  # readers from before it refuse fields that they do not know
    )
    stuck: bool = Field(
        False,
        description="its state says that it serves, and its engine computes nothing. Left out where it is false",
        exclude_if=lambda stuck: not stuck,
    )
    max_sequences: int | None = Field(
        None,
        ge=1,
        description="sequences in its engine's batch, of a policy. Left out where it is not known",
        exclude_if=lambda known: known is None,
    )
    cache_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens whose keys and values its engine keeps, of a policy. Left out where it is not known",
        exclude_if=lambda known: known is None,
    )


# ---------------------------------------------------------------------------------------------------------- reward


class Turn(Wire):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class TokenCandidate(Wire):
    """A candidate handed over as the token ids that the policy produced."""

    token_ids: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]


def _form_of(candidate: object) -> str:
    """By which of the two forms a candidate is read, so that an error speaks of that one only."""
    return "(ids)" if isinstance(candidate, dict | TokenCandidate) else "(text)"


Candidate = Annotated[Annotated[Text, Tag("(text)")] | Annotated[TokenCandidate, Tag("(ids)")], Discriminator(_form_of)]
"""A candidate as text or as ids; the names of the forms in brackets are no part of a `param`."""


_ONE_CONTEXT: list[JsonValue] = [  # a field that is null is one that was left out
    {"required": ["problem"], "properties": {"problem": {"type": "string"}}},
    {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
]


class ScoreRequest(Wire):
    """`POST /v1/score`: one problem (or conversation) and its candidates."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _ONE_CONTEXT})

    problem: Text | None = None
    messages: list[Turn] | None = Field(None, min_length=1)
    candidates: Annotated[list[Candidate], Field(min_length=1, max_length=256)]
    model: str | None = Field(None, description="name@version; omitted = the only active one")
    stream: bool = Field(False, strict=True)

    @model_validator(mode="after")
    def _one_context(self) -> ScoreRequest:
        if (self.problem is None) == (self.messages is None):
            raise ValueError("give exactly one of problem and messages")
        return self


MODEL_HEADER = "x-acemath-model"
"""Of a stream of scores: the name@version that gives them, known before the first."""


class ScoreItem(Wire):
    """The score of one candidate: a raw float32 logit; only comparisons within a problem are meaningful."""

    index: int
    score: float
    tokens: int = Field(description="tokens of context and candidate together")


class ScoreUsage(Wire):
    """What a scoring call cost."""

    prompt_tokens: int = Field(description="tokens of the shared context, counted once")
    candidate_tokens: int
    total_tokens: int


class ScoreTimings(Wire):
    """Where a scoring call's time went, in seconds."""

    tokenize_seconds: float
    queue_seconds: float
    compute_seconds: float
    total_seconds: float


class ScoreResponse(Wire):
    """The scores, in the order of the candidates."""

    model: str
    data: list[ScoreItem]
    usage: ScoreUsage
    timings: ScoreTimings


# ----------------------------------------------------------------------------------------------------------- solve


class Selection(StrEnum):
    """How the answer is chosen among the scored candidates."""

    BEST_OF_N = "best_of_n"
    MAJORITY = "majority"
    WEIGHTED_VOTE = "weighted_vote"
    BEST_OF_MAJORITY = "best_of_majority"


class Priority(StrEnum):
    """Who is let in first when places for candidates are short."""

    INTERACTIVE = "interactive"  # somebody looks at a screen
    DEFAULT = "default"
    BATCH = "batch"  # nobody waits; jobs always


class StopReason(StrEnum):
    """Why no more candidates were made."""

    COMPLETE = "complete"  # all that were asked for
    GREEDY = "greedy"  # temperature 0 makes one candidate
    AGREEMENT = "agreement"  # adaptive: the commonest answer will almost surely stay the commonest
    CANNOT_CHANGE = "cannot_change"  # adaptive: no candidate to come could change the answer
    SCORE = "score"  # adaptive: a calibrated score says that the answer is almost surely right
    DEADLINE = "deadline"  # the best so far at the deadline
    POLICY_FAILED = "policy_failed"  # the policy's stream broke; what had finished was used


class DegradedReason(StrEnum):
    """Why an answer is less than what was asked for."""

    TRUNCATED = "truncated"  # the chosen solution was cut off at max_tokens
    SCORER_FAILED = "scorer_failed"  # chosen by majority, because the caller allowed it
    PARTLY_SCORED = "partly_scored"  # some candidates have no score
    UNDECIDED_ANSWERS = "undecided_answers"  # a vote in which answers that could not be compared might have won
    FEWER_CANDIDATES = "fewer_candidates"  # fewer than requested finished


class FinishReason(StrEnum):
    """How a candidate ended."""

    STOP = "stop"
    LENGTH = "length"


class SolveRequest(Wire):
    """`POST /v1/solve`."""

    problem: Text = Field(min_length=1)
    n: int = Field(8, ge=1, le=MAX_CANDIDATES)
    selection: Selection = Selection.BEST_OF_N
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    max_tokens: int = Field(1024, ge=1, le=32768)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    deadline_seconds: float = Field(120.0, gt=0.0, le=3600.0)
    on_scorer_failure: Literal["error", "majority"] = "error"
    candidates: Literal["none", "scores", "full"] = "none"
    priority: Priority = Priority.DEFAULT
    adaptive: bool = False
    early_reject: bool = False
    stream: bool = False


class SolvedCandidate(Wire):
    """One candidate in an answer; `text` only with `candidates="full"`."""

    index: int
    text: str | None = None
    answer: str | None = None
    score: float | None = None
    finish_reason: FinishReason
    completion_tokens: int


class CompletionTokensDetails(Wire):
    """Of the generated tokens, those that are not in the answer."""

    rejected_prediction_tokens: int = 0


class Usage(Wire):
    """Every generated token is counted, whether its candidate was chosen or not; the prompt is counted once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class SolveTimings(Wire):
    """Where a solve's time went, in seconds since it was admitted; `total_seconds` with its wait for that."""

    queue_seconds: float
    first_candidate_seconds: float | None
    last_candidate_seconds: float | None
    last_score_seconds: float | None
    select_seconds: float
    total_seconds: float


class ServedModels(Wire):
    """The two versions, always of one release, that made an answer."""

    policy: str
    reward: str


class Solution(Wire):
    """The answer to a solve request."""

    id: str
    object: Literal["solution"] = "solution"
    created: int
    answer: str | None
    solution: str
    score: float | None
    selection: Selection
    stop_reason: StopReason
    degraded: bool
    degraded_reason: DegradedReason | None
    release: str
    models: ServedModels
    n_requested: int
    n_generated: int
    n_scored: int
    n_rejected: int = 0
    candidates: list[SolvedCandidate]
    usage: Usage
    timings: SolveTimings
