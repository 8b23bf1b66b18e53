"""What the channel says, read again only when its file changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acemath_registry import Channel, Registry


@dataclass(frozen=True, slots=True)
class Pointer:
    """One release as a channel names it.

    Attributes:
        release: release id.
        generation: the channel's generation that named it.
        policy: policy version, name@version.
        reward: reward version, name@version.
        policy_manifest_sha256: what the release says of the policy's manifest.
    """

    release: str
    generation: int
    policy: str
    reward: str
    policy_manifest_sha256: str


class ChannelWatch:
    """Follows one channel. Every method blocks on the disk.

    Args:
        registry: where it is.
        channel: its name.
    """

    def __init__(self, registry: Registry, channel: str) -> None:
        self._registry, self._name = registry, channel
        self._path: Path = registry.root / "channels" / f"{channel}.json"
        self._seen: tuple[int, int, int] | None = None
        self._pointers: tuple[Pointer, ...] = ()

    def read(self) -> tuple[Pointer, ...]:
        """What the channel names now and, second, what it named before that, if anything.

        Raises:
            NotFound: nothing was promoted on the channel yet.
            VerificationError, StorageError: what is there cannot be trusted or read.
        """
        stamp = self._stamp()
        if stamp is None or stamp != self._seen:
            self._pointers = self._follow(self._registry.channel(self._name))
            self._seen = stamp
        return self._pointers

    def _follow(self, channel: Channel) -> tuple[Pointer, ...]:
        newest = self._pointer(channel.release, channel.generation)
        if channel.previous is None:
            return (newest,)
        return (newest, self._pointer(channel.previous, channel.generation - 1))

    def _pointer(self, release_id: str, generation: int) -> Pointer:
        release = self._registry.release(release_id)
        return Pointer(
            release_id, generation, str(release.policy.ref), str(release.reward.ref), release.policy.manifest_sha256
        )

    def _stamp(self) -> tuple[int, int, int] | None:
        """Identity of the file's content, which is only ever replaced as a whole; None: ask the registry."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size)
