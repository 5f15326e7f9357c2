"""Cursors of pages, and ETags."""

import base64
import binascii
import hashlib
import json
from datetime import datetime

from fastapi import Request, Response
from pydantic import BaseModel

from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput

REVALIDATE = "private, no-cache"
"""Caches may keep it, but must ask with its ETag each time."""


def cursor_of(turn: Turn) -> str:
    """Where a page of turns begins, for the page before it. Works also when the turn is gone."""
    place = json.dumps([turn.time.isoformat(), turn.id])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def place_of(cursor: str) -> tuple[datetime, str]:
    """The place that a cursor names.

    Raises:
        InvalidInput: it is not a cursor of ours.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        time, turn_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        place = datetime.fromisoformat(time), str(turn_id)
    except (ValueError, TypeError, binascii.Error):
        problem = "is no cursor; take `next` of the page before"
        raise InvalidInput("before", cursor, problem) from None
    if place[0].tzinfo is None or "\x00" in place[1]:
        raise InvalidInput("before", cursor, "is no cursor; take `next` of the page before")
    return place


def tagged(request: Request, body: BaseModel) -> Response:
    """The body with its ETag, or 304 where the caller has it already."""
    content = body.model_dump_json()
    tag = etag(hashlib.sha256(content.encode()).hexdigest())
    return unchanged(request, tag) or Response(
        content, media_type="application/json", headers=revalidated(tag)
    )


def etag(digest: str) -> str:
    """The ETag of a digest."""
    return f'"{digest[:32]}"'


def revalidated(tag: str) -> dict[str, str]:
    """Headers of what has an ETag."""
    return {"ETag": tag, "Cache-Control": REVALIDATE}


def unchanged(request: Request, tag: str) -> Response | None:
    """304 where the caller has the version of this ETag already."""
    known = {one.strip().removeprefix("W/") for one in _listed(request)}
    return Response(status_code=304, headers=revalidated(tag)) if known & {tag, "*"} else None


def _listed(request: Request) -> list[str]:
    return request.headers.get("If-None-Match", "").split(",")
