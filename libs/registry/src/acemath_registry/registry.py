"""The registry as one object; every method blocks on the disk, so call it from a thread in an async service."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from acemath_core.comparison import Comparison
from acemath_registry import (
    audit,
    bands,
    canaries,
    evaluations,
    gatekeeping,
    gates,
    moves,
    releases,
    served,
    status,
)
from acemath_registry.audit import AuditEntry, AuditEvent
from acemath_registry.bands import Bands
from acemath_registry.channels import Channel
from acemath_registry.checkpoints import Checkpoints
from acemath_registry.errors import storage_errors
from acemath_registry.evaluations import Attached
from acemath_registry.gates import Gates, Refusal
from acemath_registry.moves import Move
from acemath_registry.refs import ModelRef
from acemath_registry.releases import Release
from acemath_registry.served import Served


class Registry(Checkpoints):
    """Model versions (`Checkpoints`), releases and channels under one directory, which may be a mount that many hosts
    share, or in a bucket of an object store.

    Making one touches nothing; a reader never needs to write. For arguments see `Checkpoints`.
    """

    def create_release(self, policy: ModelRef, reward: ModelRef) -> Release:
        """Pair a policy and a reward version. See `releases.create_release` for errors."""
        return releases.create_release(self._layout, policy, reward)

    def release(self, release_id: str) -> Release:
        """A release, its bytes checked against its id. See `releases.read_release` for errors."""
        return releases.read_release(self._layout, release_id)

    def promote(
        self,
        channel: str,
        release_id: str,
        *,
        expected_generation: int | None,
        by: str,
        override: str | None = None,
        again: bool = False,
    ) -> Channel:
        """Point a channel at a release; see `move`."""
        return self.move(
            channel, release_id, expected_generation=expected_generation, by=by, override=override, again=again
        ).after

    def move(
        self,
        channel: str,
        release_id: str,
        *,
        expected_generation: int | None,
        by: str,
        override: str | None = None,
        why: str | None = None,
        again: bool = False,
    ) -> Move:
        """Point a channel at a release by compare-and-set, if the channel's gates let it.

        Args:
            channel: its name.
            release_id: what to point at.
            expected_generation: what the caller saw; see `moves.promote`, also for further errors.
            by: who asks.
            override: the reason to promote what a gate refuses; it is written into the audit log first.
            why: for the audit log; None for what `override` says.
            again: let replicas try once more what they rejected, also where the release is current.

        Raises:
            GateRefused: a gate refuses; nothing was changed.
        """
        keeper = gatekeeping.gatekeeper(self._layout, channel, by=by, override=override, again=again)
        return moves.promote(
            self._layout, channel, release_id, expected_generation=expected_generation, by=by, gatekeeper=keeper,
            why=override if why is None else why, again=again,
        )  # fmt: skip

    def gates(self, channel: str) -> Gates:
        """What a channel asks of a release. See `gates.read_gates` for errors."""
        return gates.read_gates(self._layout, channel)

    def set_gates(self, channel: str, asked: Gates, *, by: str) -> None:
        """Declare what a channel asks. See `gatekeeping.set_gates` for errors."""
        gatekeeping.set_gates(self._layout, channel, asked, by=by)

    def ask_gates(self, channel: str, release_id: str) -> tuple[Refusal, ...]:
        """Why a channel's gates would refuse a release now. See `gatekeeping.ask` for errors."""
        return gatekeeping.ask(self._layout, channel, release_id)

    def attach_evaluation(self, comparison: Comparison, *, by: str) -> Attached:
        """Bind a comparison to its two releases, for gates. See `evaluations.attach_evaluation` for errors."""
        return evaluations.attach_evaluation(self._layout, comparison, by=by)

    def rollback(
        self,
        channel: str,
        *,
        by: str,
        expected_generation: int | None = None,
        why: str | None = None,
        expected_release: str | None = None,
        once: bool = False,
    ) -> Channel:
        """Promote a channel's previous release. See `moves.rollback` for arguments and errors."""
        return moves.rollback(
            self._layout, channel, expected_generation=expected_generation, by=by, why=why,
            expected_release=expected_release, once=once,
        ).after  # fmt: skip

    def canary(
        self,
        channel: str,
        release_id: str,
        share: float,
        *,
        by: str,
        expected_generation: int | None = None,
        override: str | None = None,
        why: str | None = None,
        again: bool = False,
    ) -> Channel:
        """Give a release a share of a channel's requests; see `canaries.begin_canary`, and `move` for the gates."""
        keeper = gatekeeping.gatekeeper(self._layout, channel, by=by, override=override, again=again, share=True)
        return canaries.begin_canary(
            self._layout, channel, release_id, share, expected_generation=expected_generation, by=by,
            gatekeeper=keeper, why=override if why is None else why, again=again,
        )  # fmt: skip

    def canary_release(self, channel: Channel) -> Release | None:
        """The release that has a share beside the current one. See `releases.read_release` for errors."""
        canary = channel.canary
        if canary is None:
            return None
        return releases.read_release(self._layout, canary.release, sha256=canary.release_sha256)

    def stop_canary(
        self, channel: str, *, by: str, expected_generation: int | None = None, why: str | None = None
    ) -> Channel:
        """Take the share away. See `canaries.stop_canary` for errors."""
        return canaries.stop_canary(self._layout, channel, expected_generation=expected_generation, by=by, why=why)

    def bands(self, channel: str) -> Bands:
        """What is watched on a channel. See `bands.read_bands` for errors."""
        return bands.read_bands(self._layout, channel)

    def set_bands(self, channel: str, watched: Bands, *, by: str) -> None:
        """Declare what is watched on a channel. See `bands.set_bands` for errors."""
        bands.set_bands(self._layout, channel, watched, by=by)

    def channel(self, name: str) -> Channel:
        """Where a channel points. See `releases.read_channel` for errors; NotFound before the first promotion."""
        return releases.read_channel(self._layout, name)

    def channel_mark(self, name: str) -> Hashable | None:
        """Another value after each change of a channel; cheap to ask for. None when it can not be told.

        Raises:
            StorageError: a store does not answer, or refuses.
        """
        return self._layout.store.mark(self._layout.channel(name))

    def write_status(self, service: str, instance: str, document: dict[str, Any]) -> None:
        """Replace what an instance reports. Raises InvalidRequest, StorageError."""
        status.write_status(self._layout, service, instance, document)

    def read_status(self, service: str, instance: str) -> dict[str, Any]:
        """What an instance reported last. Raises NotFound, VerificationError, StorageError."""
        return status.read_status(self._layout, service, instance)

    def remove_status(self, service: str, instance: str) -> None:
        """Take away what an instance reported. Raises InvalidRequest, NotFound, StorageError."""
        status.remove_status(self._layout, service, instance)

    def statuses(self, service: str, channel: str | None = None) -> dict[str, dict[str, Any]]:
        """Instance → what it reported last, on any channel or one. Raises VerificationError, StorageError."""
        return status.read_statuses(self._layout, service, channel)

    def served(self, channel: str) -> Served | None:
        """Which release a channel's gateways served last. See `served.last_served` for errors."""
        return served.last_served(self._layout, channel)

    def to_come_back_to(self, channel: str) -> Served | None:
        """What a start may serve while the named release is not ready. See `served.to_come_back_to` for errors."""
        return served.to_come_back_to(self._layout, channel)

    def note_served(self, channel: str, now: Served, *, by: str) -> None:
        """Write down which release a gateway serves. See `served.note_served` for errors."""
        served.note_served(self._layout, channel, now, by=by)

    def log(self) -> list[AuditEntry]:
        """The last changes of the registry, the oldest first. Raises StorageError."""
        return audit.read_log(self._layout)

    def note(self, event: AuditEvent, *, by: str, what: str, why: str | None = None) -> bool:
        """Append a change to the audit log; False when it cannot be written, which is logged and stops nobody."""
        return audit.record(self._layout, event, by=by, what=what, why=why)

    def release_ids(self) -> list[str]:
        """Every release's id, sorted; for people."""
        with storage_errors("listing the releases"):
            return [name for name in self._layout.store.names(self._layout.releases) if name.startswith("r-")]

    def channel_names(self) -> list[str]:
        """Every channel's name, sorted; for people."""
        with storage_errors("listing the channels"):
            return self._layout.store.names(self._layout.channels)
