"""Where a rollback may go: it is asked for by several at once (the watch, and who was paged), and takes place once."""

from __future__ import annotations

from acemath_registry.channels import Channel
from acemath_registry.errors import Conflict
from acemath_registry.refs import check_release_id


class WayBack:
    """The way back of one request, which may be tried several times.

    Args:
        name: of the channel.
        expected_release: id of the release that is to go; None for whatever is current.
        once: unless a release is expected, do not undo a rollback.

    Raises:
        InvalidRequest: it is no release id.
    """

    def __init__(self, name: str, expected_release: str | None, *, once: bool) -> None:
        self._name, self._once = name, once and expected_release is None
        self._expected = None if expected_release is None else check_release_id(expected_release)
        self._first: Channel | None = None  # what the first try found

    def target(self, found: Channel) -> str:
        """The release to go to.

        Raises:
            Conflict: another release is current than was expected or than the first try found, there is none to go to,
                or the channel came here by a rollback.
        """
        self._check_expected(found)
        self._check_first(found)
        if found.previous is None:
            said = f"channel {self._name!r} has no release before {found.release}; promote one"
            raise Conflict(said, should_retry=False)
        if self._once and found.rollback:
            raise Conflict(self._undoing(found), param="expected_generation", should_retry=False)
        return found.previous

    def _check_expected(self, found: Channel) -> None:
        if self._expected in (None, found.release):
            return
        done = found.rollback and found.previous == self._expected
        how = f"; it was rolled back from {self._expected} already, by {found.by}" if done else ""
        raise Conflict(
            f"channel {self._name!r} is at {found.release} (generation {found.generation}), not {self._expected}{how}; "
            "nothing was changed",
            param="from",
            should_retry=False,
        )

    def _check_first(self, found: Channel) -> None:
        """A try that was overtaken goes on only where the same release would go, to the same one."""
        first = self._first = self._first or found
        if (found.release, found.previous) != (first.release, first.previous):
            raise Conflict(
                f"channel {self._name!r} was moved from {first.release} to {found.release} meanwhile, by {found.by} "
                f"(generation {found.generation}); nothing was changed; look at it again, then decide",
                should_retry=False,
            )

    def _undoing(self, found: Channel) -> str:
        return (
            f"channel {self._name!r} is at {found.release} by a rollback already, by {found.by} at "
            f"{found.at.isoformat(timespec='seconds')}, and another one would bring {found.previous} back; nothing was "
            f"changed. To bring it back all the same, say which generation you saw (acemath registry rollback "
            f"{self._name} --expect {found.generation}), or promote it: acemath registry promote {self._name} "
            f"--release {found.previous}"
        )
