"""What evaluation takes from the environment, under `ACEMATH_EVALUATION__`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from acemath_core.settings import ServiceSettings, read_key_file, settings_config


class EvaluationSettings(ServiceSettings):
    """Where the running stack is and who asks."""

    model_config = settings_config("ACEMATH_EVALUATION__")

    gateway_url: str = Field("http://127.0.0.1:8080", description="base URL of the gateway", pattern=r"^https?://")
    reward_url: str = Field(
        "http://127.0.0.1:8200", description="base URL of the reward service", pattern=r"^https?://"
    )
    api_key: SecretStr | None = Field(None, description="the gateway's key")
    internal_key_file: Path | None = Field(None, description="file (mode 0600) with the key of the reward service")

    def internal_key(self) -> SecretStr | None:
        """Return the reward service's key, or None when none is configured.

        Raises:
            SettingsError: the file cannot be read, is empty, or is readable by others.
        """
        return read_key_file(self.internal_key_file) if self.internal_key_file else None
