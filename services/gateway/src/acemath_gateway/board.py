"""What is known of one job's candidates while they come in and get their scores."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable

from acemath_answers import ends_in_box, extract_answer
from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest, ServiceError
from acemath_core.wire import FinishReason, StopReason
from acemath_gateway.jobs import CandidateDone, CandidateRejected, CandidateScored, SolvedItem, SolveEvent, Timings
from acemath_gateway.metrics import CandidateResult, GatewayMetrics
from acemath_gateway.ports import CandidateFailed, CandidateFinished, PolicyEvent, ReleaseTarget, TokensGenerated
from acemath_gateway.signed_sum import add_signed

_MISSES_UNTIL_AWAY = 3  # one may be an accident of its replica; the scorer has already tried others


class Board:
    """The candidates of one job.

    Args:
        wanted: candidates asked of the policy.
        emit: gets `CandidateDone`, `CandidateScored` and `CandidateRejected` as they happen.

    Attributes:
        wanted: see above.
        asked: of these, the candidates whose wave has begun.
        cut: whether the deadline ended the work.
        settled: why no further candidate is needed, if that is so.
        refusals: why candidates cannot be scored at all, one for each.
        misses: why candidates that could be scored were not, one for each.
        target: the release that makes them; None before there is one.
        prompt_tokens: of what they answer; 0 before it is known.
    """

    def __init__(self, wanted: int, emit: Callable[[SolveEvent], object]) -> None:
        self.wanted, self._emit = wanted, emit
        self.asked, self.cut = 0, False
        self.settled: StopReason | None = None
        self.refusals: list[InvalidRequest] = []
        self.misses: list[ServiceError] = []
        self.target: ReleaseTarget | None = None
        self.prompt_tokens = 0
        self._started = time.monotonic()
        self._prepared = 0.0
        self._done: dict[int, CandidateDone] = {}
        self._scored: dict[int, CandidateScored] = {}
        self._failed: set[int] = set()
        self._rejected: set[int] = set()
        self._seen: Counter[int] = Counter()

    @property
    def finished(self) -> int:
        """Candidates that are complete."""
        return len(self._done)

    @property
    def scored(self) -> int:
        """Candidates that have a score."""
        return len(self._scored)

    @property
    def failed(self) -> int:
        """Candidates that will not come."""
        return len(self._failed)

    @property
    def rejected(self) -> int:
        """Candidates that were stopped, since others promised more."""
        return len(self._rejected)

    @property
    def expected(self) -> int:
        """Candidates that are finished or may still come."""
        return self.wanted - self.failed - self.rejected

    @property
    def discarded_tokens(self) -> int:
        """Tokens seen of candidates that never became complete."""
        return sum(tokens for index, tokens in self._seen.items() if index not in self._done)

    @property
    def tokens(self) -> int:
        """Tokens seen, of every candidate, whatever became of it."""
        return sum(event.completion_tokens for event in self._done.values()) + self.discarded_tokens

    def lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of each candidate that ended by itself or was rejected, and of each that was broken off."""
        parts = {index: tokens for index, tokens in self._seen.items() if tokens and index not in self._done}
        whole = [event.completion_tokens for event in self._done.values()]
        whole += [tokens for index, tokens in parts.items() if index in self._rejected]
        return whole, [tokens for index, tokens in parts.items() if index not in self._rejected]

    @property
    def scorer_away(self) -> bool:
        """Whether to stop asking the scorer: it failed several times and never gave a score."""
        return not self._scored and len(self.misses) >= _MISSES_UNTIL_AWAY

    def ask(self, candidates: int) -> None:
        """So many more are asked of the policy now."""
        self.asked += candidates

    def prepared(self, prompt_tokens: int) -> None:
        """The prompt goes to the policy now."""
        self._prepared, self.prompt_tokens = self._now(), prompt_tokens

    def take(self, event: PolicyEvent) -> CandidateDone | None:
        """Note what the policy says; gives the candidate that it completes, if it does."""
        match event:
            case TokensGenerated(index=index, token_ids=ids):
                self._seen[index] += len(ids)
            case CandidateFailed(index=index):
                self._failed.add(index)
            case CandidateFinished():
                return self._finish(event)
        return None

    def left_over(self, event: PolicyEvent, cutoff: Deadline) -> bool:
        """Whether the event is a candidate that only the deadline kept from ending; it has not failed."""
        if not (isinstance(event, CandidateFailed) and cutoff.expired()):
            return False
        self.cut = True
        return True

    def has_ended(self, index: int) -> bool:
        """Whether nothing more comes of a candidate, whatever became of it."""
        return index in self._done or index in self._failed or index in self._rejected

    def tokens_of(self, index: int) -> int:
        """Tokens seen of a candidate."""
        return self._seen[index]

    def score_of(self, index: int) -> float | None:
        """The score of a candidate, if it has one."""
        scored = self._scored.get(index)
        return scored.score if scored else None

    def reject(self, index: int, partial_score: float) -> None:
        """Note that a candidate was stopped with this partial score."""
        self._rejected.add(index)
        self._emit(CandidateRejected(index, partial_score, self._seen[index], self._now()))

    def give_score(self, index: int, score: float) -> None:
        """Note the score of a candidate."""
        self._scored[index] = CandidateScored(index, score, self._now())
        self._emit(self._scored[index])

    def items(self, classes: dict[int, int | None]) -> tuple[SolvedItem, ...]:
        """The finished candidates by index, with these classes of answers."""
        return tuple(self._item(self._done[index], classes.get(index)) for index in sorted(self._done))

    def answers(self) -> dict[int, str | None]:
        """Index of each finished candidate → its answer, by index."""
        return {index: self._done[index].answer for index in sorted(self._done)}

    def timings(self, select_seconds: float) -> Timings:
        """Where the time went."""
        done = [event.seconds for event in self._done.values()]
        return Timings(
            prepare_seconds=self._prepared,
            first_candidate_seconds=min(done, default=None),
            last_candidate_seconds=max(done, default=None),
            last_score_seconds=max((event.seconds for event in self._scored.values()), default=None),
            select_seconds=select_seconds,
            total_seconds=self._now(),
        )

    def record(self, metrics: GatewayMetrics) -> None:
        """Count what became of every candidate; once, at the end, however the job ended."""
        saved = self.wanted - self.asked if self.settled else 0
        became = {
            CandidateResult.SCORED: self.scored,
            CandidateResult.UNSCORED: self.finished - self.scored,
            CandidateResult.FAILED: self.failed,
            CandidateResult.REJECTED: self.rejected,
            CandidateResult.CANCELLED: max(0, self.expected - saved - self.finished),
        }
        for result, count in became.items():
            if count:
                metrics.candidates.labels(result).inc(count)
        if self.settled:
            metrics.early_stops.labels(self.settled).inc()
            metrics.saved_candidates.inc(saved)
            metrics.saved_tokens.inc(saved * statistics.fmean(e.completion_tokens for e in self._done.values()))
        metrics.truncated.inc(sum(1 for event in self._done.values() if event.finish_reason is FinishReason.LENGTH))
        metrics.generated_tokens.inc(self.tokens)
        metrics.candidates_per_request.observe(self.finished)
        if self._done:
            metrics.first_candidate.observe(min(event.seconds for event in self._done.values()))
        for event in self._scored.values():
            metrics.score.observe(event.score)
            add_signed(metrics.score_parts, event.score)
        if len(self._scored) > 1:
            times = [event.seconds for event in self._scored.values()]
            metrics.straggler_wait.observe(max(times) - statistics.median(times))

    def _finish(self, event: CandidateFinished) -> CandidateDone:
        answer = None if ends_in_box(event.text) else extract_answer(event.text)
        done = CandidateDone(event.index, event.text, answer, event.finish_reason, len(event.token_ids), self._now())
        self._done[event.index] = done
        self._emit(done)
        return done

    def _item(self, done: CandidateDone, answer_class: int | None) -> SolvedItem:
        scored = self._scored.get(done.index)
        return SolvedItem(
            done.index,
            done.text,
            done.answer,
            scored.score if scored else None,
            answer_class,
            done.finish_reason,
            done.completion_tokens,
        )

    def _now(self) -> float:
        return time.monotonic() - self._started
