"""What the command takes from the environment: `ACEMATH_CLI__URL` and `ACEMATH_CLI__API_KEY`."""

from __future__ import annotations

from pydantic import Field, SecretStr

from acemath_core.settings import ServiceSettings, settings_config


class CliSettings(ServiceSettings):
    """Where the gateway is and who is asking."""

    model_config = settings_config("ACEMATH_CLI__")

    url: str = Field("http://127.0.0.1:8080", description="base URL of the gateway", pattern=r"^https?://")
    api_key: SecretStr | None = Field(None, description="sent as Authorization: Bearer")
