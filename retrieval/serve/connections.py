"""Close connections that do not send the head of a request in time, which uvicorn alone would keep for ever.

A client that sends a byte now and then ("slowloris") would otherwise hold a connection each. The time for a body is limited by
`retrieval.serve.uploads.read_body`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
LARGEST_HEAD = 16 * 1024
"""Bytes of a request's line and headers that may wait for their end; more are answered with 400."""
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn with a time limit for the head of each request, answered with 408."""

    head_seconds = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read data; a request whose head is complete is no longer timed, the next one is from its first byte."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._close_late)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_late(self) -> None:
        self._head_timer = None
        is_waiting = self.cycle is None or self.cycle.response_complete
        if is_waiting and not self.transport.is_closing():
            if self.conn.our_state is h11.IDLE:
                self.transport.write(_LATE)
            self.transport.close()


def server_options(**more: Any) -> dict[str, Any]:
    """Return the options of `uvicorn.run` that limit connections.

    Args:
        **more: further options of uvicorn.
    """
    return {
        "http": TimedProtocol,
        "ws": "none",
        "h11_max_incomplete_event_size": LARGEST_HEAD,
        "timeout_keep_alive": 5,
        "server_header": False,
        "log_level": "warning",
        **more,
    }
