"""A policy version's prompts as token ids, with its own tokenizer and chat template out of the registry."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from acemath_core.errors import ErrorCode, InvalidRequest, Unavailable
from acemath_core.prompts import ChatMessage
from acemath_prompts import PromptEncoder, TemplateError
from acemath_registry import Manifest, ModelRef, Registry, RejectReason, VerificationError

_KEPT = 4  # the current release, the one before it, and room for two that are being tried
_SHORT_CHARS = 2000  # some tenths of a millisecond; a thread takes as long to be reached
_READ = frozenset({"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"})


class PolicyPrompts(Protocol):
    """The prompts of one policy version."""

    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion together that the version was made for."""
        ...

    async def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of the conversation with the generation prompt; no text in it can become a control token.

        Raises:
            InvalidRequest: the version's template refuses this sequence of turns.
        """
        ...


class Encoders(Protocol):
    """Prompts by policy version."""

    async def of(self, version: str) -> PolicyPrompts:
        """The prompts of `version` (name@version).

        Raises:
            Unavailable: they cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class VersionPrompts:
    """`PolicyPrompts` with a tokenizer of the registry."""

    encoder: PromptEncoder
    max_length: int

    async def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """See `PolicyPrompts.encode`; in a thread when it is long, because that takes a while."""
        try:
            if sum(len(message["content"]) for message in messages) <= _SHORT_CHARS:
                return self.encoder.encode_prompt(messages)
            return await asyncio.to_thread(self.encoder.encode_prompt, messages)
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template refuses these turns: {error}", param="messages") from error


class RegistryEncoders:
    """`Encoders` out of the registry; the last few are kept.

    Args:
        registry: where the versions are.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._kept: OrderedDict[str, VersionPrompts] = OrderedDict()
        self._loading = asyncio.Lock()

    async def of(self, version: str) -> PolicyPrompts:
        """See `Encoders.of`."""
        if version not in self._kept:
            try:
                await self.load(version, manifest_sha256=None)
            except Exception as error:
                raise Unavailable(
                    "the policy's tokenizer cannot be read; try again later", code=ErrorCode.NOT_READY, retry_after=5.0
                ) from error
        self._kept.move_to_end(version)
        return self._kept[version]

    async def load(self, version: str, *, manifest_sha256: str | None) -> PolicyPrompts:
        """Read a version's tokenizer and template before the first request needs them.

        Args:
            version: name@version.
            manifest_sha256: what the release says of the version's manifest.

        Raises:
            NotFound, StorageError, VerificationError, TemplateError: it cannot be used.
        """
        async with self._loading:
            if version not in self._kept:
                self._kept[version] = await asyncio.to_thread(self._read, ModelRef.parse(version), manifest_sha256)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return self._kept[version]

    def _read(self, ref: ModelRef, manifest_sha256: str | None) -> VersionPrompts:
        manifest = self._registry.manifest(ref, manifest_sha256=manifest_sha256)
        with self._registry.opened(ref, _READ) as directory:
            _check_digests(directory, manifest)
            return VersionPrompts(PromptEncoder.from_directory(directory), manifest.compatibility.max_length)


def _check_digests(directory: Path, manifest: Manifest) -> None:
    """The files that are read here are the ones that were published; the weights are their servers' business."""
    for entry in manifest.files:
        if entry.path not in _READ:
            continue
        if hashlib.sha256((directory / entry.path).read_bytes()).hexdigest() != entry.sha256:
            raise VerificationError(
                RejectReason.CHECKSUM_MISMATCH, "is not what was published; publish the version again", file=entry.path
            )
