"""Names: of a model version, of a release, of a channel. Every name that becomes a path passes through here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from acemath_registry.errors import InvalidRequest

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
VERSION_PATTERN = re.compile(r"s(?P<step>0|[1-9][0-9]{0,14})-(?P<digest>[0-9a-f]{12})")
RELEASE_PATTERN = re.compile(r"r-[0-9a-f]{12}")
MAX_NAME_LENGTH = 96
_MAX_SAID_LENGTH = 200


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """One immutable version of one model, written `name@version`.

    Attributes:
        name: the model's name, one path segment.
        version: `s<step>-<12 hex digits>`, see `manifest.version_of`.

    Raises:
        InvalidRequest: a part that can not be a name (made safe here, since both become path segments).
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        check_name(self.name, what="model name")
        if not VERSION_PATTERN.fullmatch(self.version):
            raise InvalidRequest(
                f"{self.version!r} is not a version; a version looks like s1200-0123456789ab", param="version"
            )

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def step(self) -> int:
        """The training step that the version names."""
        return int(self.version[1:].partition("-")[0])

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference written as `name@version`.

        Raises:
            InvalidRequest: the text has another form.
        """
        name, at, version = text.partition("@")
        if not at:
            raise InvalidRequest(f"{text!r} is not a model reference; write name@version", param="model")
        return cls(name, version)


def check_name(text: str, *, what: str) -> str:
    """The text itself, if it can be one path segment on every file system we use.

    Raises:
        InvalidRequest: empty, too long, hidden, or with a character outside letters, digits, `.`, `_`, `-`.
    """
    if len(text) > MAX_NAME_LENGTH or not NAME_PATTERN.fullmatch(text):
        raise InvalidRequest(
            f"{text[:MAX_NAME_LENGTH]!r} can not be a {what}; "
            f"use 1 to {MAX_NAME_LENGTH} letters, digits, '_', '-' and single dots"
        )
    return text


def check_channel_name(text: str) -> str:
    """The text itself, if a new channel may have it as its name.

    Raises:
        InvalidRequest: it can not be a name, or is one that names a release.
    """
    check_name(text, what="channel name")
    if RELEASE_PATTERN.fullmatch(text):
        raise InvalidRequest(f"{text!r} names a release and can not name a channel; use another name", param="channel")
    return text


def absent_channel(name: str, names: Sequence[str]) -> str | None:
    """That there is no channel of this name, and which there are; None where there is. What is mistyped is told."""
    there = f"those that do: {', '.join(names)}" if names else "this registry has none yet"
    return None if name in names else f"channel {name!r} does not exist ({there})"


def check_release_id(text: str) -> str:
    """The text itself, if it is a release id.

    Raises:
        InvalidRequest: it is not.
    """
    if not RELEASE_PATTERN.fullmatch(text):
        raise InvalidRequest(
            f"{text[:MAX_NAME_LENGTH]!r} is not a release id; one looks like r-0123456789ab", param="release"
        )
    return text


def check_by(text: str) -> str:
    """The text itself, if it can say who does something.

    Raises:
        InvalidRequest: empty, too long, or not printable.
    """
    return _check_said(text, "by", "who does it")


def check_reason(text: str) -> str:
    """The text itself, if it can say why something is done.

    Raises:
        InvalidRequest: empty, too long, or not printable.
    """
    return _check_said(text, "reason", "why it is done")


def shortened(text: str) -> str:
    """What a program found, as a reason that passes `check_reason`."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _MAX_SAID_LENGTH else line[: _MAX_SAID_LENGTH - 1] + "…"


def _check_said(text: str, param: str, what: str) -> str:
    # Of one line: what is printed of the audit log may not look like another of its lines.
    if not text.strip() or len(text) > _MAX_SAID_LENGTH or not text.isprintable():
        said = f"{param} must be 1 to {_MAX_SAID_LENGTH} printable characters on one line that say {what}; correct it"
        raise InvalidRequest(said, param=param)
    return text
