"""Whom this gateway may tell of a job's end: listed hosts, over TLS, and nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import SplitResult, urlsplit

from acemath_core.errors import InvalidRequest
from acemath_core.settings import SettingsError
from acemath_gateway.jobqueue.settings import JobSettings
from acemath_gateway.jobqueue.signing import signing_key

HEADER = "x-acemath-webhook"
_MAX_CHARS = 2048
_PORTS = {"https": 443, "http": 80}


class WebhookSender(Protocol):
    """Carries messages to other people's servers."""

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> str | None:
        """Send once. None when it was taken (2xx), else what was wrong, in words that hold no text of a stranger's."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """The rules for webhooks.

    Attributes:
        hosts: `host` (the scheme's own port) or `host:port`, in lower case.
        inside: whether http:// URLs may be told too.
        key: signs the messages; None where there are no webhooks.
    """

    hosts: frozenset[str]
    inside: bool
    key: bytes | None = field(repr=False)

    @classmethod
    def of(cls, settings: JobSettings) -> Self:
        """The rules that the settings make.

        Raises:
            SettingsError: hosts without a secret, or a secret of another form.
        """
        secret = settings.webhook_secret()
        if settings.webhook_hosts and secret is None:
            raise SettingsError(
                "ACEMATH_GATEWAY__WEBHOOK_HOSTS is set and ACEMATH_GATEWAY__WEBHOOK_SECRET_FILE is not; messages are "
                "always signed: set it to a file (mode 0600) with whsec_ and a base64 key"
            )
        key = None if secret is None else signing_key(secret)
        return cls(frozenset(settings.webhook_hosts), settings.webhook_inside, key)

    def checked(self, url: str | None) -> str | None:
        """The URL of a request, unchanged.

        Raises:
            InvalidRequest: it is none, or its host is not one of those that may be told.
        """
        if url is None:
            return None
        problem = self.problem(url)
        if problem is not None:
            raise InvalidRequest(f"{HEADER}: {problem}", param=HEADER)
        return url

    def problem(self, url: str) -> str | None:
        """What speaks against telling this URL; None when nothing does."""
        if self.key is None or not self.hosts:
            return "this gateway has no webhooks; leave it out, and follow the job's events"
        if len(url) > _MAX_CHARS or not url.isascii() or not url.isprintable() or any(c in url for c in " \\"):
            return f"is not a URL of at most {_MAX_CHARS} ASCII characters"
        try:
            parts = urlsplit(url)
            return self._problem_in(parts, parts.port)
        except ValueError:
            return "is not a URL; one looks like https://example.com/done"

    def _problem_in(self, parts: SplitResult, port: int | None) -> str | None:
        if parts.scheme not in _PORTS or not parts.hostname or parts.fragment or "@" in parts.netloc:
            return "is not a URL; one looks like https://example.com/done, without a password or a fragment"
        if parts.scheme == "http" and not self.inside:
            return "must be https://"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        own_port = port is None or port == _PORTS[parts.scheme]
        if (own_port and host in self.hosts) or f"{host}:{port or _PORTS[parts.scheme]}" in self.hosts:
            return None
        return "its host is not one that this gateway may tell; ask its operator to list it"
