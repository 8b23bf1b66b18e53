"""Keys that sign versions, written as openssl writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from acemath_registry import SigningKey


def write_key(path: Path, key: Any = None) -> Path:
    made = key or ed25519.Ed25519PrivateKey.generate()
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(made.private_bytes(*kinds))
    path.chmod(0o600)
    public = made.public_key().public_bytes(kinds[0], serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def make_keys(directory: Path) -> tuple[SigningKey, SigningKey]:
    """Ours and theirs."""
    ours, theirs = (SigningKey.read(write_key(directory / f"{name}.key")) for name in ("ours", "theirs"))
    return ours, theirs
