"""Signatures of webhooks as Standard Webhooks 1.0 has them (github.com/standard-webhooks/standard-webhooks, spec).

webhook-id         the same for every attempt: a receiver that has seen it may drop the message
webhook-timestamp  Unix seconds of this attempt: a receiver refuses what is older than a few minutes
webhook-signature  v1,<base64 of HMAC-SHA256 over "<id>.<timestamp>.<body>">
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from pydantic import SecretStr

from acemath_core.settings import SettingsError

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64


def signing_key(secret: SecretStr) -> bytes:
    """The key in `whsec_<base64>`.

    Raises:
        SettingsError: it has another form, or not 24 to 64 bytes.
    """
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True) if text.startswith(_PREFIX) else b""
    except binascii.Error:
        key = b""
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise SettingsError(
            "the file of ACEMATH_GATEWAY__WEBHOOK_SECRET_FILE must hold whsec_ and base64 of 24 to 64 random bytes, as "
            'this prints it: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def signed_headers(key: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a message."""
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
