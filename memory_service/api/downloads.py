"""Files that are made for one answer."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
"""What such an answer is in the OpenAPI document."""


def zip_answer(file: Path, name: str, headers: Mapping[str, str] | None = None) -> FileResponse:
    """Send a zip under a name; the folder that it lies in is deleted afterwards."""
    told = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='@')}"}
    return FileResponse(
        file,
        media_type="application/zip",
        headers={**(headers or {}), **told},
        background=BackgroundTask(shutil.rmtree, file.parent, ignore_errors=True),
    )
