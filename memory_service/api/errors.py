"""Errors -> status and OpenAI's error body; only messages made for callers leave."""

import math
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from memory_service.errors import (
    BackendError,
    ConfigurationError,
    Forbidden,
    IncompatibleState,
    InvalidInput,
    MemoryServiceError,
    NotFound,
    NumericalError,
    Overloaded,
    QuotaExceeded,
    Rejected,
    StateConflict,
    Timeout,
    Unauthenticated,
    Unavailable,
)

STATUS: dict[type[MemoryServiceError], int] = {
    InvalidInput: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    QuotaExceeded: 403,  # not 429: clients would try again
    NotFound: 404,
    StateConflict: 409,
    IncompatibleState: 409,
    Overloaded: 429,
    NumericalError: 500,
    ConfigurationError: 500,
    BackendError: 502,
    Rejected: 502,
    Unavailable: 503,
    Timeout: 504,
}
"""HTTP status of every error class."""

log = structlog.get_logger()


class ErrorDetail(BaseModel):
    """What went wrong; `param` is the field, `code` is stable."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """OpenAI's error body."""

    error: ErrorDetail


EXAMPLES: dict[int, MemoryServiceError] = {
    400: InvalidInput("limit", 0, "must be at least 1"),
    401: Unauthenticated("is missing"),
    403: Forbidden("deleting memories", "admin"),
    404: NotFound("user", "ana"),
    409: StateConflict("turn m1", "is already known with another text; use a new id"),
    413: InvalidInput("body", "4,194,304 bytes", "has more than 4,000,000 bytes"),
    429: Overloaded("engine", "64 requests are waiting already", 3),
    500: NumericalError("logits", "hold NaN or Inf; check the adapter and the base model"),
    502: Rejected("engine", "refused the request"),
    503: Unavailable("database", "is locked", "try again"),
    504: Timeout("engine", "the deadline came before the answer's end"),
}
"""An error of every status that is answered."""


def _body(message: str, code: str, status: int, param: object = None) -> dict[str, object]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _documented(status: int, kinds: list[str]) -> dict[str, Any]:
    error = EXAMPLES[status]
    example = _body(str(error), error.code, status, getattr(error, "field", None))
    return {
        "model": ErrorBody,
        "description": ", ".join(kinds),
        "content": {"application/json": {"example": example}},
    }


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: _documented(status, kinds)
    for status, kinds in {
        status: [kind.code for kind, own in STATUS.items() if own == status] or ["invalid_input"]
        for status in sorted({*STATUS.values(), 413})
    }.items()
}
"""Every error that a route may answer with, for the OpenAPI document."""


def status_of(error: MemoryServiceError) -> int:
    """The status of an error: its class's, or its nearest ancestor's."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def body_of(error: MemoryServiceError) -> dict[str, object]:
    """OpenAI's error body."""
    field = getattr(error, "field", None)
    return _body(str(error), error.code, status_of(error), field)


def add_handlers(app: FastAPI) -> None:
    """Answer every error in one form."""
    app.add_exception_handler(MemoryServiceError, _of_service)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _of_bug)


def _of_service(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, MemoryServiceError):
        raise error
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error), status_of(error), headers)


def _of_validation(request: Request, error: Exception) -> JSONResponse:
    """Name the field and the problem; the value may be what a person said, and long."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse(_body(f"{field}: {first['msg']}", InvalidInput.code, 400, field), 400)


def _of_http(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: unknown paths, methods, bodies that are no JSON."""
    if not isinstance(error, HTTPException):
        raise error
    message = str(error.detail)
    if error.status_code == 404:
        message = f"path: there is no {request.method} {request.url.path}"
    code = NotFound.code if error.status_code == 404 else InvalidInput.code
    return JSONResponse(_body(message, code, error.status_code), error.status_code, error.headers)


def _of_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected_error", error=type(error).__name__, path=request.url.path)
    return JSONResponse(_body("something unexpected went wrong", "bug", 500), 500)
