"""`SlotsPort` over HTTP: `GET /v1/slots` of agents and reward services, `GET /v1/models` of vLLM servers."""

from __future__ import annotations

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from acemath_core.deadline import Deadline
from acemath_core.errors import InvalidRequest, Unavailable
from acemath_core.wire import Slot
from acemath_gateway.adapters.http import CallFailed, Upstream

_SECONDS = 5.0  # a busy machine is not a dead one; a dead one refuses at once
_SLOTS = TypeAdapter(tuple[Slot, ...])


class _Card(BaseModel):
    id: str
    max_model_len: int = Field(ge=1)


class _Models(BaseModel):
    data: list[_Card]


class HttpSlots:
    """Asks replicas about themselves, five seconds each at most.

    Args:
        upstream: connections; the same internal key is good for agents, reward services and vLLM servers.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def slots(self, url: str) -> tuple[Slot, ...]:
        """See `SlotsPort.slots`."""
        body = await self._get(f"{url}/v1/slots")
        try:
            return _SLOTS.validate_json(body, extra="ignore")  # an agent may be newer than we are
        except ValidationError as error:
            raise Unavailable(f"{url} answers with something other than slots") from error

    async def context_length(self, endpoint: str, version: str) -> int:
        """See `SlotsPort.context_length`."""
        body = await self._get(f"{endpoint}/v1/models")
        try:
            cards = _Models.model_validate_json(body).data
        except ValidationError as error:
            raise Unavailable(f"{endpoint} answers with something other than models") from error
        lengths = [card.max_model_len for card in cards if card.id == version]
        if not lengths:
            raise Unavailable(f"{endpoint} does not serve {version}")
        return lengths[0]

    async def _get(self, url: str) -> bytes:
        try:
            return await self._upstream.get(url, Deadline.after(_SECONDS))
        except (CallFailed, InvalidRequest) as error:
            raise Unavailable(f"{url} {error}") from error
