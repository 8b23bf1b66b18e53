"""Which replicas one request's calls go to, in which order, and what calls to the same one have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acemath_core.deadline import Deadline
from acemath_gateway.adapters.attempts import Patience
from acemath_gateway.adapters.http import CallFailed, Upstream
from acemath_gateway.metrics import CallResult


@dataclass
class Turn:
    """One replica's turn at a request, for one call or for several.

    Attributes:
        upstream: its kind of service.
        endpoint: the replica.
        patience: how long it may say nothing.
        begun: whether anything came of any call.
    """

    upstream: Upstream
    endpoint: str
    patience: Patience
    begun: bool = False
    _shunned: bool = False

    def shun(self, *, hung: bool) -> None:
        """Ask this replica last for a while: once until it answers, however many calls found it at fault."""
        if not self._shunned:
            self._shunned = True
            self.upstream.replicas.shun(self.endpoint, hung=hung)

    def answered(self) -> None:
        """Note that something came of a call: what goes wrong after that is a fault of its own."""
        self._shunned = False
        self.upstream.replicas.answered(self.endpoint)


class Turns:
    """The turns of one request: every replica once, a single one twice (its connection may just have been closed).

    However many calls a request makes, it has earned one retry's share, and going on to a replica costs one retry: an
    outage is not multiplied by them.

    Args:
        upstream: connections to the replicas.
        endpoints: of those that serve what is asked for.
        deadline: the request's.
        patience: number of replicas that could still be asked → how long one may say nothing.
    """

    def __init__(
        self, upstream: Upstream, endpoints: Sequence[str], deadline: Deadline, patience: Callable[[int], Patience]
    ) -> None:
        upstream.budget.earn()
        self._upstream, self._deadline, self._patience = upstream, deadline, patience
        self._ordered = upstream.replicas.order(endpoints)
        self._known: dict[int, Turn | None] = {}

    def of(self, attempt: int, failure: CallFailed) -> Turn | None:
        """Whose turn it is at a call's attempt of this number, from 0; None when there is no sense in another one.

        Args:
            attempt: its number.
            failure: why the attempt before brought nothing.
        """
        if attempt >= max(2, len(self._ordered)) or not self._ordered or (attempt and not self._may_help(failure)):
            return None
        if attempt not in self._known:
            self._known[attempt] = self._begin(attempt)
        elif (turn := self._known[attempt]) is not None:
            # The calls before may have ended long ago: their silence since then is not this one's.
            turn.patience.last_as_long_as(self._wait(attempt))
        if attempt and self._known[attempt]:
            self._upstream.metrics.upstream_retries.labels(self._upstream.role).inc()
        return self._known[attempt]

    def _begin(self, attempt: int) -> Turn | None:
        if attempt and not self._upstream.may_retry():
            return None
        endpoint = self._ordered[attempt % len(self._ordered)]
        return Turn(self._upstream, endpoint, self._wait(attempt))

    def _wait(self, attempt: int) -> Patience:
        """How long a call that is made now may hear nothing."""
        return self._patience(len(self._ordered) - attempt - 1)

    def _may_help(self, failure: CallFailed) -> bool:
        """Whether asking once more after this failure makes sense."""
        if self._deadline.expired():
            return False
        return len(self._ordered) > 1 or failure.result is CallResult.BROKEN
