"""The first admin key: read from its file; made there, once, when there is none."""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from acemath_core.settings import SettingsError, read_key_file
from acemath_gateway.settings import GatewaySettings

_MIN_CHARS = 32


@dataclass(frozen=True, slots=True)
class FirstKey:
    """What a gateway starts with.

    Attributes:
        key: the key; None where there is no place for one, and only admin keys that were made with it open `/admin`.
        said: one line for the log: where it is, or why there is none.
    """

    key: SecretStr | None
    said: str


def admin_key(settings: GatewaySettings) -> FirstKey:
    """The first admin key, from the file that the settings name or else from its default place.

    Raises:
        SettingsError: a setting names the file, and it cannot be used.
    """
    path = settings.admin_key_file or settings.default_admin_key_file()
    if path is None:
        return FirstKey(None, "no admin key: this user has no home; set ACEMATH_GATEWAY__ADMIN_KEY_FILE")
    try:
        key, made = first_admin_key(path)
    except SettingsError as error:
        if settings.admin_key_file is not None:
            raise
        return FirstKey(None, f"no admin key: {error}")
    return FirstKey(key, f"the admin key was made; it is in {path}" if made else f"the admin key is in {path}")


def first_admin_key(path: Path) -> tuple[SecretStr, bool]:
    """The key in the file, and whether it was made just now.

    Several gateways may share the file and start at once: one of them makes it, all of them read it.

    Raises:
        SettingsError: the file cannot be read or made, is readable by others, or its key is shorter than 32 characters.
    """
    made = not path.exists() and _make(path)
    key = read_key_file(path)
    if len(key.get_secret_value()) < _MIN_CHARS:
        raise SettingsError(
            f"admin key file {path}: the key is shorter than {_MIN_CHARS} characters; write one into it that nobody "
            "can guess, such as: openssl rand -hex 32"
        )
    return key, made


def _make(path: Path) -> bool:
    """Put a new key in place in one step, with mode 0600 from its first byte on; False when somebody was faster."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(temporary, f"acemath-admin_{secrets.token_urlsafe(32)}\n")
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    except OSError as error:
        raise SettingsError(
            f"admin key file {path} cannot be made: {error.strerror}; create it with mode 0600 and one line, the key, "
            "or set ACEMATH_GATEWAY__ADMIN_KEY_FILE to a path that can be written"
        ) from error


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with contextlib.closing(os.fdopen(descriptor, "w")) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
