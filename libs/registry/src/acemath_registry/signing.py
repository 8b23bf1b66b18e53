"""Who made a version: an Ed25519 signature (RFC 8032) over its manifest, which holds the digest of every file.

`model.sig` lies beside the manifest, outside the version's name, so that a version can be signed later or by another
key. Where keys are configured, a version is used only when one of them signed it; where none are, nothing is checked.

`cryptography` is needed only here (the extra `signing`) and imported when a key is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from acemath_core.settings import SettingsError
from acemath_registry.documents import decode, encode, sha256_hex
from acemath_registry.durable import read_file
from acemath_registry.errors import InvalidRequest, RejectReason, VerificationError, storage_errors
from acemath_registry.manifest import SIGNATURE_NAME
from acemath_registry.refs import ModelRef

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ALGORITHM: Final = "ed25519"
_MAX_BYTES: Final = 64 * 1024
_PEM: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class SigningKey:
    """A private key; its text is never shown.

    Attributes:
        id: first 16 hex digits of the sha256 of the public key's 32 bytes.
    """

    id: str
    _key: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """The key in a PEM file of mode 0600 without a passphrase, as `openssl genpkey -algorithm ed25519` makes it.

        Raises:
            InvalidRequest: no such file, others may read it, another kind of key, or `cryptography` is missing.
        """
        data, (module, serialization) = _read(path, "signing key"), _library()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InvalidRequest(f"signing key {path} is readable by others; run: chmod 600 {path}", param="sign_key")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"{path} is no PEM file of a private key without a passphrase; {_MAKE}") from error
        if not isinstance(key, module.Ed25519PrivateKey):
            raise InvalidRequest(f"{path} holds another kind of key than Ed25519; {_MAKE}", param="sign_key")
        return cls(_id(key.public_key()), key)

    def trusted(self) -> TrustedKeys:
        """The public half, as the only key to trust."""
        return TrustedKeys({self.id: self._key.public_key()})

    def sign(self, ref: ModelRef, manifest: bytes) -> bytes:
        """The bytes of `model.sig` for a version whose `manifest.json` has these bytes."""
        document = {
            "schema_version": 1,
            "algorithm": _ALGORITHM,
            "key": self.id,
            "signature": base64.b64encode(self._key.sign(_message(ref, manifest))).decode(),
        }
        return encode(document)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys; a version that one of them signed may be used."""

    _keys: dict[str, Ed25519PublicKey]

    @classmethod
    def read(cls, path: Path) -> TrustedKeys:
        """The keys in a file of PEM public keys, one after the other, as `openssl pkey -pubout` writes them.

        Raises:
            InvalidRequest: no such file, no key in it, another kind of key, or `cryptography` is missing.
        """
        data, (module, serialization) = _read(path, "key file"), _library()
        try:
            keys = [serialization.load_pem_public_key(pem) for pem in _PEM.findall(data)]
        except ValueError as error:
            raise InvalidRequest(f"key file {path} holds what is no public key; write each with: {_PUBOUT}") from error
        if not keys or any(not isinstance(key, module.Ed25519PublicKey) for key in keys):
            raise InvalidRequest(f"key file {path} must hold Ed25519 public keys and nothing else; write: {_PUBOUT}")
        return cls({_id(key): key for key in keys})

    @property
    def ids(self) -> tuple[str, ...]:
        """The keys' ids, sorted."""
        return tuple(sorted(self._keys))

    def check(self, ref: ModelRef, directory: Path, manifest: bytes) -> str:
        """The id of the key that signed these bytes as the manifest of `ref`, by the signature in `directory`.

        Raises:
            VerificationError: SIGNATURE_MISSING, _MALFORMED, _UNTRUSTED or _WRONG.
            StorageError: the signature can not be read.
        """
        signed_by, signature = read_signature(ref, directory)
        key = self._keys.get(signed_by)
        if key is None:
            raise _reject(
                RejectReason.SIGNATURE_UNTRUSTED,
                f"{ref} is signed by key {signed_by}, trusted: {', '.join(self.ids)}; sign it again, or trust that key",
            )
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra

        try:
            key.verify(signature, _message(ref, manifest))
        except InvalidSignature as error:
            said = f"is not a signature of {ref} by key {signed_by}; publish it again, and find out who changed it"
            raise _reject(RejectReason.SIGNATURE_WRONG, said) from error
        return signed_by


def read_signature(ref: ModelRef, directory: Path) -> tuple[str, bytes]:
    """Key id and signature that a version carries; says nothing of whether they are right.

    Raises:
        VerificationError: SIGNATURE_MISSING, SIGNATURE_MALFORMED or SYMLINK.
        StorageError: it can not be read.
    """
    path = directory / SIGNATURE_NAME
    with storage_errors(f"reading the signature of {ref}"):
        try:
            if path.is_symlink():
                raise _reject(RejectReason.SYMLINK, "is a symlink; put the file itself there")
            data = read_file(path, _MAX_BYTES)
        except FileNotFoundError as error:
            said = f"{ref} is not signed; run: acemath registry sign {ref} --sign-key FILE"
            raise _reject(RejectReason.SIGNATURE_MISSING, said) from error
    document = decode(data, file=SIGNATURE_NAME, reason=RejectReason.SIGNATURE_MALFORMED)
    return _parsed(document)


def configured_keys(path: Path | None) -> TrustedKeys | None:
    """The keys in the file that a service's setting names; None where it names none.

    Raises:
        SettingsError: they can not be used.
    """
    try:
        return None if path is None else TrustedKeys.read(path)
    except InvalidRequest as error:
        raise SettingsError(f"signature_keys_file: {error.message}") from error


_MAKE: Final = "make one with: openssl genpkey -algorithm ed25519 -out FILE"
_PUBOUT: Final = "openssl pkey -in PRIVATE -pubout"


def _parsed(document: dict[str, Any]) -> tuple[str, bytes]:
    key, text = document.get("key"), document.get("signature")
    if document.get("schema_version") != 1 or document.get("algorithm") != _ALGORITHM:
        raise _reject(RejectReason.SIGNATURE_MALFORMED, f"is not {_ALGORITHM} of schema 1; sign it again, or upgrade")
    try:
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError("key and signature are texts")
        return key, base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise _reject(RejectReason.SIGNATURE_MALFORMED, f"holds no signature ({error}); sign it again") from error


def _message(ref: ModelRef, manifest: bytes) -> bytes:
    """What is signed: never the bytes of another document that the same key may sign."""
    return f"acemath model signature v1\n{ref}\n{sha256_hex(manifest)}\n".encode()


def _id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _read(path: Path, what: str) -> bytes:
    try:
        return read_file(path, _MAX_BYTES)
    except OSError as error:
        raise InvalidRequest(f"{what} {path}: {error.strerror}; name a readable PEM file") from error


def _library() -> tuple[Any, Any]:
    """The modules `ed25519` and `serialization`."""
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest("signatures need cryptography; install acemath-registry[signing]") from error
    return ed25519, serialization


def _reject(reason: RejectReason, detail: str) -> VerificationError:
    return VerificationError(reason, detail, file=SIGNATURE_NAME)
