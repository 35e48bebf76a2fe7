"""Connections that end in time, however slowly somebody sends or reads."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 60  # of a connection, from its first byte to the last one that is read


class BriefConnection(H11Protocol):
    """A connection of one request, which is cut after some seconds.

    uvicorn waits for ever for the rest of a head or a body, and for who does not read its answer.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to count."""
        super().connection_made(transport)
        self._end = asyncio.get_running_loop().call_later(SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no longer."""
        self._end.cancel()
        super().connection_lost(exc)
