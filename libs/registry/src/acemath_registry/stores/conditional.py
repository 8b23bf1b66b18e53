"""One object that is read, and then written if nobody has written it since."""

from __future__ import annotations

from acemath_registry.documents import MAX_DOCUMENT_BYTES
from acemath_registry.stores.port import Overtaken
from acemath_registry.stores.s3 import ABSENT, S3Bucket


class ConditionalChange:
    """`Change` by `If-Match` and `If-None-Match`.

    An object without bytes counts as none: not every store deletes conditionally, so one that has to be taken away by
    compare-and-set is emptied.

    Args:
        bucket: where it is.
        key: its name.
    """

    def __init__(self, bucket: S3Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._tag: str | None = None

    def read(self) -> bytes | None:
        """See `Change.read`."""
        try:
            data, self._tag = self._bucket.get(self._key, MAX_DOCUMENT_BYTES)
        except FileNotFoundError:
            self._tag = ABSENT
            return None
        return data or None

    def write(self, data: bytes) -> None:
        """See `Change.write`; what was never read is written whatever is there."""
        if not self._bucket.put(self._key, data, only_if=self._tag):
            raise Overtaken(
                f"{self._key} was changed by somebody else meanwhile; nothing was written; look at it again"
            )
