"""Refuses bodies that are too large before they are in memory."""

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ARCHIVES = re.compile(r"/v1/memory/users/[^/]+/import")


class BodyLimit:
    """Counts what arrives, whatever the request's headers say. Archives may be larger."""

    def __init__(self, app: ASGIApp, most_bytes: int, most_archive_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._most_archive_bytes = most_archive_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a counting `receive`."""
        received = 0
        is_archive = ARCHIVES.fullmatch(scope.get("path", "")) is not None
        most_bytes = self._most_archive_bytes if is_archive else self._most_bytes

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most_bytes:
                raise HTTPException(413, f"body: has more than {most_bytes:,} bytes")
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)
