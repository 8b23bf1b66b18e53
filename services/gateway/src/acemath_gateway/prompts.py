"""A policy version's prompts as token ids, with its own tokenizer and chat template out of the registry."""

from __future__ import annotations

import asyncio
import functools
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
_PATIENCE_SECONDS = 5.0
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
        self._reading: dict[tuple[str, str | None], asyncio.Task[VersionPrompts]] = {}

    async def of(self, version: str) -> PolicyPrompts:
        """See `Encoders.of`."""
        if version in self._kept:
            self._kept.move_to_end(version)
            return self._kept[version]
        try:
            return await self._read_once(version, None)
        except Exception as error:
            raise Unavailable(
                "the policy's tokenizer cannot be read; try again later", code=ErrorCode.NOT_READY, retry_after=5.0
            ) from error

    async def load(self, version: str, *, manifest_sha256: str | None) -> PolicyPrompts:
        """Read a version's tokenizer and template before the first request needs them.

        A read that takes too long goes on, and is waited for again the next time.

        Args:
            version: name@version.
            manifest_sha256: what the release says of the version's manifest.

        Raises:
            NotFound, StorageError, VerificationError, TemplateError: it cannot be used.
            Unavailable: it takes more than five seconds.
        """
        if version in self._kept:
            return self._kept[version]
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._read_once(version, manifest_sha256)
        except TimeoutError as error:
            raise Unavailable(
                f"the tokenizer of {version} is still being read; check the registry's mount, or the object store",
                code=ErrorCode.NOT_READY,
                retry_after=5.0,
            ) from error

    async def _read_once(self, version: str, manifest_sha256: str | None) -> VersionPrompts:
        """One thread for a version, however many wait for it: a store that is silent holds no more, and no others."""
        key = version, manifest_sha256
        if key not in self._reading:
            work = asyncio.to_thread(self._read, ModelRef.parse(version), manifest_sha256)
            self._reading[key] = asyncio.create_task(work, name=f"read the tokenizer of {version}")
            self._reading[key].add_done_callback(functools.partial(self._keep, key))
        return await asyncio.shield(self._reading[key])

    def _keep(self, key: tuple[str, str | None], reading: asyncio.Task[VersionPrompts]) -> None:
        del self._reading[key]
        if reading.cancelled() or reading.exception() is not None:
            return  # who waits for it is told
        self._kept.setdefault(key[0], reading.result())
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _read(self, ref: ModelRef, manifest_sha256: str | None) -> VersionPrompts:
        manifest = self._registry.manifest(ref, manifest_sha256=manifest_sha256)
        with self._registry.opened(ref, _READ) as directory:
            _check_digests(directory, manifest)
            return VersionPrompts(_encoder(ref, directory), manifest.compatibility.max_length)


def _encoder(ref: ModelRef, directory: Path) -> PromptEncoder:
    try:
        return PromptEncoder.from_directory(directory)
    except (TemplateError, OSError):
        raise
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise TemplateError(f"the tokenizer of {ref} cannot be used ({type(error).__name__}: {error})") from error


def _check_digests(directory: Path, manifest: Manifest) -> None:
    """The files that are read here are the ones that were published; the weights are their servers' business."""
    for entry in manifest.files:
        if entry.path not in _READ:
            continue
        if hashlib.sha256((directory / entry.path).read_bytes()).hexdigest() != entry.sha256:
            raise VerificationError(
                RejectReason.CHECKSUM_MISMATCH, "is not what was published; publish the version again", file=entry.path
            )
